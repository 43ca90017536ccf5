"""Pair statistics and clusters of many small sets of neurons at once: one product for a whole stack of matrices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .clustering import Ints, component_roots
from .cosines import Array, Floats, Mask, Pairs, doubt, exactly, pair_stats, unit_rows

CHUNK = 1 << 16
"""Cosines held at once, if they are of more than one problem: the buffer then stays in the cache."""


def scan_stack(
    vectors: Array, lengths: Floats, keep: Mask, threshold: float, *, signed: bool = False
) -> tuple[Pairs, Ints, Floats]:
    """Return pair statistics `[b]`, roots `[b, n]` (-1 left out) and smallest cosine to a cluster's mean `[b]`.

    Of vectors `[b, n, d]` of norms `[b, n]` those count that `keep [b, n]`. The same numbers as `scan` and
    `within_cosine` give one by one, in a fraction of the time for small n.
    """
    u = unit_rows(vectors, np.where(keep, lengths, 0.0))
    b, n = keep.shape
    sums, squares, counts = np.zeros((b, n)), np.zeros(b), np.zeros(b, dtype=np.int64)
    roots = np.broadcast_to(np.arange(n), (b, n)).astype(np.int64)
    within = np.where(keep.any(axis=1), 1.0, np.nan)
    size, ones = max(1, min(b, CHUNK // max(1, n * n))), np.ones(n, np.float32)
    buffer = np.empty((size, n, n), np.float32)
    near = np.float32(threshold - doubt(vectors.shape[-1]))
    for start in range(0, b, size):
        at = slice(start, min(start + size, b))
        cosines = _cosines(u[at], buffer[: at.stop - start])
        some = signed and cosines.max(initial=0.0) > near
        np.abs(cosines, out=cosines)
        sums[at] = cosines @ ones
        squares[at] = _squares(cosines)
        if some or (not signed and cosines.max(initial=0.0) > near):
            joined = _joined(vectors[at], _cosines(u[at], cosines), threshold, signed)
            counts[at], roots[at], least = joined
            within[at] = np.where(counts[at] > 0, least, within[at])
    pairs = pair_stats(sums, squares, counts / 2, np.einsum("bij->bj", u), keep)
    return pairs, np.where(keep, roots, -1), within


def _cosines(u: NDArray[np.float32], out: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosines `[b, n, n]` of unit rows `[b, n, d]`, with a diagonal of zeros."""
    np.matmul(u, u.swapaxes(-1, -2), out=out)
    np.einsum("bii->bi", out)[:] = 0.0
    return out


def _squares(cosines: NDArray[np.float32]) -> Floats:
    """Return the sums of squares `[b]` of matrices `[b, n, n]`: of rows by BLAS, of those in float64."""
    b, n, _ = cosines.shape
    rows = np.matmul(cosines.reshape(b * n, 1, n), cosines.reshape(b * n, n, 1))
    return np.asarray(rows.reshape(b, n).sum(axis=1, dtype=np.float64))


def _joined(vectors: Array, cosines: NDArray[np.float32], threshold: float, signed: bool) -> tuple[Ints, Ints, Floats]:
    """Return numbers of edges `[b]` (both ways), roots `[b, n]` and smallest cosines to a cluster's mean `[b]`."""
    edges = _edges(vectors, cosines if signed else np.abs(cosines), threshold, signed)
    counts = np.array([np.count_nonzero(each) for each in edges])
    np.einsum("bii->bi", edges)[:] = True
    roots = component_roots(edges)
    return counts, roots, _within(cosines, roots, signed)


def _edges(vectors: Array, cosines: NDArray[np.float32], threshold: float, signed: bool) -> Mask:
    """Return which pairs are beyond the threshold `[b, n, n]`."""
    band = doubt(vectors.shape[-1])
    edges = cosines > np.float32(threshold - band)
    b, i, j = np.unravel_index(np.flatnonzero(edges & (cosines <= np.float32(threshold + band))), edges.shape)
    for problem in np.unique(b):
        at = b == problem
        decide = exactly(vectors[problem], np.arange(vectors.shape[1]), threshold, signed)
        edges[problem, i[at], j[at]] = decide(i[at], j[at])
    return edges


def _within(cosines: NDArray[np.float32], roots: Ints, signed: bool) -> Floats:
    """Return the smallest cosine `[b]` of a member to its cluster's mean, from cosines `[b, n, n]` without diagonal.

    With signs s that make members agree with the first (all +1 when signed), member i has s_i sum_j s_j cos_ij along
    its cluster's sum, whose squared length is the sum of that over members.
    """
    b, n = roots.shape
    opposed = np.take_along_axis(cosines, roots[:, :, None], axis=-1)[..., 0] < 0
    signs = np.where(opposed & (not signed), -1, 1).astype(np.float32)
    short = roots.astype(np.int16 if n <= np.iinfo(np.int16).max else np.int64)
    alike = cosines * (short[:, :, None] == short[:, None, :])
    along = 1.0 + signs * np.matmul(alike, signs[:, :, None])[..., 0].astype(np.float64)
    lines = (np.arange(b)[:, None] * n + roots).ravel()
    square = np.bincount(lines, along.ravel(), minlength=b * n)[lines].reshape(b, n)
    cosine = np.divide(along, np.sqrt(square, where=square > 0, out=np.ones_like(square)))
    return np.asarray(np.minimum(cosine, 1.0).min(axis=1))
