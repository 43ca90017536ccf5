"""What can be said of a trajectory from what a pass over it reads anyway.

A `Watcher` is shown every checkpoint of a pass and asked for its findings at the end. It reads nothing by itself when
the digests of the tensors are known.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any

from ..checkpoint import Checkpoint, Trajectory
from ..checkpoint.dtypes import ITEMSIZE
from ..errors import CkptError, FormatError
from .copies import Copies, Unit
from .finding import Finding, Severity, listed
from .sample import ZEROS
from .seen import Seen
from .sighting import Sighting

_POINTER = re.compile(r"a git-(LFS|annex) pointer")
_MISSING = re.compile(r"shards? missing|does not exist")
_HASHED_ZEROS = 1 << 26

Layout = dict[str, tuple[str, tuple[int, ...]]]


@dataclass
class Watcher:
    """Collects what is suspicious about a trajectory while its checkpoints go by, in any order.

    `trajectory` adds what its listing shows: gaps, and what was left out.
    """

    trajectory: Trajectory | None = None
    _seen: Seen = field(default_factory=Seen)
    _failed: dict[int, CkptError] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """What the numbers of the trajectory count, `step` or `epoch`."""
        return self.trajectory.unit if self.trajectory else "step"

    def see(self, step: int, checkpoint: Checkpoint, names: Iterable[str] | None = None, **how: Any) -> None:
        """Take note of an open checkpoint; `names` and the rest as for `Sighting.of`."""
        self.add(step, Sighting.of(checkpoint, names, unit=self.unit, **how))

    def add(self, step: int, sighting: Sighting) -> None:
        """Take note of what was seen of a checkpoint elsewhere or earlier."""
        self._seen.put(step, sighting)

    def failed(self, step: int, error: CkptError) -> None:
        """Take note of a checkpoint that cannot be read."""
        self._failed[step] = error

    def findings(self, astray: Iterable[int] = ()) -> list[Finding]:
        """Return what was found, errors first; `astray` are steps known to be out of place by other means."""
        found = [*self._failures(), *self._nonfinite(), *self.copies(astray).findings(), *self._changes()]
        return [*found, *self._stored(), *self._listing()]

    def copies(self, astray: Iterable[int] = ()) -> Copies:
        """Return the digests seen so far, ready to be compared."""
        steps, wrong = self._seen.steps, set(astray)
        units = {name: Unit(held.file, held.telling) for name, held in self._seen.compared().items()}
        broken = frozenset(bisect_left(steps, step) for step in self._seen.nonfinite)
        return Copies(steps, self._seen.digests(), units, self.unit, wrong.__contains__, self._blank, broken)

    def _blank(self, name: str, digest: str) -> bool:
        if ZEROS.startswith(digest):
            return True
        held = next(sighting.tensors[name] for sighting in self._seen.values() if name in sighting.tensors)
        return _zeros(held.dtype, prod(held.shape)).startswith(digest)

    def _failures(self) -> Iterator[Finding]:
        for step, error in sorted(self._failed.items()):
            yield Finding(_kind(error), "error", f"{self.unit} {step} cannot be read. {error}", (step,))

    def _nonfinite(self) -> Iterator[Finding]:
        by_steps: dict[tuple[int, ...], list[str]] = defaultdict(list)
        bad = self._seen.nonfinite
        for name in dict.fromkeys(name for step in sorted(bad) for name in bad[step]):
            held = [step for step in self._seen if name in self._seen[step].digests]
            where = tuple(step for step in sorted(bad) if name in bad[step])
            constant = len({self._seen[step].digests[name] for step in held}) == 1 and len(where) == len(held) > 1
            if not constant:  # a mask is infinite for ever
                by_steps[where].append(name)
        for where, tensors in by_steps.items():
            text = f"NaN or infinity in {listed(tensors)} at {listed(where, self.unit)}."
            yield Finding("nonfinite", "warning", text, where, tuple(tensors))

    def _changes(self) -> Iterator[Finding]:
        earlier: list[dict[str, tuple[int, ...]]] = []  # shapes of what came before the last one, each once
        for (before, one), (step, other) in pairwise(self._seen.items()):
            # Checkpoints that hold the same mostly share the object that says so.
            if one.tensors is not other.tensors and (old := one.layout()) != (new := other.layout()):
                yield from self._change(before, step, old, new, _shapes(new) in earlier)
                earlier.append(_shapes(old))

    def _change(self, before: int, step: int, old: Layout, new: Layout, again: bool) -> Iterator[Finding]:
        both = old.keys() & new.keys()
        reshaped = sorted(name for name in both if old[name][1] != new[name][1])
        parts = {"new": sorted(new.keys() - old.keys()), "gone": sorted(old.keys() - new.keys())}
        parts["of another shape"] = reshaped
        if any(parts.values()):
            said = "; ".join(f"{listed(names)} {what}" for what, names in parts.items() if names)
            text = f"From {self.unit} {before} to {step} the tensors change: {said}."
            if again:
                text += (
                    f" {self.unit} {step} has those of an earlier one again: checkpoints of two models may be mixed."
                )
            named = tuple(name for names in parts.values() for name in names)
            severity: Severity = "warning" if again else "note"
            yield Finding("shape_change", severity, text, (before, step), named)
        recast = sorted(name for name in both if old[name][0] != new[name][0])
        if recast:
            kinds = listed(sorted({f"{old[name][0]} to {new[name][0]}" for name in recast}))
            text = f"From {self.unit} {before} to {step} the stored dtype changes, {kinds}: {listed(recast)}."
            yield Finding("dtype_change", "note", text, (before, step), tuple(recast))

    def _stored(self) -> Iterator[Finding]:
        wrong = {step: stored for step, stored in sorted(self._seen.stored.items()) if stored is not None}
        if not wrong:
            return
        right = {0} if len(self._seen) > len(self._seen.stored) else set()
        unit, shifts = self.unit, {stored - step for step, stored in wrong.items()} | right
        some = listed([f"{stored} in {self.unit} {step}" for step, stored in wrong.items()])
        numbers = {str(step): float(stored) for step, stored in wrong.items()}
        if shifts <= {1} or shifts <= {-1}:
            text = f"The {unit} stored inside is one off the name everywhere ({some}): one of them counts from 0."
            yield Finding("stored_step", "note", text, tuple(wrong), (), numbers)
        else:
            text = f"The {unit} stored inside is not the one in the name: {some}."
            yield Finding("stored_step", "warning", text, tuple(wrong), (), numbers)

    def _listing(self) -> Iterator[Finding]:
        if self.trajectory is None:
            return
        gaps = self.trajectory.gaps
        if gaps:
            yield Finding("gap", "note", f"Missing from the grid: {listed(gaps, self.unit)}.", tuple(gaps))
        for skip in self.trajectory.skipped:
            yield Finding("left_out", "note", f"{skip.name} is left out: {skip.reason}.")


def _shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, (_, shape) in layout.items()}


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
    count = size * ITEMSIZE.get(dtype, _HASHED_ZEROS + 1)
    return hashlib.sha256(bytes(count)).hexdigest() if count <= _HASHED_ZEROS else ""
