"""The same bytes under different steps, from digests alone: no weights are needed, so a server's file hashes serve too.

Training changes every tensor at every update, or leaves it alone for a stretch (frozen, not reached). What it does not
do is come back: a tensor that equals an earlier one bit by bit, with other values in between, was copied.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .finding import Finding, Severity, listed
from .seen import Rows, as_text, column_of, mark_of

STILL, WARMUP = 2, 8
"""Updates that may change nothing, anywhere (vanished gradients) and at the start (a rate from zero, overflows)."""

_SURE = 4


class Stretches(NamedTuple):
    """Where a unit stays the same: first and last positions, and its digest there."""

    first: NDArray[np.intp]
    last: NDArray[np.intp]
    digest: NDArray[Any]

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Unit:
    """A tensor as far as copies go: the name of its file, and whether it is large enough that chance repeats none."""

    file: str
    telling: bool = True


@dataclass
class Copies:
    """Digests of the checkpoints in step order: `digests[i]` is `{unit: digest}` of `steps[i]`, `units` describes them.

    `astray` says whether a step is known to be out of place, which tells the copy from the original; `blank` whether a
    digest is that of zeros, to which tensors do come back; `broken` are positions with NaN, which stay what they are.
    """

    steps: Sequence[int]
    digests: Sequence[Mapping[str, str]]
    units: Mapping[str, Unit]
    step_unit: str = "step"
    astray: Callable[[int], bool] = lambda step: False
    blank: Callable[[str, str], bool] = lambda unit, digest: False
    broken: frozenset[int] = frozenset()

    def identical(self) -> list[tuple[int, ...]]:
        """Return groups of steps whose checkpoints are the same."""
        return [tuple(self.steps[position] for position in group) for group in self._identical()]

    def findings(self) -> list[Finding]:
        """Return identical checkpoints, then shards and tensors that belong to another step."""
        groups = self._identical()
        first_of = {position: group[0] for group in groups for position in group}
        same = {pair for group in groups for pair in pairwise(group)}
        returned: dict[tuple[int, ...], list[str]] = defaultdict(list)
        still: dict[int, list[str]] = defaultdict(list)
        for name in (name for name, unit in self.units.items() if unit.telling):
            stretches = self._stretches(name)
            for positions in self._returns(name, stretches, first_of):
                returned[positions].append(name)
            for position in _stood_still(stretches, same):
                still[position].append(name)
        found = [self._foreign(positions, units) for positions, units in returned.items()]
        return [*map(self._of_group, groups), *found, *(self._unchanged(at, units) for at, units in still.items())]

    def _identical(self) -> list[tuple[int, ...]]:
        marks = self.digests.marks() if isinstance(self.digests, Rows) else map(mark_of, self.digests)
        told = ((at, mark) for at, mark in enumerate(marks) if mark and at not in self.broken)
        # Sixteen bytes each in one piece: a dictionary of them would take ten times as much.
        short = ((at, hashlib.sha256(mark).digest()[:16]) for at, mark in told)
        rows = np.fromiter(short, [("at", "i8"), ("mark", "S16")])
        rows = rows[np.argsort(rows["mark"], kind="stable")]
        bounds = np.flatnonzero(np.append(True, np.append(rows["mark"][1:] != rows["mark"][:-1], True)))
        several = np.flatnonzero(np.diff(bounds) > 1)
        return sorted(tuple(rows["at"][bounds[i] : bounds[i + 1]].tolist()) for i in several)

    def _of_group(self, group: tuple[int, ...]) -> Finding:
        steps = tuple(self.steps[position] for position in group)
        wrong = [step for step in steps if self.astray(step)]
        severity: Severity = "warning"
        text = f"{listed(steps, self.step_unit)} hold the same weights, byte for byte"
        together = group == tuple(range(group[0], group[-1] + 1)) and self.step_unit == "step"
        widest = max(b - a for a, b in pairwise(steps))
        if together and not wrong and (widest <= STILL or (group[0] == 0 and steps[-1] - steps[0] <= WARMUP)):
            severity, text = "note", f"{text}: nothing was learned in between"
        elif wrong and len(wrong) < len(steps):
            verb = "is" if len(wrong) == 1 else "are"
            text += f"; by the neighbours, {listed(wrong, self.step_unit)} {verb} out of place"
        return Finding("identical", severity, f"{text}.", steps)

    def _returns(self, unit: str, stretches: Stretches, first_of: Mapping[int, int]) -> Iterator[tuple[int, ...]]:
        """Yield positions between which a unit differs, where it is the same."""
        if len(np.unique(stretches.digest)) == len(stretches):
            return
        places: dict[str, list[int]] = defaultdict(list)
        for first, digest in zip(stretches.first.tolist(), stretches.digest.tolist(), strict=True):
            places[as_text(digest)].append(first)
        for digest, members in places.items():
            distinct = tuple(sorted({first_of.get(position, position) for position in members}))
            if len(distinct) > 1 and not self.blank(unit, digest):
                yield distinct

    def _stretches(self, unit: str) -> Stretches:
        rows = self.digests
        at, digest = rows.column(unit) if isinstance(rows, Rows) else column_of(rows, unit)
        changes = np.flatnonzero(digest[1:] != digest[:-1])
        first, last = np.append(at[:1], at[changes + 1]), np.append(at[changes], at[-1:])
        return Stretches(first, last, digest[np.append([0], changes + 1)[: len(first)]])

    def _foreign(self, positions: tuple[int, ...], units: list[str]) -> Finding:
        steps = tuple(self.steps[position] for position in positions)
        shards = self._whole_files(positions[0], units)
        what = f"All of {listed(shards)}" if shards else f"{_count(units)} {listed(units)}"
        wrong = [step for step in steps if self.astray(step)]
        if len(steps) > 2:
            why = "so all but one of them hold a copy"
        elif len(wrong) == 1:
            why = f"and {self.step_unit} {wrong[0]} is out of place as a whole"
        else:
            why = "so one of them holds the other's"
        verb = "is" if len(units) == 1 or len(shards) == 1 else "are"
        text = f"{what} {verb} byte for byte the same at {listed(steps, self.step_unit)}, but not in between, {why}."
        return Finding("foreign_shard" if shards else "foreign_tensor", "warning", text, steps, tuple(units))

    def _whole_files(self, position: int, units: Sequence[str]) -> list[str]:
        """Return the files all of whose changing tensors are among the units, when there are other files beside."""
        held: dict[str, set[str]] = defaultdict(set)
        for unit in self.digests[position]:
            if unit in self.units and self.units[unit].telling and len(self._stretches(unit)) > 1:
                held[self.units[unit].file].add(unit)
        whole = [file for file, names in held.items() if names <= set(units)]
        return sorted(whole) if len(held) > 1 and set(units) <= set().union(*(held[f] for f in whole), set()) else []

    def _unchanged(self, position: int, units: list[str]) -> Finding:
        steps = (self.steps[position], self.steps[position + 1])
        shards = self._whole_files(position, units)
        if shards:
            text = (
                f"All of {listed(shards)} is byte for byte the same at {listed(steps, self.step_unit)} and at no other."
            )
            return Finding("foreign_shard", "warning", text, steps, tuple(units))
        text = f"{_count(units)} {listed(units)} did not move between {self.step_unit} {steps[0]} and {steps[1]}."
        return Finding("unchanged", "note", text, steps, tuple(units))


def _stood_still(stretches: Stretches, same: Container[tuple[int, int]]) -> Iterator[int]:
    """Yield where a unit stays the same between two checkpoints only, while the rest moves."""
    long = np.flatnonzero(stretches.last > stretches.first)
    if len(long) == 1 and len(stretches) > _SURE:
        first, last = int(stretches.first[long[0]]), int(stretches.last[long[0]])
        if last == first + 1 and (first, last) not in same:
            yield first


def _count(units: Sequence[str]) -> str:
    return "Tensor" if len(units) == 1 else f"{len(units)} tensors,"
