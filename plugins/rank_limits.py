"""Where ranks go along a trajectory, and the product of unembedding and embedding.

With W of singular values s_1 >= s_2 >= ... the normalized matrix W / ||W||_F has singular values s_i / ||W||_F, whose
squares sum to 1. Training from a small initialization drives its direction to a matrix of low rank (arXiv 2510.06954):

- limit rank, rank(lim W / ||W||_F): how many s_i / ||W||_F exceed a threshold at the last step;
- limit change: how far any of them still moved over the last tenth of the checkpoints. Where that is not small beside
  the threshold, no limit is in sight and the limit rank is only the rank at the end.

A singular value of the product U E^T of unembedding and embedding `[token, token]` says how strongly a direction of
input tokens is passed on to output tokens by the residual stream alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ckpt_tools import Spectrum, product_singular_values

if TYPE_CHECKING:
    from ckpt_tools import BatchView, Series

Floats = NDArray[np.float64]

EMBEDDING = "unembed.embed"
_LIMITS = ("singular_values", "frobenius_norm")
_BLOCK = 64
MEASURES = ("effective_rank", "stable_rank", "participation_ratio", "nuclear_norm", "frobenius_norm", "spectral_norm")


def normalized(values: Floats, norm: Floats) -> Floats:
    """Return s_i / ||W||_F `[..., k]` of singular values `[..., k]` and Frobenius norms `[...]`; NaN for zero matrices.

    >>> normalized(np.array([3.0, 4.0]), np.array(5.0)).tolist()
    [0.6, 0.8]
    """
    below = np.asarray(norm)[..., None]
    return np.asarray(np.divide(values, below, out=np.full(np.shape(values), np.nan), where=below != 0))


def limit_rank(values: Floats, norm: Floats, threshold: float) -> NDArray[np.int64]:
    """Return how many of the leading `values [..., k]` of W / ||W||_F exceed a threshold; -1 where it cannot be told.

    That is a zero or broken matrix, or one all of whose k values exceed it though smaller ones may follow: the squares
    of all singular values sum to ||W||_F^2, which says whether there are more.

    >>> limit_rank(np.array([[2.0, 1.0, 1e-3]]), np.array([5**0.5]), 0.05).tolist()
    [2]
    """
    unit = normalized(values, norm)
    count = (unit > threshold).sum(axis=-1)
    rest = 1 - np.nansum(unit**2, axis=-1)
    unseen = (count == np.isfinite(values).sum(axis=-1)) & (rest > threshold**2)
    return np.where(unseen | np.isnan(unit[..., 0]), -1, count)


def limit_change(unit: Floats, end: Floats) -> Floats:
    """Return how far any value of `[step, matrix, k]` is from its end `[matrix, k]`, at most `[matrix]`."""
    moved = np.abs(unit - end)
    return np.asarray(np.where(np.isnan(moved), -np.inf, moved).max(axis=(0, 2), initial=-np.inf))


def trajectory_facts(series: Series, threshold: float) -> Mapping[str, Any]:
    """Return limit rank, limit change and growth (last over first value) of every measure, by matrix."""
    names, count = series.labels("matrix"), len(series)
    (values,), (norm,) = (series.part(name, count - 1, count) for name in _LIMITS)
    change = np.full(len(names), -np.inf)
    # Over all steps the singular values may be more than everything else an analysis holds.
    for at in range((9 * (count - 1)) // 10, count, _BLOCK):
        unit = normalized(*(series.part(name, at, min(at + _BLOCK, count)) for name in _LIMITS))
        change = np.maximum(change, limit_change(unit, normalized(values, norm)))
    found = {
        "limit_rank": limit_rank(values, norm, threshold),
        "limit_change": np.where(np.isinf(change), np.nan, change),
        **{f"{name}_growth": _growth(series, name) for name in MEASURES},
    }
    return {key: dict(zip(names, column.tolist(), strict=True)) for key, column in found.items()}


def _growth(series: Series, name: str) -> Floats:
    """Return the last over the first value of each matrix; NaN where the first is 0."""
    first, last = (series.part(name, at, at + 1)[0] for at in (0, len(series) - 1))
    return np.asarray(np.divide(last, first, out=np.full(first.shape, np.nan), where=first != 0))


def embedding_product(view: BatchView) -> list[tuple[str, Spectrum, str]]:
    """Return (label, spectrum `[step, k]`, stored dtype) of unembedding times embedding; none without their roles.

    A tied unembedding is the embedding itself. Both matrices are in memory at a time.
    """
    known = set(view.matrix_names())
    if "embed" not in known:
        return []
    last = "unembed" if "unembed" in known else "embed"
    matrices = view.matrices()
    left, right = matrices[last], matrices["embed"]
    if left.shape[-1] != right.shape[-1]:
        return []
    dtypes = dict.fromkeys((view.info(last).dtype, view.info("embed").dtype))
    return [(EMBEDDING, product_singular_values(left, right.swapaxes(-1, -2)), "+".join(dtypes))]
