"""From the checkpoints of one layout to models that run: names matched, ties resolved, shapes checked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from .arrays import CPU, has_float64
from .checkpoint import Checkpoint
from .checkpoint.dtypes import DTYPES
from .checkpoint.source import TensorInfo
from .errors import SourceError, nearest
from .family import Family
from .model import Batch, Model, Skeleton, Tensors, placed
from .roles import Layout, RoleTable, assign
from .roles.match import Matcher
from .roles.ties import find_ties

WRAPPERS = ("_orig_mod.", "module.")
"""Prefixes that compiling and data-parallel wrappers put before every name."""


class BatchSource(Protocol):
    """Where the batch of a call comes from; `identity` changes whenever the batch would."""

    @property
    def identity(self) -> str: ...

    def batch(self, config: Mapping[str, Any]) -> Batch:
        """Return the batch for a model of this configuration."""


class ModelHost:
    """What turns the checkpoints of one layout into models: family, configuration, and where batches come from.

    The skeleton and the batch are made on first use and kept; a checkpoint's model is kept as long as the checkpoint.
    Models run on `device`, such as "cuda:1"; where it has no float64, models in float64 and what is measured on
    activations stay on the CPU.
    """

    def __init__(
        self,
        family: type[Family] | None,
        config: Mapping[str, Any],
        source: BatchSource | None = None,
        *,
        device: str = CPU,
    ) -> None:
        self.family = family
        self.config = {key: value for key, value in config.items() if key != "ckpt_family"}
        self.source = source
        self._device, self._home = torch.device(device), torch.device(device if has_float64(device) else CPU)
        self._models: WeakKeyDictionary[Checkpoint, dict[str | None, Model]] = WeakKeyDictionary()

    def refusal(self, need: str, *, batch: bool = True) -> str:
        """Return why `need` ("forward" or "loss") cannot be met, or ""; costs nothing, so ask before long work.

        `batch` says whether there must be something to run the model on, too.
        """
        if self.family is None:
            return "no family recognises the checkpoint, so its model cannot be rebuilt; see `ckpt inspect`"
        for method in ("build", "forward", *(["loss"] if need == "loss" else [])):
            if getattr(self.family, method).__func__ is getattr(Family, method).__func__:
                return f"family {self.family.name!r} defines no {method}(): it knows weights only"
        if batch and self.source is None:
            return "there is nothing to run the model on: the run has no probe batch; give --data FILE"
        return ""

    @cached_property
    def skeleton(self) -> Skeleton:
        """The module; building it leaves the global random state as it was."""
        if self.family is None:
            raise SourceError(f"The model cannot be run: {self.refusal('forward')}.")
        with torch.random.fork_rng(devices=[]):
            return Skeleton(self.family.build(self.config))

    @cached_property
    def _batch(self) -> Batch:
        if self.source is None:
            raise SourceError(f"The model cannot be run: {self.refusal('forward')}.")
        return {name: t.to(self._home) for name, t in self.source.batch(self.config).items()}

    def batch(self) -> Batch:
        """Return the batch, the same for every checkpoint; the dict is the caller's own, its tensors are shared.

        It is where activations are: on the models' device, or on the CPU where that has no float64.
        """
        return dict(self._batch)

    def model(self, checkpoint: Checkpoint, layout: Layout, dtype: str | None = None) -> Model:
        """Return a checkpoint's model in "float32" or "float64" (None: float64 where any tensor is stored so).

        Raises SourceError when tensors are missing or of another shape than the configuration makes them.
        """
        known = self._models.setdefault(checkpoint, {})
        # An analyzer that wrote to the tensors must not change what the next one sees.
        if dtype not in known or known[dtype].changed():
            known[dtype] = self._read(checkpoint, layout, dtype)
        return known[dtype]

    def _read(self, checkpoint: Checkpoint, layout: Layout, dtype: str | None) -> Model:
        skeleton, family = self.skeleton, self.family
        assert family is not None  # the skeleton was built from it
        found = match_names(skeleton, checkpoint, family, self.config)
        tensors, used = _tensors(family, skeleton, checkpoint, found)
        _check(tensors, skeleton, checkpoint)
        wide = any(info.dtype == "float64" for info in checkpoint.tensors.values())
        kind: torch.dtype = getattr(torch, dtype or ("float64" if wide else "float32"))
        tied = _tied(skeleton, found, tensors)
        where = self._home if kind == torch.float64 else self._device
        tensors = {name: placed(t, kind, where) for name, t in (skeleton.built | tensors).items()}
        return Model(
            family,
            skeleton,
            {name: t for name, t in tensors.items() if tied[name] == name},
            tied,
            kind,
            *self._roles(layout, {stored: tied[name] for name, stored in found.items()}),
            tuple(name for name in checkpoint.tensors if name not in used),
            where,
            self._home,
        )

    def _roles(self, layout: Layout, name_of: Mapping[str, str]) -> tuple[dict[str, tuple[str, ...]], frozenset[str]]:
        """Return the roles in each of the module's tensors, and which of these are `[in, out]`.

        Told by the names in the module, which the family's table knows too, else by the names in the checkpoint.
        """
        roles, transposed = self._module_roles
        stored_roles, stored_transposed = _roles_of(layout)
        others = {name_of[t]: r for t, r in stored_roles.items() if t in name_of and name_of[t] not in roles}
        return roles | others, frozenset(transposed | {name_of[t] for t in stored_transposed if t in name_of})

    @cached_property
    def _module_roles(self) -> tuple[dict[str, tuple[str, ...]], set[str]]:
        assert self.family is not None  # asked for after the skeleton was built
        shapes = self.skeleton.required
        infos = {n: TensorInfo(n, "float32", s, 4 * prod(s), Path()) for n, s in shapes.items()}
        return _roles_of(assign(infos, {}, self.family.table, self.config))


def _roles_of(layout: Layout) -> tuple[dict[str, tuple[str, ...]], set[str]]:
    roles: dict[str, tuple[str, ...]] = {}
    transposed = set()
    for info in [*layout.matrices.values(), *layout.vectors.values()]:
        if info.role:
            roles[info.tensor] = (*roles.get(info.tensor, ()), info.role)
            # The first canonical axis is the last stored one.
            if info.axes and info.axes[0] == max(info.axes):
                transposed.add(info.tensor)
    return roles, transposed


def match_names(
    skeleton: Skeleton, checkpoint: Checkpoint, family: type[Family], config: Mapping[str, Any]
) -> dict[str, str]:
    """Return `{name in the module: stored name}` for what can be matched by name.

    Names match when equal, or equal without what wraps all of them and the table's own prefixes; a tie of the family's
    table stands in for a name stored nowhere. Of tied names only the first is listed, unless they are stored with
    different values: then the checkpoint is believed and not its configuration.
    """
    table, tensors = family.table, checkpoint.tensors
    names = {n: n for n in tensors} | checkpoint.aliases
    ties = find_ties(table, Matcher(table, tensors), tensors, checkpoint.aliases, config, None).aliases
    names = {alias: stored for alias, stored in ties.items() if alias not in names} | names
    outer = table.outer(tensors) or ""
    bare = {_bare(table, alias.removeprefix(outer)): stored for alias, stored in names.items()}
    found: dict[str, str] = {}
    for name, first in skeleton.tied.items():
        stored = names.get(name) or bare.get(_bare(table, name))
        if stored is None or not (first in skeleton.required or first in skeleton.optional):
            continue
        if first not in found:
            found[first] = stored
        elif not _equal(checkpoint, stored, found[first]):
            found[name] = stored
    return found


def _bare(table: RoleTable, name: str) -> str:
    """Return a tensor's name without wrapper prefixes and without the table's own."""
    while name.startswith(WRAPPERS):
        name = name.split(".", 1)[1]
    return table.bare(name)


def _equal(checkpoint: Checkpoint, one: str, other: str) -> bool:
    return one == other or np.array_equal(checkpoint.read(one), checkpoint.read(other))


def _tensors(
    family: type[Family], skeleton: Skeleton, checkpoint: Checkpoint, found: Mapping[str, str]
) -> tuple[Tensors, set[str]]:
    """Return the module's tensors and which stored ones went into them.

    A family may convert where names alone do not match (experts fused, and such); it then is given all that is stored.
    """
    convert = getattr(family, "module_tensors", None)
    if convert is None or skeleton.required.keys() <= found.keys():
        return {name: _tensor(checkpoint, stored) for name, stored in found.items()}, set(found.values())
    made = convert(skeleton.module, {name: _tensor(checkpoint, name) for name in checkpoint.tensors})
    tensors = {name: made[name] for name in skeleton.tied if name in made and name not in skeleton.constants}
    return tensors, set(checkpoint.tensors)


def _tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    info = checkpoint.tensors[name]
    # Memory of torch's own: its kernels may give other last bits on what numpy aligned.
    tensor = torch.empty(info.shape, dtype=getattr(torch, DTYPES[info.dtype].decoded.name))
    checkpoint.read_into(name, tensor.numpy())
    return tensor


def _check(tensors: Tensors, skeleton: Skeleton, checkpoint: Checkpoint) -> None:
    where = f"{checkpoint.path} (step {checkpoint.step})"
    missing = [name for name in skeleton.required if name not in tensors]
    if missing:
        raise SourceError(
            f"{where} holds nothing for {len(missing)} of the model's {len(skeleton.required)} tensors: "
            f"{', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}."
            f"{nearest(missing[0], checkpoint.tensors)} Is the configuration that of this checkpoint?"
        )
    shapes = skeleton.required | skeleton.optional
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[skeleton.tied[name]]:
            raise SourceError(
                f"{where}: tensor {name!r} is {list(tensor.shape)}, but the configuration makes it "
                f"{list(shapes[skeleton.tied[name]])}. Put the config.json of this checkpoint beside it."
            )


def _tied(skeleton: Skeleton, found: Mapping[str, str], tensors: Tensors) -> dict[str, str]:
    """Return the module's ties, but for names with tensors of their own, and those of names stored as one tensor."""
    first: dict[str, str] = {}
    one = {name: first.setdefault(stored, name) for name, stored in found.items()}
    own = {name: name if name in tensors else target for name, target in skeleton.tied.items()}
    return {name: one.get(target, target) for name, target in own.items()}
