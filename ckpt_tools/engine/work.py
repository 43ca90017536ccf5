"""How much work a matrix is, relative to others: what progress, splitting and estimates go by."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod


def cost(shape: Sequence[int]) -> float:
    """Return the multiplications of a spectrum, m n min(m, n), and at least the entries read."""
    return float(prod(shape) * (min(shape) + 64)) if shape else 1.0
