"""Which family a checkpoint is of and where its weights lie, worked out once per distinct layout of a trajectory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .checkpoint import Checkpoint
from .family import Family
from .registry import Registry
from .roles import Layout, RoleTable, assign, select_names


@dataclass(frozen=True)
class Resolved:
    """A checkpoint's family (None when unknown), its layout, the selected matrix names and the configuration used."""

    family: type[Family] | None
    layout: Layout
    names: list[str]
    config: Mapping[str, Any]


class Layouts:
    """Cache of layouts by `Checkpoint.layout_key`; `run` is the run.json of our own runs."""

    def __init__(self, registry: Registry, run: Mapping[str, Any] | None = None, patterns: Sequence[str] = ()) -> None:
        self._registry = registry
        self._run = run
        self._patterns = tuple(patterns)
        self._known: dict[Any, Resolved] = {}

    def of(self, checkpoint: Checkpoint) -> Resolved:
        """Return family, layout and selected matrices of a checkpoint."""
        key = checkpoint.layout_key
        if key not in self._known:
            self._known[key] = self._resolve(checkpoint)
        return self._known[key]

    def _resolve(self, checkpoint: Checkpoint) -> Resolved:
        config = dict(checkpoint.config)
        if self._run is not None:
            config = {**self._run.get("config", {}), "ckpt_family": self._run["family"]}
        family = self._registry.recognise(config, checkpoint.tensors)
        table = family.table if family else RoleTable(())
        layout = assign(checkpoint.tensors, checkpoint.aliases, table, config)
        return Resolved(family, layout, select_names(list(layout.matrices), self._patterns), config)
