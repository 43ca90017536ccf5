"""Canonical shapes of stored arrays, and weights whose role nobody knows."""

from __future__ import annotations

import re
from math import prod

Axes = tuple[int, ...]
# Keras and flax call weights `kernel` and store them [..., in, out].
_KERNEL = re.compile(r"(.*[./])?(recurrent_)?kernel(:0)?")


def is_kernel(name: str) -> bool:
    """Return whether a tensor of this name is stored `[..., in, out]`."""
    return _KERNEL.fullmatch(name) is not None


def turned(shape: tuple[int, ...]) -> tuple[Axes, tuple[int, ...]]:
    """Return the axes that bring an array stored `[k..., in, out]` to `[out, in, k...]`, and its flat shape."""
    axes = (len(shape) - 1, len(shape) - 2, *range(len(shape) - 2))
    return axes, (shape[-1], prod(shape[:-1]))


def by_head(shape: tuple[int, ...], heads: str) -> tuple[Axes, tuple[int, ...]]:
    """Return axes and shape of a matrix stored per head as `[head, in, out]`; a bias `[head, out]` becomes a vector."""
    if len(shape) != 3:
        return (), (prod(shape),)
    count, inputs, outputs = shape
    return ((0, 2, 1), (count * outputs, inputs)) if heads == "out" else ((2, 0, 1), (outputs, count * inputs))


def flat(name: str, shape: tuple[int, ...]) -> tuple[Axes, tuple[int, ...]]:
    """Return axes and shape of an array as it lies: kernels `[out, in, k...]` become `[out, in*k...]`.

    Leading axes of length 1 of other parameters (`pos_embed [1, n, d]`) are dropped; axes then say so, since the first
    stored axis no longer counts rows.
    """
    if len(shape) < 3:
        return (), shape
    if name.endswith("weight"):
        return (), (shape[0], prod(shape[1:]))
    kept = shape
    while len(kept) > 1 and kept[0] == 1:
        kept = kept[1:]
    axes = tuple(range(len(shape))) if len(kept) < len(shape) else ()
    return axes, kept if len(kept) == 1 else (kept[0], prod(kept[1:]))


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts layer 2 before layer 10."""
    parts = re.split("([0-9]+)", name)
    return tuple((0, int(p), "") if k % 2 else (1, 0, p) for k, p in enumerate(parts) if p)
