"""Cosines D(u, v) = u.v / (|u| |v|) between all pairs of many vectors, without keeping the N x N matrix.

Products run in float32. A cosine of d terms is then off by about sqrt(d) 2^-24; Higham & Mary (SIAM J. Sci. Comput.
41, 2019) bound it by lambda sqrt(d) 2^-24 but for a probability 2 exp(-lambda^2 / 2). Every pair within `doubt(d)` of
the threshold (lambda = 16, to cover the norms as well) is decided again in float64 from the vectors as stored, so that
counts and clusters are those of float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Decide = Callable[[NDArray[np.intp], NDArray[np.intp]], Mask]

TILE = 1024
"""Rows and columns of one tile of the cosine matrix: 4 MiB in float32."""
BLOCK = 4 << 20
"""Most bytes of float64 made at once from vectors as stored."""
_UPPER = np.triu(np.ones((TILE, TILE), dtype=bool), 1)


def doubt(d: int) -> float:
    """Return how far a float32 cosine of `d` terms may be from the true one."""
    return (16 * math.sqrt(d) + 4) * 2.0**-24


def unit_rows(vectors: Array, lengths: Floats) -> NDArray[np.float32]:
    """Return `vectors / lengths` in float32 `[..., n, d]`, laid out like `vectors`; rows of length 0 become zero."""
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    ordinary = float(inverse.max(initial=0.0)) < 1e12 and float(lengths.max(initial=0.0)) < 1e12
    if vectors.dtype == np.float32 and ordinary:
        return np.multiply(vectors, inverse.astype(np.float32)[..., None])
    return np.multiply(vectors, inverse[..., None]).astype(np.float32)


def exactly(vectors: Array, chosen: NDArray[np.intp], threshold: float, signed: bool) -> Decide:
    """Return a function that says in float64 whether rows `chosen[i]` and `chosen[j]` are beyond the threshold."""

    def decide(i: NDArray[np.intp], j: NDArray[np.intp]) -> Mask:
        out = np.empty(len(i), dtype=bool)
        step = max(1, BLOCK // (8 * max(1, vectors.shape[1])))
        for start in range(0, len(i), step):
            at = slice(start, start + step)
            out[at] = _beyond(vectors[chosen[i[at]]], vectors[chosen[j[at]]], threshold, signed)
        return out

    return decide


def _beyond(left: Array, right: Array, threshold: float, signed: bool) -> Mask:
    a, b = left.astype(np.float64), right.astype(np.float64)
    a /= np.abs(a).max(axis=1, keepdims=True)  # squares of tiny and huge vectors would leave the range
    b /= np.abs(b).max(axis=1, keepdims=True)
    cosine = np.einsum("ij,ij->i", a, b) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return np.asarray((cosine if signed else np.abs(cosine)) > threshold)


@dataclass
class Tile:
    """Cosines `[rows, columns]` of two blocks of vectors and which pairs exceed the threshold.

    On the diagonal (`rows == columns`) only pairs above the diagonal are edges. `edges` is None when there are none.
    """

    rows: slice
    columns: slice
    cosines: NDArray[np.float32]
    edges: Mask | None

    @property
    def diagonal(self) -> bool:
        """Whether both blocks are the same vectors."""
        return self.rows == self.columns


def tiles(
    u: NDArray[np.float32],
    threshold: float,
    signed: bool,
    decide: Decide,
    skip: Callable[[slice, slice], bool] = lambda rows, columns: False,
) -> Iterator[Tile]:
    """Yield the upper triangle of the cosine matrix of unit rows `u [n, d]`, tile by tile, but for those to `skip`.

    With `signed` off, `cosines` are absolute values. One tile is alive at a time: its buffers are used again.
    """
    n, band = len(u), doubt(u.shape[1])
    size = min(TILE, n)
    product, mask = np.empty((size, size), np.float32), np.empty((size, size), bool)
    for top in range(0, n, TILE):
        rows = slice(top, min(top + TILE, n))
        for left in range(top, n, TILE):
            columns = slice(left, min(left + TILE, n))
            if skip(rows, columns):
                continue
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            cosines = product.reshape(-1)[: shape[0] * shape[1]].reshape(shape)
            np.matmul(u[rows], u[columns].T, out=cosines)
            if not signed:
                np.abs(cosines, out=cosines)
            if top == left:
                np.fill_diagonal(cosines, 0.0)
            edges = mask.reshape(-1)[: cosines.size].reshape(shape)
            np.greater(cosines, np.float32(threshold - band), out=edges)
            tile = Tile(rows, columns, cosines, edges if edges.any() else None)
            _settle(tile, np.float32(threshold + band), decide)
            yield tile


def _settle(tile: Tile, sure: np.float32, decide: Decide) -> None:
    """Take edges on and below the diagonal away, and decide those too close to the threshold for float32."""
    if tile.edges is None:
        return
    if tile.diagonal:
        tile.edges &= _UPPER[: len(tile.edges), : len(tile.edges)]
    i, j = where(tile.edges & (tile.cosines <= sure))
    if len(i):
        tile.edges[i, j] = decide(i + tile.rows.start, j + tile.columns.start)


def where(mask: Mask) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of the true entries `[m, n]`; much faster than `np.nonzero` when they are few."""
    return np.divmod(np.flatnonzero(mask), mask.shape[1])


