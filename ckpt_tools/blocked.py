"""Tall matrices that come in blocks of rows, or in stacks: their Gram matrices in float64, a bounded part at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
Blocks = Callable[[], Iterable[Array]]

TILE_BYTES = 64 << 20
"""Most bytes of float64 copied from a matrix at once on the Gram and QR routes."""
CACHE_BYTES = 512 << 10
"""Bytes of float64 copied from a stack of small matrices at once."""


def gram(blocks: Blocks, shape: tuple[int, int]) -> Floats:
    """Return `A^T A` `[n, n]` of a tall matrix, accumulated tile by tile."""
    total: Floats | None = None
    with np.errstate(all="ignore"):
        for tile in tiles(blocks, shape, 1):
            part = tile.T @ tile
            total = part if total is None else np.add(total, part, out=total)
    return np.zeros((shape[1], shape[1])) if total is None else total


def grams(tall: Array) -> Floats:
    """Return `A^T A` `[..., n, n]` of every matrix of a stack, as many at once as fit in the cache."""
    m, n = tall.shape[-2:]
    flat = tall.reshape(-1, m, n)
    out = np.empty((len(flat), n, n))
    if 8 * m * n > TILE_BYTES:
        for i, matrix in enumerate(flat):
            out[i] = gram(lambda matrix=matrix: (matrix,), (m, n))  # type: ignore[misc]
        return out.reshape(*tall.shape[:-2], n, n)
    size = max(1, min(len(flat), CACHE_BYTES // (8 * m * n)))
    across = flat.strides[1] < flat.strides[2]  # a copy in the order of the original is four times faster
    scratch = np.empty((size, n, m)).swapaxes(1, 2) if across else np.empty((size, m, n))
    with np.errstate(all="ignore"):
        for i in range(0, len(flat), size):
            x = scratch[: len(flat) - i]
            np.copyto(x, flat[i : i + size])
            np.matmul(x.swapaxes(1, 2), x, out=out[i : i + size])
    return out.reshape(*tall.shape[:-2], n, n)


def tiles(blocks: Blocks, shape: tuple[int, int], least: int, widen: bool = True) -> Iterator[Array]:
    """Yield tiles of rows, in float64 or as they are: at least `least` rows where a block has them, else what fits."""
    rows = max(least, TILE_BYTES // (8 * shape[1]), 1)
    seen = 0
    for block in blocks():
        seen += len(block)
        for start in range(0, len(block), rows):
            tile = block[start : start + rows]
            yield tile.astype(np.float64, copy=False) if widen else tile
    if seen != shape[0]:
        raise ValueError(f"The blocks hold {seen} rows, but the matrix has {shape[0]}.")


def whole(blocks: Blocks, shape: tuple[int, int], dtype: type[np.float64] | None) -> Array:
    """Return all blocks as one array; each is copied at once, so that a reader may reuse its buffer."""
    whole: Array | None = None
    seen = 0
    for block in blocks():
        if block.shape == shape:
            return block if dtype is None else block.astype(dtype, copy=False)
        whole = np.empty(shape, dtype or block.dtype) if whole is None else whole
        whole[seen : seen + len(block)] = block
        seen += len(block)
    if whole is None or seen != shape[0]:
        raise ValueError(f"The blocks hold {seen} rows, but the matrix has {shape[0]}.")
    return whole
