"""Which checkpoints descend from each other.

A checkpoint joins the latest chain whose last member it is related to (`Geometry.related`: about 1 within a run, 0
between runs) and begins a new one when it is related to none. One run is one chain, whatever its steps and speed.
Strong weight decay over a long gap also erases, so a break over a gap wider than others that are bridged is a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from .finding import Finding, Severity, listed
from .geometry import Geometry

LOST = 0.1
_WARMUP_GAP, _GAP_SHARE = 100, 1 / 8
_MOST_CHAINS = 4


def chains(geometry: Geometry, positions: Sequence[int]) -> list[list[int]]:
    """Return the chains of descent among the positions, by their first members."""
    found: list[list[int]] = []
    for position in positions:
        latest = sorted(found, key=lambda chain: -chain[-1])
        kin = next((chain for chain in latest if geometry.related(chain[-1], position) >= LOST), None)
        if kin is None:
            found.append([position])
        else:
            kin.append(position)
    return found


class Kin:
    """The chains of a trajectory and what they say; `main` is the longest, `others` the rest."""

    def __init__(self, geometry: Geometry, positions: Sequence[int], unit: str) -> None:
        self.geometry, self.positions, self.unit = geometry, list(positions), unit
        self.chains = chains(geometry, positions)
        self.main = max(self.chains, key=len) if self.chains else []
        self.others = [chain for chain in self.chains if chain is not self.main]

    def findings(self) -> list[Finding]:
        """Return one finding per chain beside the main one, or one for all when there are many."""
        if not self.others:
            return []
        if len(self.main) < 2:
            text = f"No two of {len(self.positions)} checkpoints share anything (retained below {LOST})."
            many: Severity = "warning" if len(self.positions) > 2 else "note"
            return [Finding("mixed_runs", many, text, self._steps(self.positions))]
        if len(self.others) >= _MOST_CHAINS:
            strays = sorted(position for chain in self.others for position in chain)
            text = (
                f"{len(self.chains)} groups of checkpoints share nothing with each other; the largest is "
                f"{listed(self._steps(self.main), self.unit)}. Checkpoints of several runs are mixed."
            )
            return [Finding("mixed_runs", "warning", text, self._steps(strays))]
        return [self._finding(chain) for chain in self.others]

    def strays(self) -> list[int]:
        """Return the positions of checkpoints that lie between members of the main chain but are not of it."""
        if len(self.main) < 2:
            return []
        return [p for chain in self.others for p in chain if self.main[0] < p < self.main[-1]]

    def _steps(self, positions: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.geometry.steps[position] for position in positions)

    def _finding(self, chain: list[int]) -> Finding:
        steps = self._steps(chain)
        if chain[-1] < self.main[0] or chain[0] > self.main[-1]:
            return self._break(chain)
        inside = [position for position in self.main if chain[0] < position < chain[-1]]
        if inside or chain[0] < self.main[0]:
            text = (
                f"Two runs are mixed: {listed(self._steps(self.main), self.unit)} descend from each other, and so do "
                f"{listed(steps, self.unit)}, but they share nothing."
            )
            return Finding("mixed_runs", "warning", text, steps)
        text = f"{listed(steps, self.unit)}: nothing is shared with the checkpoints before and after: of another run."
        return Finding("off_path", "warning", text, steps)

    def _break(self, chain: list[int]) -> Finding:
        """Return the finding for a chain wholly before or behind the main one."""
        before, behind = (chain, self.main) if chain[-1] < self.main[0] else (self.main, chain)
        a, b = self.geometry.steps[before[-1]], self.geometry.steps[behind[0]]
        value = self.geometry.retained(before[-1], behind[0])[0]
        short = b - a <= max(self._widest(self.main), self._widest(chain))
        shared = f"{self.unit} {a} and {b} share nothing (retained {value:.2g}), neighbours elsewhere do"
        kind, said = "run_change", "two runs, one after the other"
        if len(before) == 1:
            kind, said = "not_descended", f"the run does not descend from the checkpoint at {self.unit} {a}"
            span = self.geometry.steps[self.main[-1]] - a
            short = short and b - a <= max(span * _GAP_SHARE, 1 if self.unit == "epoch" else _WARMUP_GAP)
        why = "" if short else f", or {b - a} {self.unit}s of strong weight decay lie between"
        severity: Severity = "warning" if short else "note"
        return Finding(kind, severity, f"{shared}: {said}{why}.", (a, b), (), {"retained": value})

    def _widest(self, chain: Sequence[int]) -> int:
        steps = self._steps(chain)
        return max((b - a for a, b in pairwise(steps)), default=0)