@dataclass
class Pairs:
    """What the cosines of b sets of vectors say, each field `[b]`; NaN for a set without a pair.

    `used` vectors each; mean |cos| and its standard deviation over vectors (`spread`), mean cos, share of pairs beyond
    the threshold, and the effective number of directions n^2 / sum_ij cos^2.
    """

    used: NDArray[np.intp]
    mean_abs: Floats
    spread: Floats
    mean: Floats
    share: Floats
    directions: Floats


def joined(parts: Sequence[Pairs]) -> Pairs:
    """Return the statistics of several lots of sets as those of one lot."""
    return Pairs(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Pairs)))


def pair_stats(sums: Floats, squares: Floats, above: Array, resultants: Array, keep: Mask) -> Pairs:
    """Return the statistics of b sets of vectors, of which `keep [b, n]` count.

    `sums [b, n]` adds |cos| and `squares [b]` cos^2 to the others, `above [b]` counts pairs beyond the threshold, and
    `resultants [b, d]` adds unit vectors.
    """
    n = np.count_nonzero(keep, axis=1)
    with np.errstate(all="ignore"):
        mean = sums.sum(axis=1) / np.where(n > 1, n * (n - 1.0), np.nan)
        around = np.where(keep, sums / (n[:, None] - 1.0) - mean[:, None], 0.0)
        total = np.einsum("bi,bi->b", resultants, resultants, dtype=np.float64)
        return Pairs(
            n,
            mean,
            np.sqrt(np.einsum("bi,bi->b", around, around) / (n - 1.0)),
            (total - n) / np.where(n > 1, n * (n - 1.0), np.nan),
            above / np.where(n > 1, n * (n - 1) / 2, np.nan),
            n * n / np.where(n > 0, n + squares, np.nan),
        )


class PairSums:
    """Adds up cosines tile by tile."""

    def __init__(self, n: int) -> None:
        self._abs, self._squares, self._above = np.zeros(n), 0.0, 0

    def add(self, tile: Tile, signed: bool) -> None:
        """Count one tile, both for its rows and for its columns."""
        size = np.abs(tile.cosines) if signed else tile.cosines
        ones = np.ones(max(size.shape), np.float32)
        self._abs[tile.rows] += size @ ones[: size.shape[1]]
        square = float(np.einsum("ij,ij->i", size, size).sum(dtype=np.float64))
        if not tile.diagonal:
            self._abs[tile.columns] += ones[: size.shape[0]] @ size
            square *= 2
        self._squares += square
        self._above += 0 if tile.edges is None else int(np.count_nonzero(tile.edges))

    def stats(self, u: NDArray[np.float32]) -> Pairs:
        """Return the statistics of all unit rows `u [n, d]` as one set."""
        resultant = u.sum(axis=0, dtype=np.float64)
        keep = np.ones((1, len(u)), dtype=bool)
        return pair_stats(self._abs[None], np.array([self._squares]), np.array([self._above]), resultant[None], keep)
