"""Distances between the checkpoints of a trajectory, from samples of their tensors.

The relative distance of a tensor w between checkpoints i and j is

    d(i, j) = |w_i - w_j| / sqrt((|w_i|^2 + |w_j|^2) / 2),

0 for equal and sqrt(2) for unrelated ones of equal norm. The distance of two checkpoints is the median over tensors,
which a single odd tensor does not move.

What a checkpoint retains of another is the regression of w_j on w_i, tensors weighted by their precision:

    b(i, j) = sum_t u_t b_t / sum_t u_t,   b_t = <w_i, w_j> / <w_i, w_i>,   u_t = n |w_i|^2 / |w_j|^2,

with mean-free w and n entries. Training adds to weights, so b stays near 1 even when they grow a thousandfold, and
decays only with weight decay; of two independent initialisations b is 0 with standard error (sum_t u_t)^(-1/2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from .sample import Entries

Floats = NDArray[np.float64]
Key = tuple[str, tuple[int, ...]]

MOST_TENSORS = 64
SIGMAS = 4.0
RELATED = 0.5
_SMALL = 16


@dataclass(frozen=True)
class Geometry:
    """Samples `[step, entry]` of the tensors that change, in model order.

    `matrices` are the positions of those of two and more dimensions, `main` of those that stand for the whole.
    """

    steps: list[int]
    names: list[str]
    samples: list[NDArray[np.float32]]
    matrices: list[int]
    main: list[int]

    def __len__(self) -> int:
        return len(self.steps)

    def distances(self, rows: Sequence[int], columns: Sequence[int] | None = None) -> Floats:
        """Return the distances between checkpoints at the given positions, `[row, column]`."""
        columns = rows if columns is None else columns
        if not self.main:
            return np.zeros((len(rows), len(columns)))
        return np.asarray(np.median([self.tensor(t, rows, columns) for t in self.main], axis=0))

    def tensor(self, index: int, rows: Sequence[int], columns: Sequence[int]) -> Floats:
        """Return the relative distances of one tensor, `[row, column]`."""
        a, b = (self.samples[index][list(p)].astype(np.float64) for p in (rows, columns))
        norms = 0.5 * (np.sum(a**2, 1)[:, None] + np.sum(b**2, 1)[None, :])
        # Centred on one checkpoint, small distances keep their digits.
        centre = a[:1].copy()
        a -= centre
        b -= centre
        squares = np.sum(a**2, 1)[:, None] + np.sum(b**2, 1)[None, :] - 2 * (a @ b.T)
        found: Floats = np.sqrt(np.maximum(squares, 0) / np.where(norms > 0, norms, 1))
        return found

    def along(self, positions: Sequence[int], lag: int = 1) -> Floats:
        """Return relative distances of all tensors between positions `lag` apart in the list, `[tensor, pair]`."""
        before, after = list(positions[:-lag]), list(positions[lag:])
        found = np.empty((len(self.samples), max(0, len(before))))
        for t, sample in enumerate(self.samples):
            a, b = sample[before].astype(np.float64), sample[after].astype(np.float64)
            norms = 0.5 * (np.sum(a**2, 1) + np.sum(b**2, 1))
            found[t] = np.sqrt(np.sum((a - b) ** 2, 1) / np.where(norms > 0, norms, 1))
        return found

    def related(self, i: int, j: int) -> float:
        """Return how much of the one the other retains, in either direction, at the upper end of the error.

        Both directions are looked at since the weights of a late checkpoint are no part of an early, smaller one.
        """
        found = 0.0
        for one, other in ((i, j), (j, i)):
            value, error = self.retained(one, other)
            found = max(found, abs(value) + SIGMAS * error)
            if found >= RELATED:
                break
        return found

    def retained(self, i: int, j: int) -> tuple[float, float]:
        """Return what the checkpoint at `j` retains of the one at `i`, and its standard error if nothing."""
        top, weight = 0.0, 0.0
        for index in self.main:
            a, b = (self.samples[index][p].astype(np.float64) for p in (i, j))
            a -= a.mean()
            b -= b.mean()
            own, other = float(a @ a), float(b @ b)
            if own > 0 and other > 0:
                u = len(a) * own / other
                top, weight = top + u * float(a @ b) / own, weight + u
        return (top / weight, weight**-0.5) if weight else (1.0, np.inf)


def build(steps: Sequence[int], seen: Sequence[dict[Key, Entries]]) -> Geometry:
    """Return the geometry of the checkpoints that have the tensors which most have, all finite, and which change.

    `seen` is emptied on the way, so that samples are not in memory twice.
    """
    counts: dict[Key, int] = {}
    for entries in seen:
        for key in entries:
            counts[key] = counts.get(key, 0) + 1
    common = [key for key, count in counts.items() if 2 * count >= len(seen)]
    finite = [{key for key in common if key in e and np.isfinite(e[key]).all()} for e in seen]
    kept = [at for at, keys in enumerate(finite) if 2 * len(keys) > len(common) and all(k in seen[at] for k in common)]
    usable = [key for key in common if all(key in finite[at] for at in kept)]
    stacks = {key: np.stack([seen[at].pop(key) for at in kept]) for key in usable} if kept else {}
    moving = {key: stack for key, stack in stacks.items() if (stack != stack[0]).any()}
    large = [i for i, (_, shape) in enumerate(moving) if len(shape) > 1 and prod(shape) >= _SMALL]
    main = _spread(large or list(range(len(moving))))
    return Geometry([steps[at] for at in kept], [k[0] for k in moving], list(moving.values()), large, main)


def _spread(positions: list[int]) -> list[int]:
    """Return as many as are enough, evenly spread over the model."""
    if len(positions) <= MOST_TENSORS:
        return positions
    return [positions[i] for i in np.linspace(0, len(positions) - 1, MOST_TENSORS).astype(int)]
