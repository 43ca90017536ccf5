"""Fewer numbers that look the same: what a report keeps of long series, and how a budget is shared among outputs.

Curves keep, of each stretch of steps, the lowest and the highest value and the steps where they are, so no spike is
lost and every number drawn is one that was stored. Outputs with two and more dimensions keep whole steps, evenly
spaced, so that a map at a step is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Indices = NDArray[np.int64]

FEWEST_POINTS = 16
"""Points that a thinned curve has at least."""


@dataclass(frozen=True, eq=False)
class Thinned:
    """Values kept of `[step, cell]`: whole steps `[kept, cell]`, or per cell `[cell, point]` with `index` alike.

    `index` numbers the steps: `[kept]` or `[cell, point]`.
    """

    values: Array
    index: Indices

    @property
    def by_cell(self) -> bool:
        """Whether each cell has steps of its own."""
        return self.index.ndim == 2


def shares(wanted: Sequence[int], budget: int) -> list[int]:
    """Return how many values each output may keep: what it wants where that is little, an equal share of the rest.

    >>> shares([10, 100, 1000], 210)
    [10, 100, 100]
    """
    left, given = budget, [0] * len(wanted)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    for rank, i in enumerate(order):
        given[i] = min(wanted[i], max(0, left) // (len(order) - rank))
        left -= given[i]
    return given


def thinned(values: Array, most: int, *, curves: bool) -> Thinned | None:
    """Return at most about `most` of the values `[step, cell]`; None when not even one step fits.

    With `curves`, cells are thinned one by one, keeping extremes; else whole steps are left out.
    """
    steps, cells = values.shape
    if values.size <= most or not values.size:
        return Thinned(values, np.arange(steps))
    if curves and most // cells >= FEWEST_POINTS:
        index = extremes(values, (most // cells - 2) // 2)
        return Thinned(np.take_along_axis(values, index.T, axis=0).T.copy(), index)
    kept = min(steps, most // cells)
    if not kept:
        return None
    index = np.unique(np.linspace(steps - 1, 0, kept).round().astype(np.int64))
    return Thinned(values[index], index)


def extremes(values: Array, stretches: int) -> Indices:
    """Return the steps `[cell, 2 * stretches + 2]`, ascending, of the first, the last and each stretch's extremes."""
    steps = len(values)
    edges = np.linspace(0, steps, stretches + 1).astype(np.int64)
    low, high = np.where(np.isnan(values), np.inf, values), np.where(np.isnan(values), -np.inf, values)
    found = [np.zeros(values.shape[1], dtype=np.int64), np.full(values.shape[1], steps - 1)]
    for start, stop in pairwise(edges.tolist()):
        found.append(start + low[start:stop].argmin(axis=0))
        found.append(start + high[start:stop].argmax(axis=0))
    return np.sort(np.stack(found, axis=1), axis=1)
