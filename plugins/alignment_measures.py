"""How alike two groups of representations are: X `[n, p]` and Y `[n, q]`, row i of one paired with row i of the other.

- CKA (Kornblith et al., ICML 2019): HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), K = X X^T and L = Y Y^T. The biased HSIC
  is tr(K H L H) with H = I - 11^T/n; it approaches 1 for unrelated groups when n is small against p and q. The unbiased
  one (Song et al., JMLR 2012; used so by Nguyen et al., ICLR 2021) has K~, L~ with the diagonals set to zero:

      HSIC_1 = [tr(K~ L~) + 1'K~1 1'L~1 / ((n-1)(n-2)) - 2 / (n-2) 1'K~L~1] / (n (n-3))

  Its CKA is around 0 for unrelated groups and may be negative. Both are blind to rotation, shift and scale of a group.
- orthogonal Procrustes distance of centred groups of Frobenius norm 1: min_R ||X R - Y||_F = sqrt(2 - 2 ||X^T Y||_*),
  0 for groups that differ by rotation, shift and scale, sqrt(2) for groups without relation.
- mean cosine of paired rows, and of all rows that are not pairs: sensitive to rotation, as a model's own layers are.
- rank of a token in logits: how many tokens score higher (logit lens: logits of an intermediate layer).

What is undefined is NaN: groups without spread, rows of zeros, fewer rows than a formula needs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]


def cka(x: Array, y: Array) -> float:
    """Return the linear CKA of two groups, between 0 and 1; NaN below 2 rows or without spread.

    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> round(cka(x, 3 * x[:, ::-1] + 5), 12)
    1.0
    """
    x, y = _centred(x), _centred(y)
    return _ratio(_square_sum(x.T @ y), np.sqrt(_square_sum(x.T @ x) * _square_sum(y.T @ y)))


def cka_debiased(x: Array, y: Array) -> float:
    """Return the debiased linear CKA of two groups, at most about 1; NaN below 4 rows or without spread."""
    x, y = _centred(x), _centred(y)
    if len(x) < 4:
        return float("nan")
    k, m = x @ x.T, y @ y.T
    both = hsic_unbiased(k, k) * hsic_unbiased(m, m)
    return _ratio(hsic_unbiased(k, m), np.sqrt(both)) if both > 0 else float("nan")


def hsic_unbiased(k: Array, m: Array) -> float:
    """Return HSIC_1 of two kernel matrices `[n, n]`, n at least 4; its expectation is that of the population."""
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    n, by_k, by_m = len(k), k.sum(0), m.sum(0)
    total = (k * m).sum() + by_k.sum() * by_m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (by_k @ by_m)
    return float(total / (n * (n - 3)))


def procrustes(x: Array, y: Array) -> float:
    """Return the orthogonal Procrustes distance of two groups, between 0 and sqrt(2); NaN without spread."""
    x, y = _centred(x), _centred(y)
    scale = np.sqrt(_square_sum(x) * _square_sum(y))
    if not (np.isfinite(scale) and scale > 0):
        return float("nan")
    return float(np.sqrt(max(0.0, 2 - 2 * np.linalg.svd(x.T @ y, compute_uv=False).sum() / scale)))


def mean_cosine(x: Array, y: Array) -> float:
    """Return the mean cosine of paired rows; NaN where a row is zero.

    >>> mean_cosine(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[2.0, 0.0], [0.0, -1.0]]))
    0.0
    """
    return float((_unit(x) * _unit(y)).sum(1).mean()) if len(x) else float("nan")


def mismatched_cosine(x: Array, y: Array) -> float:
    """Return the mean cosine of all rows that are not pairs; NaN below 2 rows or where a row is zero."""
    x, y = _unit(x), _unit(y)
    if len(x) < 2:
        return float("nan")
    return float((x.sum(0) @ y.sum(0) - (x * y).sum()) / (len(x) * (len(x) - 1)))


def logit_lens_rank(logits: Array, tokens: Array) -> Floats:
    """Return how many tokens score higher than `tokens` `[n]` in logits `[n, v]`: 0 is the top; NaN where one is NaN.

    >>> logit_lens_rank(np.array([[0.1, 0.9, 0.5], [3.0, 2.0, 1.0]]), np.array([2, 0])).tolist()
    [1.0, 0.0]
    """
    own = np.take_along_axis(logits, np.asarray(tokens)[:, None], axis=1)
    return np.where(np.isnan(logits).any(1), np.nan, (logits > own).sum(1))


def _centred(x: Array) -> Floats:
    """Return x less its mean; columns that are constant but for rounding of the mean are exactly zero."""
    x = np.asarray(x, dtype=np.float64)
    if not len(x):
        return x
    moved = x - x.mean(0)
    varies = np.abs(moved).max(0) > 16 * np.finfo(np.float64).eps * np.abs(x).max(0)
    return np.where(varies | np.isnan(moved).any(0), moved, 0.0)


def _unit(x: Array) -> Floats:
    x = np.asarray(x, dtype=np.float64)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    unit: Floats = np.divide(x, norm, out=np.full_like(x, np.nan), where=norm > 0)
    return unit


def _square_sum(x: Floats) -> float:
    return float(np.square(x).sum())


def _ratio(above: float, below: float) -> float:
    return float(above / below) if np.isfinite(below) and below > 0 else float("nan")
