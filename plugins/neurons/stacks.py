"""Pair statistics and clusters of many small sets of neurons at once: one product for a whole stack of matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .clustering import Ints, component_roots
from .cosines import Array, Floats, Mask, PairStats, doubt, exactly, unit_rows


@dataclass
class StackStats:
    """For b problems of n vectors: pair statistics, squared length of the sum of unit vectors `[b]`, roots `[b, n]` (-1
    left out), smallest cosine to a cluster's mean `[b]`."""

    pairs: list[PairStats]
    sums: Floats
    roots: Ints
    within: Floats


def scan_stack(vectors: Array, lengths: Floats, keep: Mask, threshold: float, *, signed: bool = False) -> StackStats:
    """Return the statistics of a stack of vectors `[b, n, d]` of norms `[b, n]`, of which `keep [b, n]` count.

    The same numbers as `scan` and `within_cosine` give one by one, in a fraction of the time for small n.
    """
    u = unit_rows(vectors, np.where(keep, lengths, 0.0))
    cosines = np.matmul(u, u.swapaxes(-1, -2))
    np.einsum("bii->bi", cosines)[:] = 0.0
    sizes = np.abs(cosines)
    edges = _edges(vectors, cosines if signed else sizes, threshold, signed)
    counts = np.array([np.count_nonzero(each) for each in edges])
    pairs = _pairs(sizes, counts // 2, keep)
    roots = np.broadcast_to(np.arange(keep.shape[1]), keep.shape).astype(np.int64)
    within = np.where(keep.any(axis=1), 1.0, np.nan)
    linked = slice(None) if counts.all() else np.flatnonzero(counts)
    if counts.any():
        mask = edges[linked]
        np.einsum("bii->bi", mask)[:] = True
        roots[linked] = component_roots(mask)
        within[linked] = _within(cosines[linked], roots[linked], signed)
    total = u.sum(axis=1, dtype=np.float64)
    return StackStats(pairs, np.einsum("bi,bi->b", total, total), np.where(keep, roots, -1), within)


def _edges(vectors: Array, cosines: NDArray[np.float32], threshold: float, signed: bool) -> Mask:
    band = doubt(vectors.shape[-1])
    edges = cosines > np.float32(threshold - band)
    if not edges.any():
        return edges
    b, i, j = np.unravel_index(np.flatnonzero(edges & (cosines <= np.float32(threshold + band))), edges.shape)
    for problem in np.unique(b):
        at = b == problem
        decide = exactly(vectors[problem], np.arange(vectors.shape[1]), threshold, signed)
        edges[problem, i[at], j[at]] = decide(i[at], j[at])
    return edges


def _pairs(sizes: NDArray[np.float32], above: NDArray[np.intp], keep: Mask) -> list[PairStats]:
    sums = sizes @ np.ones(sizes.shape[-1], np.float32)
    squares = np.einsum("bij,bij->bi", sizes, sizes).sum(axis=1, dtype=np.float64).tolist()
    kept = np.count_nonzero(keep, axis=1)
    means = sums / np.maximum(kept - 1, 1, dtype=np.float64)[:, None]
    whole = kept == keep.shape[1]
    return [PairStats(means[i] if whole[i] else means[i][keep[i]], squares[i], above[i]) for i in range(len(keep))]


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
