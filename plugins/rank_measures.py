"""Ranks and norms of a matrix as functions of its singular values.

All take singular values along the last axis, in any order, and reduce that axis. A zero matrix has rank 0 and norm 0 by
every measure; zero singular values contribute nothing. A spectrum with a NaN has NaN everywhere, and -1 as its
numerical rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]


def effective_rank(s: Floats) -> Floats:
    """Return the effective rank (Roy & Vetterli 2007) `[...]` of singular values `[..., k]`: between 1 and k, or 0.

    >>> float(effective_rank(np.array([2.0, 2.0, 0.0])).round(12))
    2.0
    """
    return _entropy_rank(_per_largest(s))


def energy_entropy_rank(s: Floats) -> Floats:
    """Return the exponential of the entropy of s^2 / sum(s^2) `[...]`: between 1 and k, or 0.

    >>> s = np.array([3.0, 1.0])
    >>> bool(energy_entropy_rank(s) < effective_rank(s))
    True
    """
    return _entropy_rank(_per_largest(s) ** 2)


def stable_rank(s: Floats) -> Floats:
    """Return the squared Frobenius norm over the squared spectral norm `[...]`: between 1 and k, or 0.

    >>> float(stable_rank(np.array([2.0, 1.0, 1.0])))
    1.5
    """
    return np.asarray((_per_largest(s) ** 2).sum(axis=-1))


def participation_ratio(s: Floats) -> Floats:
    """Return (sum s^2)^2 / sum(s^4) `[...]`: between 1 and k, or 0.

    >>> float(participation_ratio(np.array([1.0, 1.0, 1.0, 0.0])))
    3.0
    """
    energy = _per_largest(s) ** 2
    return ratio(np.asarray(energy.sum(axis=-1)) ** 2, np.asarray((energy**2).sum(axis=-1)))


def numerical_rank(s: Floats, tau: float) -> NDArray[np.int64]:
    """Return how many singular values exceed `tau` times the largest `[...]`; -1 where one is NaN.

    >>> int(numerical_rank(np.array([1.0, 1e-2, 1e-4]), tau=1e-3))
    2
    """
    top = spectral_norm(s)
    return np.where(np.isnan(top), -1, (s > tau * top[..., None]).sum(axis=-1))


def nuclear_norm(s: Floats) -> Floats:
    """Return the sum of the singular values `[...]`, in units of the weights.

    >>> float(nuclear_norm(np.array([3.0, 4.0])))
    7.0
    """
    return np.asarray(s.sum(axis=-1))


def frobenius_norm(s: Floats) -> Floats:
    """Return the root of the sum of squares `[...]`, in units of the weights.

    >>> float(frobenius_norm(np.array([3.0, 4.0])))
    5.0
    """
    return np.asarray(spectral_norm(s) * np.sqrt(stable_rank(s)))


def spectral_norm(s: Floats) -> Floats:
    """Return the largest singular value `[...]`, in units of the weights; 0 when there is none.

    >>> float(spectral_norm(np.array([3.0, 4.0])))
    4.0
    """
    return np.asarray(np.max(s, axis=-1, initial=0.0))


def turns(steps: Sequence[int], ranks: Floats) -> tuple[float | None, int | None, int | None]:
    """Return the lowest rank, the step at which nine tenths of the way down to it are gone, and the one of regrowth.

    A collapse at least halves the first rank; regrowth is one and a half times the lowest. None for what is not there.

    >>> turns([0, 10, 20, 30], np.array([8.0, 1.2, 1.0, 2.0]))
    (1.0, 10, 30)
    """
    known = np.flatnonzero(np.isfinite(ranks))
    if not len(known):
        return None, None, None
    values = np.asarray(ranks)[known]
    first, at = values[0], int(values.argmin())
    lowest = float(values[at])
    if lowest > first / 2:
        return lowest, None, None
    down = int((values <= lowest + 0.1 * (first - lowest)).argmax())
    grown = np.flatnonzero(values[at:] >= 1.5 * lowest)
    return lowest, int(steps[known[down]]), int(steps[known[at + grown[0]]]) if lowest > 0 and len(grown) else None


def ratio(above: Floats, below: Floats) -> Floats:
    """Return above / below, and 0 where below is 0."""
    shape = np.broadcast_shapes(above.shape, below.shape)
    return np.asarray(np.divide(above, below, out=np.zeros(shape), where=below != 0))


def _per_largest(s: Floats) -> Floats:
    """Return s / max(s): powers then neither overflow nor vanish."""
    return ratio(s, spectral_norm(s)[..., None])


def _entropy_rank(weights: Floats) -> Floats:
    total = weights.sum(axis=-1, keepdims=True)
    p = ratio(weights, total)
    entropy = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1)
    return np.where(total[..., 0] == 0, 0.0, np.exp(entropy))
