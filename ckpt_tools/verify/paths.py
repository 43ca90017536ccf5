"""Checkpoints and tensors that do not lie where their step says, told by distances alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .detours import FLOOR, NEARER, SHARE, WEAK, Detour, detours_in, nearest
from .finding import Finding, listed
from .geometry import Floats, Geometry
from .kin import Kin

TENSOR_FLOOR, TENSOR_SHARE, TENSOR_STRONG = 0.2, 0.3, 4.0
OSCILLATION, SWINGS, DENSE = 3 * FLOOR, 7, 2
JUMP_SCORE, JUMP_RATIO, JUMP_PAIRS, JUMP_AROUND = 8.0, 5.0, 10, 3
SPREAD = 0.25
WINDOW = 256
_TINY = 1e-12


@dataclass
class Paths:
    """The search over one trajectory: `findings`, and `astray`, the steps known to be out of place.

    `same` are groups of steps with the same bytes: of each, the one that fits its neighbours best stays.
    """

    geometry: Geometry
    unit: str = "step"
    same: Sequence[Sequence[int]] = ()
    findings: list[Finding] = field(default_factory=list)
    astray: set[int] = field(default_factory=set)

    def search(self) -> Paths:
        """Find copies out of place, other runs, detours, and odd tensors and jumps among the rest; return itself."""
        if len(self.geometry) < 2 or not self.geometry.main:
            return self
        positions = self._without_copies()
        kin = Kin(self.geometry, positions, self.unit)
        self.findings += kin.findings()
        self.astray |= set(self._steps(kin.strays()))
        rest: list[int] = []
        for chain in kin.chains:
            kept = self._detours(chain)
            rest = kept if chain is kin.main else rest
        self._tensors(rest)
        self._jumps(rest)
        return self

    def _steps(self, positions: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.geometry.steps[position] for position in positions)

    def _without_copies(self) -> list[int]:
        """Return the positions without all but one of each group of copies; the misfits are astray."""
        place = {step: position for position, step in enumerate(self.geometry.steps)}
        left = set(range(len(self.geometry)))
        for group in self.same:
            members = [place[step] for step in group if step in place]
            others = sorted(left - set(members))
            if len(members) < 2 or not others:
                continue
            misfit = {position: self._misfit(position, others) for position in members}
            best = min(members, key=lambda position: misfit[position])
            wrong = [position for position in members if misfit[position] > WEAK * misfit[best] + FLOOR]
            self.astray |= set(self._steps(wrong))
            left -= set(members) - {best}
        return sorted(left)

    def _misfit(self, position: int, others: Sequence[int]) -> float:
        """Return the mean distance to the nearest position on either side that holds other weights."""
        before, behind = [p for p in others if p < position], [p for p in others if p > position]
        return float(self.geometry.distances([position], [*before[-1:], *behind[:1]]).mean())

    def _detours(self, chain: list[int]) -> list[int]:
        """Report the detours of a chain and return its other members."""
        if len(chain) < 3:
            return chain
        found = self._steady(self._search(chain), chain)
        out = {position for detour in found for position in detour.positions}
        rest = [position for position in chain if position not in out]
        homes = {detour: self._home(detour, rest) for detour in found}
        loose = [detour for detour in found if detour.out < NEARER * homes[detour][0]]
        if len(loose) > 1 and self._own(loose) * WEAK <= _out(loose):
            # All of them: the last checkpoint of a second run may pass for the home of those before it.
            self._second(found, rest)
            return rest
        for detour in loose:
            self._off_path(detour)
        for home in sorted({at for _, at in homes.values()}):
            self._misplaced([(d, homes[d][0]) for d in found if d not in loose and homes[d][1] == home], home)
        return rest

    def _steady(self, detours: list[Detour], chain: list[int]) -> list[Detour]:
        """Return the detours without those of an oscillation, which is noted.

        In an oscillation every checkpoint is a detour from its neighbours, in turn on either side. Two runs that began
        alike and alternate look the same, but farther apart, and hardly at every other update.
        """
        one, two = (np.median(self.geometry.along(chain, lag)[self.geometry.main], axis=0) for lag in (1, 2))
        turns = np.minimum(one[:-1], one[1:]) >= WEAK * two
        dense = self.unit == "step" and np.median(np.diff(self._steps(chain))) <= DENSE
        swings = {chain[at + beside] for at in _stretches(turns, SWINGS) for beside in range(3)}
        aside = [d for d in detours if set(d.positions) <= swings and (dense or d.out < OSCILLATION)]
        if aside:
            steps, out = self._steps([p for d in aside for p in d.positions]), _out(aside)
            text = f"From {self.unit} {steps[0]} on the weights swing from side to side, by {out:.2g}: large updates."
            self.findings.append(Finding("oscillation", "note", text, steps, (), {"distance": out}))
        return [detour for detour in detours if detour not in aside]

    def _search(self, chain: list[int]) -> list[Detour]:
        """Return the detours of a chain by position in the trajectory; long chains are searched in windows."""
        some = [chain[i] for i in np.unique(np.linspace(0, len(chain) - 1, 64).astype(int))]
        floor = max(FLOOR, SHARE * float(self.geometry.distances(some).max()))
        found: dict[int, Detour] = {}
        for start in range(0, max(1, len(chain) - WINDOW // 2), WINDOW // 2):
            part = chain[start : start + WINDOW]
            ends = {p for p in (part[0], part[-1]) if p not in (chain[0], chain[-1])}
            for detour in detours_in(self.geometry.distances(part), floor):
                positions = tuple(part[p] for p in detour.positions)
                if not ends & set(positions):
                    found[positions[0]] = Detour(positions, detour.out, detour.bridge)
        return [found[first] for first in sorted(found)]

    def _home(self, detour: Detour, rest: Sequence[int]) -> tuple[float, int]:
        """Return how near the nearest other checkpoint of the path is, its neighbours apart, and which."""
        before = max((p for p in rest if p < detour.positions[0]), default=-1)
        behind = min((p for p in rest if p > detour.positions[-1]), default=-1)
        far = [p for p in rest if p not in (before, behind)]
        if not far:
            return np.inf, -1
        away = np.median(self.geometry.distances(detour.positions, far), axis=0)
        return float(away.min()), far[int(away.argmin())]

    def _misplaced(self, detours: list[tuple[Detour, float]], home: int) -> None:
        """Report detours that lie near one checkpoint of the path, with how near."""
        if not detours:
            return
        steps, there = self._steps([p for detour, _ in detours for p in detour.positions]), self.geometry.steps[home]
        self.astray |= set(steps)
        near = float(np.median([distance for _, distance in detours]))
        out, bridge = _out([d for d, _ in detours]), float(np.median([d.bridge for d, _ in detours]))
        text = (
            f"{listed(steps, self.unit)}: nearer to {self.unit} {there} (relative distance {near:.2g}) than to the "
            f"neighbours ({out:.2g}), which are {bridge:.2g} apart: weights of another {self.unit}."
        )
        numbers = {"distance": out, "bridge": bridge, "nearest": near, "nearest_step": float(there)}
        self.findings.append(Finding("misplaced", "warning", text, steps, (), numbers))

    def _own(self, detours: Sequence[Detour]) -> float:
        """Return how far apart detours are from one to the next."""
        positions = [position for detour in detours for position in detour.positions]
        return float(np.median(self.geometry.along(positions)[self.geometry.main]))

    def _second(self, detours: Sequence[Detour], rest: list[int]) -> None:
        """Report detours that form a path of their own."""
        positions = [position for detour in detours for position in detour.positions]
        steps, out = self._steps(positions), _out(detours)
        numbers = {"distance": out, "own": self._own(detours)}
        text = (
            f"Two paths alternate, {out:.2g} apart: {listed(self._steps(rest), self.unit)}, and "
            f"{listed(steps, self.unit)}. Checkpoints of two runs that began alike are mixed."
        )
        self.findings.append(Finding("mixed_runs", "warning", text, steps, (), numbers))
        self.astray |= set(steps)

    def _off_path(self, detour: Detour) -> None:
        steps = self._steps(detour.positions)
        self.astray |= set(steps)
        text = (
            f"{listed(steps, self.unit)}: {detour.out:.2g} away from the neighbours on both sides, which are only "
            f"{detour.bridge:.2g} apart: weights of another run, or damaged."
        )
        numbers = {"distance": detour.out, "bridge": detour.bridge}
        self.findings.append(Finding("off_path", "warning", text, steps, (), numbers))

    def _tensors(self, rest: list[int]) -> None:
        """Report single matrices that leave their path at a checkpoint whose others stay on theirs.

        One that does so at neighbouring checkpoints too oscillates.
        """
        matrices = self.geometry.matrices
        if len(rest) < 3 or len(matrices) < 2:
            return
        one, two = self.geometry.along(rest)[matrices], self.geometry.along(rest, 2)[matrices]
        out = np.minimum(one[:, :-1], one[:, 1:])
        far = (out >= TENSOR_FLOOR) & (out >= TENSOR_SHARE * one.max(axis=1, keepdims=True))
        odd = far & (out >= TENSOR_STRONG * two)
        for t, at in np.argwhere(far & ~odd & (out >= WEAK * two)):
            rows = self.geometry.tensor(matrices[t], [rest[at + 1]], rest)
            odd[t, at] = out[t, at] >= NEARER * nearest(rows, [at + 1])[0]
        beside = np.pad(odd, ((0, 0), (1, 1)))
        odd &= ~(beside[:, :-2] | beside[:, 2:])
        for at in np.flatnonzero(odd.any(axis=0) & (2 * odd.sum(axis=0) <= len(odd))):
            tensors = tuple(self.geometry.names[matrices[t]] for t in np.flatnonzero(odd[:, at]))
            step, away = self._steps([rest[at + 1]]), float(np.median(out[odd[:, at], at]))
            text = f"{listed(tensors)} at {self.unit} {step[0]}: {away:.2g} away from both neighbours, which agree."
            self.findings.append(Finding("foreign_tensor", "warning", text, step, tensors, {"distance": away}))

    def _jumps(self, rest: list[int]) -> None:
        """Note changes far above the trend of those around, per logarithm of the spacing of steps."""
        if len(rest) <= JUMP_PAIRS:
            return
        moved = np.median(self.geometry.along(rest)[self.geometry.main], axis=0)
        scores, ratios = jump_scores(np.array(self._steps(rest), float), moved)
        high = np.flatnonzero((scores >= JUMP_SCORE) & (ratios >= JUMP_RATIO))
        if not len(high):
            return
        ends = [self._steps([rest[k], rest[k + 1]]) for k in high]
        said = [f"{a} and {b} ({ratio:.2g} times)" for (a, b), ratio in zip(ends, ratios[high], strict=True)]
        text = f"The weights change far more than the trend between {self.unit}s {listed(said)}."
        most = int(high[scores[high].argmax()])
        numbers = {"score": float(scores[most]), "ratio": float(ratios[most]), "distance": float(moved[most])}
        steps = tuple(sorted({step for pair in ends for step in pair}))
        self.findings.append(Finding("jump", "note", text, steps, (), numbers))


def _out(detours: Sequence[Detour]) -> float:
    return float(np.median([detour.out for detour in detours]))


def _stretches(flags: NDArray[np.bool_], least: int) -> list[int]:
    """Return the positions of flags that stand in a row of at least so many."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return [at for start, stop in edges.reshape(-1, 2) if stop - start >= least for at in range(start, stop)]


def jump_scores(steps: Floats, moved: Floats) -> tuple[Floats, Floats]:
    """Return a robust z-score of every change and its ratio to the trend.

    The trend of log(change / sqrt(spacing in log step)) is the median over the pairs around, without the pair itself;
    the score divides by the median absolute deviation (scaled to a standard deviation), at least `SPREAD`.
    """
    spacing = np.diff(np.log1p(steps - steps[0]))
    level = np.log(np.maximum(moved, _TINY)) - 0.5 * np.log(spacing)
    residual = np.empty_like(level)
    for k in range(len(level)):
        low, high = max(0, k - JUMP_AROUND), min(len(level), k + JUMP_AROUND + 1)
        residual[k] = level[k] - np.median(np.delete(level[low:high], k - low))
    spread = max(SPREAD, 1.4826 * float(np.median(np.abs(residual))))
    return residual / spread, np.exp(residual)
