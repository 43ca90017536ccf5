"""Inner products of weights with themselves and with their changes, for a block of checkpoints at once.

With W_t a weight at step t, W_0 at the first, W_p and W_q at the two checkpoints before t. Differences are taken before
squares, in float64, and sums run in float64 over chunks that stay in the cache. Each checkpoint is converted once
however many steps of a block refer to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ckpt_tools import BatchView, View

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

CHUNK = 1 << 12
"""Entries of each checkpoint's weight that are held in float64 at once."""

NOW, FIRST, BEFORE, MOVED, UPDATE, UPDATE_BEFORE, WAY, NOW_FIRST, TURN, UPDATE_WAY = range(10)
"""Squared norms of W_t, W_0, W_p, W_t - W_0, W_t - W_p, W_p - W_q, W_p - W_0; products of W_t and W_0, of both updates,
and of the update W_t - W_p with the way W_p - W_0."""


@dataclass(frozen=True)
class Places:
    """Where the checkpoints of each step of a block lie among some rows: `now`, `before` and `earlier` `[step]`."""

    now: Ints
    first: int
    before: Ints
    earlier: Ints

    @cached_property
    def changes(self) -> Changes:
        """Which differences of successive checkpoints are needed."""
        return Changes(self)

    def among(self, chosen: NDArray[np.bool_]) -> tuple[Ints, Places]:
        """Return the rows that the chosen steps need, and the places of those steps among them."""
        if chosen.all():
            return np.arange(1 + max(self.first, *(int(x.max()) for x in (self.now, self.before, self.earlier)))), self
        kept = [place[chosen] for place in (self.now, self.before, self.earlier)]
        rows = np.unique(np.concatenate([*kept, [self.first]]))
        now, before, earlier = (np.searchsorted(rows, place) for place in kept)
        return rows, Places(now, int(np.searchsorted(rows, self.first)), before, earlier)


def window(view: BatchView, *, turning: bool) -> tuple[list[View], Places]:
    """Return every checkpoint that a block refers to, once and in order of steps, and where each lies.

    Without `turning` the checkpoint before the previous one is left alone: the previous one stands for it.
    """
    kinds = ("first", "previous", "before_previous" if turning else "previous")
    present = list(view)
    blocks = [present, *([one.references[kind] for one in present] for kind in kinds)]
    found = {one.step: one for views in blocks for one in views}
    steps = sorted(found)
    now, first, before, earlier = (np.searchsorted(steps, [one.step for one in views]) for views in blocks)
    return [found[step] for step in steps], Places(now, int(first[0]), before, earlier)


def motion(rows: Sequence[Array], at: Places) -> Floats:
    """Return the inner products `[10, step]` of one weight, given as its values at each row's checkpoint.

    >>> here = np.array([2])
    >>> found = motion([np.array([x]) for x in (1.0, 2.0, 3.0)], Places(here, 0, here - 1, here - 1))
    >>> float(found[MOVED, 0]), float(found[UPDATE_WAY, 0])
    (4.0, 1.0)
    """
    flat = [np.ravel(row) for row in rows]
    size, total = flat[0].size, np.zeros((10, len(at.now)))
    buffer = np.empty(len(flat) * min(CHUNK, size))
    with np.errstate(all="ignore"):
        for start in range(0, size, CHUNK):
            parts = [row[start : start + CHUNK] for row in flat]
            x = np.concatenate(parts, out=buffer[: len(parts) * parts[0].size])
            total += _products(x.reshape(len(parts), -1), at)
    return total


class Changes:
    """Which differences of successive checkpoints a block needs, each once."""

    def __init__(self, at: Places) -> None:
        latest = list(zip(at.now.tolist(), at.before.tolist(), strict=True))
        sooner = list(zip(at.before.tolist(), at.earlier.tolist(), strict=True))
        pairs = sorted({*latest, *sooner})
        place = {pair: row for row, pair in enumerate(pairs)}
        self._later, self._sooner = (_taken(np.array(side)) for side in zip(*pairs, strict=True))
        self.now = _taken(np.array([place[pair] for pair in latest]))
        self.before = _taken(np.array([place[pair] for pair in sooner]))

    def of(self, x: Floats) -> Floats:
        return np.asarray(x[self._later] - x[self._sooner])


def _products(x: Floats, at: Places) -> Floats:
    """Return the inner products `[10, step]` of rows `x [row, n]`."""
    changes = at.changes
    update, way = changes.of(x), x - x[at.first]
    squares, moved, updates = (_dots(y, y) for y in (x, way, update))
    latest = update[changes.now]
    return np.array(
        [
            squares[at.now],
            np.broadcast_to(squares[at.first], at.now.shape),
            squares[at.before],
            moved[at.now],
            updates[changes.now],
            updates[changes.before],
            moved[at.before],
            _dots(x, x[[at.first]])[at.now],
            _dots(latest, update[changes.before]),
            _dots(latest, way[_taken(at.before)]),
        ]
    )


def _dots(a: Floats, b: Floats) -> Floats:
    """Return the inner products `[row]` of rows `[row, n]`; BLAS takes half the time of `einsum`."""
    return np.asarray(np.matmul(a[:, None, :], b[:, :, None])[:, 0, 0])


def _taken(index: Ints) -> slice | Ints:
    """Return a slice for consecutive rows, which copies nothing."""
    consecutive = bool((np.diff(index) == 1).all()) and index.size > 0
    return slice(int(index[0]), int(index[-1]) + 1) if consecutive else index
