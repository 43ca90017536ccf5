"""Tensors that are no plain run of bytes: views of any strides, bytes in memory, and what must be unpacked first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..errors import FormatError
from .dtypes import DTYPES, ITEMSIZE
from .localfile import ByteFile
from .raw import Extent, RawSource
from .source import Array, as_bytes

MAX_DIMS = 64  # numpy's limit
_MAX_BYTES = 2**60
_MAX_EXPANSION = 64
_SPAN = 2**24


@dataclass(frozen=True, slots=True)
class StridedExtent(Extent):
    """An extent whose elements lie `strides` elements apart along each axis, in the file or in `memory`."""

    strides: tuple[int, ...] = ()
    memory: bytes | None = None

    def rows(self, first: int, count: int) -> StridedExtent:
        """Return the extent of `count` rows from `first`."""
        offset = self.offset + first * self.strides[0] * ITEMSIZE[self.dtype]
        return StridedExtent(self.dtype, (count, *self.shape[1:]), offset, self.strides, self.memory)

    @property
    def span(self) -> int:
        """Number of elements from the first to the last in storage, both included; 0 for an empty tensor."""
        if not prod(self.shape):
            return 0
        return 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))


@dataclass(frozen=True, slots=True)
class PackedExtent(Extent):
    """An extent whose elements must be unpacked; `dtype` is what that gives."""

    def fetch(self, first: int, out: Array) -> int:
        """Fill `out` (contiguous, any shape) with the elements from `first` on; return the bytes read for it."""
        raise NotImplementedError


class Piece(NamedTuple):
    """`nbytes` bytes at `offset` of a file."""

    file: ByteFile
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class JoinedExtent(PackedExtent):
    """A contiguous tensor that was cut into pieces, here in their order; together they have all its bytes."""

    pieces: tuple[Piece, ...] = ()

    def fetch(self, first: int, out: Array) -> int:
        """Fill `out` from the pieces that its range of bytes touches."""
        target = as_bytes(out)
        start, at = first * ITEMSIZE[self.dtype], 0
        for piece in self.pieces:
            low, high = max(start, at), min(start + len(target), at + piece.nbytes)
            if low < high:
                piece.file.read_into(piece.offset + low - at, target[low - start : high - start])
            at += piece.nbytes
        return len(target)


def place(
    where: str,
    dtype: str,
    shape: Sequence[Any],
    strides: Sequence[Any] | None,
    start: int,
    room: int,
    memory: bytes | None = None,
) -> Extent | str:
    """Return the extent of a tensor that begins at byte `start`, where `room` bytes are its storage's, or why not.

    `strides` are in elements (None: contiguous). A text is returned for what cannot be read; FormatError, naming
    `where`, is raised for what reaches outside its storage.
    """
    sizes = (*shape, *(strides or ()))
    if not all(type(n) is int and 0 <= n < _MAX_BYTES for n in sizes) or len(strides or shape) != len(shape):
        raise FormatError(f"{where} has a shape or strides that are no list of sizes.")
    if len(shape) > MAX_DIMS:
        return f"it has {len(shape)} dimensions, arrays have at most {MAX_DIMS}"
    if dtype not in DTYPES:
        return f"its dtype {dtype[:40]!r} cannot be read"
    if 16 * prod(n for n in shape if n) > _MAX_BYTES:
        return f"its shape {list(shape)[:8]} is too large for an array"
    # `strides or` would take the strides of a scalar, (), for none.
    view = StridedExtent(dtype, tuple(shape), start, c_strides(shape) if strides is None else tuple(strides), memory)
    if view.span * ITEMSIZE[dtype] > room:
        raise FormatError(f"{where} needs {view.span * ITEMSIZE[dtype]:,} bytes; its storage has {max(room, 0):,}.")
    if view.nbytes > max(_MAX_EXPANSION * room, 2**20):
        return f"its {view.nbytes:,} bytes are {room:,} stored ones repeated"
    contiguous = memory is None and _same_order(view)
    return Extent(dtype, view.shape, start) if contiguous else view


def c_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of a C-contiguous array."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _same_order(view: StridedExtent) -> bool:
    pairs = zip(view.shape, view.strides, c_strides(view.shape), strict=True)
    return not prod(view.shape) or all(n == 1 or stride == usual for n, stride, usual in pairs)


class StridedSource(RawSource):
    """A source of extents any of which may be strided, in memory or packed; `also_close` releases their files."""

    also_close: Callable[[], None] | None = None

    def close(self) -> None:
        """Release all file handles."""
        super().close()
        if self.also_close is not None:
            self.also_close()

    def stored_rows(self, name: str, first: int, count: int) -> Array:
        """Return rows of a tensor with elements as stored; the whole of a scalar."""
        extent = self.extents[name]
        out = np.empty((count, *extent.shape[1:]) if extent.shape else (), DTYPES[extent.dtype].stored)
        self._read(extent, first * prod(extent.shape[1:]), out)
        return out

    def _blocks(self, extent: Extent, first: int, count: int) -> Iterator[tuple[int, Array]]:
        if not isinstance(extent, StridedExtent):
            yield from super()._blocks(extent, first, count)
            return
        raw = np.empty(count, DTYPES[extent.dtype].stored)
        self._read(extent, first, raw)
        yield 0, raw

    def _read(self, extent: Extent, first: int, stored: Array) -> None:
        if isinstance(extent, PackedExtent):
            self.bytes_read += extent.fetch(first, stored) if stored.size else 0
        elif not isinstance(extent, StridedExtent):
            super()._read(extent, first, stored)
        elif stored.size and extent.shape:
            inner = prod(extent.shape[1:])
            self._gather(extent.rows(first // inner, stored.size // inner), stored.reshape(-1, *extent.shape[1:]))
        elif stored.size:
            self._gather(extent, stored.reshape(()))

    def _gather(self, extent: StridedExtent, out: Array) -> None:
        """Copy a view out of the shortest run of bytes that holds it; row by row where that run is mostly not its."""
        if len(out.shape) > 1 and extent.span > max(4 * out.size, _SPAN):
            for row in range(out.shape[0]):
                part = extent.rows(row, 1)
                view = StridedExtent(part.dtype, part.shape[1:], part.offset, part.strides[1:], part.memory)
                self._gather(view, out[row])
            return
        run = np.empty(extent.span, out.dtype)
        if extent.memory is not None:
            run = np.frombuffer(extent.memory, out.dtype, extent.span, extent.offset)
        else:
            self.file.read_into(self.base + extent.offset, as_bytes(run))
            self.bytes_read += run.nbytes
        steps = [stride * run.itemsize for stride in extent.strides]
        np.copyto(out, np.lib.stride_tricks.as_strided(run, extent.shape, steps, writeable=False))
