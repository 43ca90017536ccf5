"""Which way neurons point: leading and given directions, and the order that makes condensation visible."""

from __future__ import annotations

import numpy as np

from .cosines import Array, Floats
from .vectors import norms

DENSE = 1024
"""Shorter side up to which a Gram matrix is decomposed; larger ones are iterated on."""


def leading_direction(vectors: Array) -> Floats:
    """Return the top right-singular vector `[d]` of rows `[n, d]`, of unit length; its sign is arbitrary but fixed.

    >>> leading_direction(np.array([[3.0, 0.0], [0.0, 1.0]])).tolist()
    [1.0, 0.0]
    """
    scale = norms(vectors).max(initial=0.0)
    if not np.isfinite(scale) or scale == 0:
        return np.full(vectors.shape[1], np.nan)
    n, d = vectors.shape
    if min(n, d) > DENSE:
        return _signed(_iterated(vectors / scale))
    scaled = np.asarray(vectors / scale, dtype=np.float64)
    if d <= n:
        return _signed(_top(scaled.T @ scaled))
    top = _top(scaled @ scaled.T) @ scaled
    return _signed(top / np.linalg.norm(top))


def _top(gram: Floats) -> Floats:
    from scipy.linalg import eigh

    last = len(gram) - 1
    return np.asarray(eigh(gram, subset_by_index=[last, last])[1][:, 0])


def _iterated(vectors: Array) -> Floats:
    from scipy.sparse.linalg import LinearOperator, eigsh

    d = vectors.shape[1]
    gram = LinearOperator((d, d), matvec=lambda v: vectors.T @ (vectors @ v.astype(vectors.dtype)), dtype=np.float64)
    start = vectors.sum(axis=0, dtype=np.float64) + 1e-3
    return np.asarray(eigsh(gram, k=1, v0=start, tol=1e-6)[1][:, 0])


def _signed(vector: Floats) -> Floats:
    return vector * (-1.0 if vector[np.abs(vector).argmax()] < 0 else 1.0)


def alignment(vectors: Array, lengths: Floats, direction: Floats) -> Floats:
    """Return |cos| `[n]` of rows `[n, d]` of norms `lengths` to a direction `[d]`; NaN where either is zero."""
    size = float(np.linalg.norm(direction))
    dots = np.abs((vectors @ direction.astype(vectors.dtype)).astype(np.float64))
    return np.asarray(np.divide(dots, lengths * size, out=np.full(len(vectors), np.nan), where=lengths * size > 0))


def heatmap_order(u: Array) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the permutation `[n]` that sorts unit rows `[n, d]` by the top eigenvector of their cosine matrix.

    Rows and columns of the cosine matrix in this order show condensation as blocks.
    """
    if len(u) < 2:
        return np.arange(len(u))
    return np.argsort(leading_direction(np.ascontiguousarray(u.T)), kind="stable")


def orientations(vectors: Array) -> Floats:
    """Return the angle `[n]` in radians of each neuron (w, b) of a one-dimensional input, rows `[n, 2]` or `[n, 1]`.

    The angle is sign(b) arccos(w / sqrt(w^2 + b^2)), pi for b = 0 > w: condensed neurons share one or two angles.
    """
    w = vectors[:, 0].astype(np.float64)
    return np.arctan2(vectors[:, 1].astype(np.float64) if vectors.shape[1] > 1 else np.zeros_like(w), w)
