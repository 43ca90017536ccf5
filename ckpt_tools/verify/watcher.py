"""What can be said of a trajectory from what a pass over it reads anyway.

A `Watcher` is shown every checkpoint of a pass and asked for its findings at the end. It reads nothing by itself when
the digests of the tensors are known, and keeps a few bytes per tensor and checkpoint.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod

from ..checkpoint import Checkpoint, TensorInfo, Trajectory
from ..checkpoint.aliases import stored_number
from ..errors import CkptError, FormatError
from .copies import Copies, Unit
from .finding import Finding, listed

_DIGITS = 16
_POINTER = re.compile(r"a git-(LFS|annex) pointer")
_MISSING = re.compile(r"shards? missing|does not exist")
_FLOATS = ("float", "bfloat")
_HASHED_ZEROS = 1 << 26

Tables = dict[str, tuple[str, tuple[int, ...]]]


@dataclass
class _Seen:
    """One checkpoint: its tensors' (dtype, shape), digests, what was not finite, and the step stored inside."""

    table: Tables
    digests: Mapping[str, str]
    nonfinite: tuple[str, ...]
    stored: int | None


@dataclass
class Watcher:
    """Collects what is suspicious about a trajectory while its checkpoints go by, in any order.

    `trajectory` adds what its listing shows: gaps, and what was left out.
    """

    trajectory: Trajectory | None = None
    _seen: dict[int, _Seen] = field(default_factory=dict)
    _failed: dict[int, CkptError] = field(default_factory=dict)
    _units: dict[str, Unit] = field(default_factory=dict)
    _tables: dict[str, Tables] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """What the numbers of the trajectory count, `step` or `epoch`."""
        return self.trajectory.unit if self.trajectory else "step"

    def see(
        self,
        step: int,
        checkpoint: Checkpoint,
        names: Iterable[str] | None = None,
        *,
        nonfinite: Iterable[str] = (),
        digests: Mapping[str, str] | None = None,
    ) -> None:
        """Take note of a checkpoint. `names` are the tensors whose digests to compare (default: all).

        A digest that is not known yet is computed, which reads the tensor. `digests` are used instead when given;
        `nonfinite` names tensors that were found to hold NaN or infinity.
        """
        table = self._tables.setdefault(checkpoint.layout_key, _table(checkpoint.tensors))
        chosen = list(checkpoint.tensors) if names is None else list(names)
        known = digests if digests is not None else {name: checkpoint.digest(name) for name in chosen}
        for name in known.keys() - self._units.keys():
            info = checkpoint.tensors[name]
            self._units[name] = Unit(info.file.name, telling(info))
        short = {name: digest[:_DIGITS] for name, digest in known.items()}
        stored = stored_number(checkpoint.metadata, self.unit)
        self._seen[step] = _Seen(table, short, tuple(nonfinite), stored)

    def failed(self, step: int, error: CkptError) -> None:
        """Take note of a checkpoint that cannot be read."""
        self._failed[step] = error

    def findings(self, astray: Iterable[int] = ()) -> list[Finding]:
        """Return what was found, errors first; `astray` are steps known to be out of place by other means."""
        steps, copies = sorted(self._seen), self.copies(astray)
        found = [*self._failures(), *self._nonfinite(steps), *copies.findings(), *self._layouts(steps)]
        return [*found, *self._stored(steps), *self._listing()]

    def copies(self, astray: Iterable[int] = ()) -> Copies:
        """Return the digests seen so far, ready to be compared."""
        steps, wrong = sorted(self._seen), set(astray)
        digests = [self._seen[step].digests for step in steps]
        broken = frozenset(at for at, step in enumerate(steps) if self._seen[step].nonfinite)
        return Copies(steps, digests, self._units, self.unit, wrong.__contains__, self._blank, broken)

    def _blank(self, name: str, digest: str) -> bool:
        dtype, shape = next(seen.table[name] for seen in self._seen.values() if name in seen.table)
        return digest == _zeros(dtype, prod(shape))[:_DIGITS]

    def _failures(self) -> Iterator[Finding]:
        for step, error in sorted(self._failed.items()):
            yield Finding(_kind(error), "error", f"{self.unit} {step} cannot be read. {error}", (step,))

    def _nonfinite(self, steps: list[int]) -> Iterator[Finding]:
        by_steps: dict[tuple[int, ...], list[str]] = defaultdict(list)
        names = dict.fromkeys(name for step in steps for name in self._seen[step].nonfinite)
        for name in names:
            held = [step for step in steps if name in self._seen[step].digests]
            where = tuple(step for step in steps if name in self._seen[step].nonfinite)
            constant = len({self._seen[step].digests[name] for step in held}) == 1 and len(where) == len(held) > 1
            if not constant:  # a mask is infinite for ever
                by_steps[where].append(name)
        for where, tensors in by_steps.items():
            text = f"NaN or infinity in {listed(tensors)} at {listed(where, self.unit)}."
            yield Finding("nonfinite", "warning", text, where, tuple(tensors))

    def _layouts(self, steps: list[int]) -> Iterator[Finding]:
        changes = [at for at in range(1, len(steps)) if self._table(steps[at]) != self._table(steps[at - 1])]
        for at in changes:
            before, after = self._table(steps[at - 1]), self._table(steps[at])
            yield from self._change(steps, at, before, after)

    def _table(self, step: int) -> Tables:
        return self._seen[step].table

    def _change(self, steps: list[int], at: int, before: Tables, after: Tables) -> Iterator[Finding]:
        both = before.keys() & after.keys()
        reshaped = sorted(name for name in both if before[name][1] != after[name][1])
        parts = {"new": sorted(after.keys() - before.keys()), "gone": sorted(before.keys() - after.keys())}
        parts["of another shape"] = reshaped
        here, unit = steps[at], self.unit
        if any(parts.values()):
            said = "; ".join(f"{listed(names)} {what}" for what, names in parts.items() if names)
            back = any(self._table(step) == after for step in steps[: at - 1])
            text = f"From {unit} {steps[at - 1]} to {here} the tensors change: {said}."
            if back:
                text += f" {unit} {here} has those of an earlier one again, so checkpoints of two models may be mixed."
            named = tuple(name for names in parts.values() for name in names)
            yield Finding("shape_change", "warning" if back else "note", text, (steps[at - 1], here), named)
        recast = sorted(name for name in both if before[name][0] != after[name][0])
        if recast:
            kinds = {f"{before[name][0]} to {after[name][0]}" for name in recast}
            text = f"From {unit} {steps[at - 1]} to {here} the stored dtype changes, {listed(sorted(kinds))}: "
            yield Finding("dtype_change", "note", f"{text}{listed(recast)}.", (steps[at - 1], here), tuple(recast))

    def _stored(self, steps: list[int]) -> Iterator[Finding]:
        inside = {step: stored for step in steps if (stored := self._seen[step].stored) is not None}
        wrong = {step: stored for step, stored in inside.items() if stored != step}
        if not wrong:
            return
        unit = self.unit
        some = listed([f"{stored} in {unit} {step}" for step, stored in wrong.items()])
        shifts = {stored - step for step, stored in inside.items()}
        if len(shifts) == 1 and abs(next(iter(shifts))) == 1:
            text = f"The {unit} stored inside is one off the name everywhere ({some}): they count from 0 and from 1."
            yield Finding("stored_step", "note", text, tuple(wrong))
        else:
            text = f"The {unit} stored inside is not the one in the name: {some}."
            yield Finding(
                "stored_step", "warning", text, tuple(wrong), (), {str(s): float(n) for s, n in wrong.items()}
            )

    def _listing(self) -> Iterator[Finding]:
        if self.trajectory is None:
            return
        gaps = self.trajectory.gaps
        if gaps:
            yield Finding("gap", "note", f"Missing from the grid: {listed(gaps, self.unit)}.", tuple(gaps))
        for skip in self.trajectory.skipped:
            yield Finding("left_out", "note", f"{skip.name} is left out: {skip.reason}.")


def telling(info: TensorInfo) -> bool:
    """Return whether equal bytes at two steps mean a copy: floats of enough entries that chance cannot repeat them.

    Few half-precision entries may round back to what they were, and short vectors may be clipped or unused.
    """
    if not info.dtype.startswith(_FLOATS):
        return False
    coarse = info.nbytes < 4 * info.size
    return (info.size >= 4096 and len(info.shape) > 1) if coarse else info.size >= 64


def _table(tensors: Mapping[str, TensorInfo]) -> Tables:
    return {info.name: (info.dtype, info.shape) for info in tensors.values()}


def _kind(error: CkptError) -> str:
    text = str(error)
    if _POINTER.search(text):
        return "pointer"
    if _MISSING.search(text):
        return "missing_shard"
    return "damaged" if isinstance(error, FormatError) else "unreadable"


@lru_cache(maxsize=64)
def _zeros(dtype: str, size: int) -> str:
    """Return the digest of that many zeros; empty for a tensor too large for it to be worth while."""
    from ..checkpoint.dtypes import ITEMSIZE

    count = size * ITEMSIZE[dtype]
    return hashlib.sha256(bytes(count)).hexdigest() if count <= _HASHED_ZEROS else ""
