"""A few entries of every tensor, the same ones at every step, from one pass over its bytes.

Entries are drawn without replacement by a generator seeded with the tensor's name and shape, so two calls on two
machines keep the same ones. Distances between samples estimate those between tensors: with k entries of a tensor whose
changes are of similar size everywhere, the relative error is about sqrt(1 / 2k).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint, TensorInfo

Entries = NDArray[np.float32]

BLOCK_BYTES = 16 << 20
"""Bytes of a tensor that are in memory at once."""
PEEK_BYTES = 16 << 10
PEEKS = 4
LEAST, MOST = 64, 1 << 16
ZEROS = "0" * 64


@dataclass(frozen=True)
class Glance:
    """What reading a tensor gave: a digest, entries (None for integers), how many are not finite, and bytes read."""

    digest: str
    entries: Entries | None
    nonfinite: int


def share(checkpoint: Checkpoint, budget: int) -> int:
    """Return how many entries per tensor keep a checkpoint within a budget of entries."""
    return min(MOST, max(LEAST, budget // max(1, len(checkpoint.tensors))))


def read_whole(checkpoint: Checkpoint, info: TensorInfo, count: int) -> Glance:
    """Read a tensor block by block; the digest is that of its stored bytes."""
    floats = _is_float(info)
    positions = _positions(info.name, info.shape, count) if floats else np.empty(0, np.int64)
    kept, bad, at = [], 0, 0
    for block in _blocks(checkpoint, info):
        flat = block.reshape(-1)
        if floats:
            inside = positions[np.searchsorted(positions, at) : np.searchsorted(positions, at + flat.size)]
            kept.append(flat[inside - at].astype(np.float32))
            bad += flat.size - int(np.count_nonzero(np.isfinite(flat)))
        at += flat.size
    entries = np.concatenate(kept) if kept else None
    return Glance(checkpoint.digest(info.name), entries, bad)


def peek(checkpoint: Checkpoint, info: TensorInfo, count: int) -> Glance:
    """Read a few ranges of rows of a large tensor (a small one whole); the digest is that of these rows only."""
    rows = _rows(info)
    parts = [checkpoint.read(info.name, r) for r in rows] if rows else [checkpoint.read(info.name)]
    flat = np.concatenate([part.reshape(-1) for part in parts])
    # Zeros are told apart: a tensor may come back to them.
    digest = hashlib.sha256(flat.view(np.uint8).data).hexdigest() if flat.any() else ZEROS
    if not _is_float(info):
        return Glance(digest, None, 0)
    bad = flat.size - int(np.count_nonzero(np.isfinite(flat)))
    chosen = flat[_positions(info.name, flat.shape, count)]
    return Glance(digest, chosen.astype(np.float32), bad)


def _is_float(info: TensorInfo) -> bool:
    return info.dtype.startswith(("float", "bfloat"))


def _blocks(checkpoint: Checkpoint, info: TensorInfo) -> Iterator[NDArray[np.generic]]:
    row = 8 * prod(info.shape[1:])
    if not info.shape or row * info.shape[0] <= BLOCK_BYTES:
        yield checkpoint.read(info.name)
        return
    step = max(1, BLOCK_BYTES // row)
    for start in range(0, info.shape[0], step):
        yield checkpoint.read(info.name, slice(start, min(start + step, info.shape[0])))


def _rows(info: TensorInfo) -> list[slice]:
    """Return the seeded ranges of rows to peek at; none for a tensor that is small enough to read."""
    if not info.shape or info.nbytes <= PEEKS * PEEK_BYTES or info.shape[0] < 2 * PEEKS:
        return []
    length = min(max(1, PEEK_BYTES * info.shape[0] // info.nbytes), info.shape[0] // PEEKS)
    stretch, rng = info.shape[0] // PEEKS, _rng(info.name, info.shape)
    starts = [i * stretch + int(rng.integers(stretch - length + 1)) for i in range(PEEKS)]
    return [slice(start, start + length) for start in starts]


@lru_cache(maxsize=1 << 12)
def _positions(name: str, shape: tuple[int, ...], count: int) -> NDArray[np.int64]:
    """Return `count` distinct positions in a tensor, ascending: one from each of as many equal stretches."""
    size = prod(shape)
    if size <= count:
        return np.arange(size)
    edges = np.linspace(0, size, count + 1).astype(np.int64)
    return edges[:-1] + (_rng(name, shape).random(count) * np.diff(edges)).astype(np.int64)


def _rng(name: str, shape: tuple[int, ...]) -> np.random.Generator:
    seed = hashlib.sha256(f"{name}/{shape}".encode()).digest()
    return np.random.default_rng(int.from_bytes(seed[:8], "little"))
