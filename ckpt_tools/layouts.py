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


Pair = tuple[str, str]

COMPARED_BYTES = 64 << 20
"""Tensors up to this size are compared to find a head that is a stored copy of the embedding."""


class Layouts:
    """Cache of layouts by `Checkpoint.layout_key`; `run` is the run.json of our own runs.

    Whether two stored tensors are copies of each other may change from step to step, so it is part of the cache's key.
    """

    def __init__(self, registry: Registry, run: Mapping[str, Any] | None = None, patterns: Sequence[str] = ()) -> None:
        self._registry = registry
        self._run = run
        self._patterns = tuple(patterns)
        self._known: dict[Any, Resolved] = {}
        self._pairs: dict[Any, list[Pair]] = {}

    def of(self, checkpoint: Checkpoint) -> Resolved:
        """Return family, layout and selected matrices of a checkpoint."""
        key = checkpoint.layout_key
        if key not in self._pairs:
            pairs: dict[Pair, bool] = {}
            resolved = self._resolve(checkpoint, pairs)
            self._pairs[key] = list(pairs)
            return self._known.setdefault((key, tuple(pairs.values())), resolved)
        found = tuple(_equal(checkpoint, *pair) for pair in self._pairs[key])
        if (key, found) not in self._known:
            self._known[key, found] = self._resolve(checkpoint, {})
        return self._known[key, found]

    def _resolve(self, checkpoint: Checkpoint, asked: dict[Pair, bool]) -> Resolved:
        config = dict(checkpoint.config)
        if self._run is not None:
            config = {**self._run.get("config", {}), "ckpt_family": self._run["family"]}
        family = self._registry.recognise(config, checkpoint.tensors)
        table = family.table if family else RoleTable(())

        def equal(one: str, other: str) -> bool:
            return asked.setdefault((one, other), _equal(checkpoint, one, other))

        layout = assign(checkpoint.tensors, checkpoint.aliases, table, config, equal)
        return Resolved(family, layout, select_names(list(layout.matrices), self._patterns), config)


def _equal(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Return whether two stored tensors are the same bytes; large ones are not read for this."""
    infos = checkpoint.tensors[one], checkpoint.tensors[other]
    if infos[0].dtype != infos[1].dtype or infos[0].nbytes > COMPARED_BYTES:
        return False
    return checkpoint.digest(one) == checkpoint.digest(other)
