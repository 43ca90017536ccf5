"""Plateaus, descents and onsets of a curve over training steps.

The speed of a positive curve L at a point is the Theil-Sen slope of ln L over a window around it: the median slope of
all pairs of points, which up to 29 % of wild points do not move. A point belongs to a descent (a rise) where ln L falls
(rises) faster than `pace` times the curve's mean speed, which is the variation of its running median over its length,
and else to a plateau. Runs of fewer than `least` points join the longer neighbour. This needs no absolute scale and so
always finds the relatively fast parts; a curve whose logarithm varies by less than `flat` in all is one plateau.

A segment's `margin` says how clearly it is what it is called: (v - c) / (v + c) for the median speed v of a descent or
rise and the critical speed c, with the sign reversed for a plateau; 1 is clear, 0 undecided, and it is no probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, groupby

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

KINDS = {-1: "descent", 0: "plateau", 1: "rise"}


@dataclass(frozen=True)
class Segment:
    """A part of a curve, from step `start` to step `stop`: `change` is that of ln L, `margin` see above."""

    kind: str
    start: int
    stop: int
    change: float
    margin: float


def slopes(x: Floats, y: Floats, window: int) -> Floats:
    """Return the Theil-Sen slope of y over x in a window of points around each point `[n]`.

    Windows are cut short at the ends. A window has at least two points.

    >>> slopes(np.arange(5.0), np.array([0.0, 2.0, 4.0, 6.0, 8.0]), 3).tolist()
    [2.0, 2.0, 2.0, 2.0, 2.0]
    """
    half = max(1, window // 2)
    found = np.empty(len(x))
    for i in range(len(x)):
        part = slice(max(0, i - half), i + half + 1)
        pairs = combinations(range(len(x[part])), 2)
        found[i] = np.median([(y[part][b] - y[part][a]) / (x[part][b] - x[part][a]) for a, b in pairs])
    return found


def segments(
    steps: Sequence[int],
    values: Floats,
    *,
    window: int = 5,
    pace: float = 0.5,
    least: int = 3,
    flat: float = 0.01,
    log_steps: bool = False,
) -> list[Segment]:
    """Return the segments of a positive curve in order; values that are not positive and finite are left out.

    With `log_steps`, speed is per unit of ln(step + 1). A curve of fewer than three such points has no segments.
    """
    known = np.flatnonzero(np.isfinite(values) & (np.asarray(values) > 0))
    if len(known) < 3:
        return []
    at = np.asarray(steps, dtype=np.float64)[known]
    x, y = np.log(at + 1) if log_steps else at, np.log(np.asarray(values, dtype=np.float64)[known])
    speed = slopes(x, y, window)
    smooth = _medians(y, window)
    variation = float(np.abs(np.diff(smooth)).sum())
    critical = pace * variation / (x[-1] - x[0])
    kinds = np.where(np.abs(speed) > critical, np.sign(speed), 0) if variation >= flat else np.zeros(len(y))
    return [
        _segment(kind, part, at, smooth, speed, critical) for kind, part in _runs(kinds.astype(int).tolist(), least)
    ]


def onset(steps: Sequence[int], values: Floats, *, share: float = 0.05, hold: int = 3) -> int:
    """Return the first step at which a curve has left its first value for good, -1 if it never does.

    It has left where it is further away than `share` of the curve's range, for `hold` points in a row.
    """
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return -1
    y = np.asarray(values)[known]
    away = np.abs(y - y[0]) > share * (y.max() - y.min())
    for i in range(len(y) - hold + 1):
        if away[i : i + hold].all():
            return int(steps[known[i]])
    return -1


def _medians(y: Floats, window: int) -> Floats:
    half = max(1, window // 2)
    return np.array([np.median(y[max(0, i - half) : i + half + 1]) for i in range(len(y))])


def _runs(kinds: list[int], least: int) -> list[tuple[int, range]]:
    """Return (kind, range of points) of runs, short ones joined to the longer neighbour, shortest first."""
    runs: list[tuple[int, range]] = []
    for kind, group in groupby(kinds):
        start = runs[-1][1].stop if runs else 0
        runs.append((kind, range(start, start + len(list(group)))))
    while len(runs) > 1 and min(len(part) for _, part in runs) < least:
        short = min(range(len(runs)), key=lambda i: len(runs[i][1]))
        beside = [i for i in (short - 1, short + 1) if 0 <= i < len(runs)]
        kind = runs[max(beside, key=lambda i: len(runs[i][1]))][0]
        runs[short] = (kind, runs[short][1])
        runs = _joined(runs)
    return runs


def _joined(runs: list[tuple[int, range]]) -> list[tuple[int, range]]:
    found: list[tuple[int, range]] = []
    for kind, part in runs:
        if found and found[-1][0] == kind:
            found[-1] = (kind, range(found[-1][1].start, part.stop))
        else:
            found.append((kind, part))
    return found


def _segment(kind: int, part: range, at: Floats, smooth: Floats, speed: Floats, critical: float) -> Segment:
    end = min(part.stop, len(at) - 1)
    fast = float(np.median(np.abs(speed[part.start : part.stop])))
    margin = (fast - critical) / (fast + critical) if fast + critical > 0 else -1.0
    return Segment(
        kind=KINDS[kind],
        start=int(at[part.start]),
        stop=int(at[end]),
        change=float(smooth[end] - smooth[part.start]),
        margin=margin if kind else -margin,
    )
