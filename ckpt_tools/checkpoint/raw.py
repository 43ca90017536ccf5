"""Tensors that lie in a file as plain contiguous little-endian bytes at known offsets.

Most formats come down to this once their index is parsed; a reader of such a format only builds the extents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import SourceError, nearest
from .dtypes import DTYPES, ITEMSIZE, decode
from .localfile import ByteFile
from .source import Array, TensorInfo, TensorSource, as_bytes

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

    from .location import Location

BLOCK = 2**21
"""Bytes read at once when elements must be decoded: small enough to stay in cache, so a copy costs little."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a tensor lies: `offset` counts from the beginning of the source's data."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return prod(self.shape) * ITEMSIZE[self.dtype]

    @property
    def encoding(self) -> str:
        """How the numbers are quantised, empty for plain ones; see `TensorInfo`."""
        return ""


class TensorTable(Mapping[str, TensorInfo]):
    """Extents seen as TensorInfo, each built when asked for: opening a checkpoint costs nothing per tensor."""

    __slots__ = ("_extents", "_file")

    def __init__(self, extents: Mapping[str, Extent], file: Location) -> None:
        self._extents, self._file = extents, file

    def __getitem__(self, name: str) -> TensorInfo:
        extent = self._extents[name]
        return TensorInfo(name, extent.dtype, extent.shape, extent.nbytes, self._file, extent.encoding)

    def __iter__(self) -> Iterator[str]:
        return iter(self._extents)

    def __len__(self) -> int:
        return len(self._extents)

    def __contains__(self, name: object) -> bool:
        return name in self._extents


class RawSource(TensorSource):
    """A source of extents in one file, read with one `pread` per request (blocks of 2 MiB where decoding is needed)."""

    def __init__(self, file: ByteFile, extents: Mapping[str, Extent], base: int, **fields: Any) -> None:
        super().__init__(path=file.path, tensors=TensorTable(extents, file.path), **fields)
        self.file, self.extents, self.base = file, extents, base
        self._running: dict[str, tuple[int, Hash]] = {}

    def read(self, name: str, rows: slice | None = None) -> Array:
        """Return a tensor or some of its rows, up-cast exactly; see `TensorSource.read`."""
        extent, start, stop = self._rows(name, rows)
        shape = extent.shape if rows is None else (stop - start, *extent.shape[1:])
        try:
            out = np.empty(shape, DTYPES[extent.dtype].decoded)
        except MemoryError:
            size = prod(shape) * DTYPES[extent.dtype].decoded.itemsize
            raise SourceError(f"{self.path}: no memory for {name!r} ({size / 2**30:.1f} GiB); read rows.") from None
        self._fill(name, extent, start, out)
        return out

    def read_into(self, name: str, out: Array, rows: slice | None = None) -> None:
        """Fill `out`, C-contiguous and of the shape and dtype that `read` would return."""
        extent, start, stop = self._rows(name, rows)
        shape = extent.shape if rows is None else (stop - start, *extent.shape[1:])
        decoded = DTYPES[extent.dtype].decoded
        if out.shape != shape or out.dtype != decoded or not out.flags.c_contiguous:
            raise SourceError(
                f"{self.path}: {name!r} needs a contiguous {decoded} array of shape {shape}. "
                f"Got {out.dtype} {out.shape} instead."
            )
        self._fill(name, extent, start, out)

    def digest(self, name: str) -> str:
        """Return the SHA-256 (hex) of the stored bytes, reading them unless a whole read has already seen them."""
        if name not in self.digests:
            extent, _, _ = self._rows(name, None)
            sha = hashlib.sha256()
            for _, raw in self._blocks(extent, 0, prod(extent.shape)):
                sha.update(as_bytes(raw))
            self.digests[name] = sha.hexdigest()
        return self.digests[name]

    @property
    def bytes_transferred(self) -> int:
        """Bytes that crossed a network for this source so far."""
        return self.file.transferred

    def expect(self, names: Iterable[str]) -> None:
        """Be told which tensors will be read, so that neighbours can be fetched together."""
        wanted = (self.extents[name] for name in names)
        self.file.expect((self.base + extent.offset, extent.nbytes) for extent in wanted)

    def close(self) -> None:
        """Release the file handle."""
        self.file.close()

    def _rows(self, name: str, rows: slice | None) -> tuple[Extent, int, int]:
        extent = self.extents.get(name)
        if extent is None:
            raise SourceError(f"{self.path} has no tensor {name!r}.{nearest(name, self.extents)}")
        if rows is None:
            return extent, 0, extent.shape[0] if extent.shape else 1
        if not extent.shape:
            raise SourceError(f"{self.path}: {name!r} is a scalar and has no rows.")
        start, stop, stride = rows.indices(extent.shape[0])
        if stride != 1:
            raise SourceError(f"{self.path}: rows of {name!r} are read as one range. Got a stride of {stride}.")
        return extent, start, max(start, stop)

    def _fill(self, name: str, extent: Extent, row: int, out: Array) -> None:
        first = row * prod(extent.shape[1:])
        sha = self._hasher(name, first)
        if DTYPES[extent.dtype].direct:
            self._read(extent, first, out)
            sha.update(as_bytes(out)) if sha else None
        else:
            flat = out.reshape(-1)
            for at, raw in self._blocks(extent, first, out.size):
                decode(extent.dtype, raw, flat[at : at + len(raw)])
                sha.update(as_bytes(raw)) if sha else None
        if sha:
            self._hashed(name, prod(extent.shape), first + out.size, sha)

    def _hasher(self, name: str, first: int) -> Hash | None:
        """Return the hash which a range of elements from `first` on continues: rows in order give a digest too."""
        if not self.hashing or name in self.digests:
            return None
        if first == 0:
            return hashlib.sha256()
        reached, sha = self._running.get(name, (0, None))
        return sha if reached == first else None

    def _hashed(self, name: str, size: int, reached: int, sha: Hash) -> None:
        self._running[name] = (reached, sha)
        if reached == size:
            self.digests[name] = self._running.pop(name)[1].hexdigest()

    def _blocks(self, extent: Extent, first: int, count: int) -> Iterator[tuple[int, Array]]:
        """Yield (index of the block's first element, elements as stored); the array is reused for the next block."""
        stored = DTYPES[extent.dtype].stored
        self.file.expect([(self.base + extent.offset + first * stored.itemsize, count * stored.itemsize)])
        scratch = np.empty(min(count, BLOCK // stored.itemsize), stored)
        for at in range(0, count, max(1, len(scratch))):
            raw = scratch[: count - at]
            self._read(extent, first + at, raw)
            yield at, raw

    def _read(self, extent: Extent, first: int, stored: Array) -> None:
        if stored.size:
            self.file.read_into(self.base + extent.offset + first * stored.itemsize, as_bytes(stored))
            self.bytes_read += stored.nbytes
