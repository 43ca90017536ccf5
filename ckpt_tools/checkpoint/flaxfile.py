"""MessagePack as Flax writes it: nested maps whose arrays are extension type 1, `(shape, dtype name, bytes)`.

Parsed here rather than by the `msgpack` package, which would take every array into memory; here only the maps are, and
an array knows where its bytes lie. Arrays above 1 GiB are written in pieces, a map of flat arrays.

Formats: https://github.com/msgpack/msgpack/blob/master/spec.md, flax.serialization.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import FormatError
from .dtypes import ITEMSIZE
from .inert import Blob
from .leaves import Leaf, Unreadable
from .localfile import ByteFile
from .magic import HEAD
from .raw import Extent
from .region import Region
from .source import TensorSource
from .strided import JoinedExtent, Piece, place
from .tree import tree_source

MAX_VALUES = 2_000_000
MAX_DEPTH = 32
MAX_TEXT = 2**24
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_TEXT = (*range(0xA0, 0xC0), 0xD9, 0xDA)
_MIN_BLOB = 64


def is_msgpack(head: bytes) -> bool:
    """Return whether a file that begins with `head` is a MessagePack map whose first key is a text."""
    kind = head[0] if head else 0
    key = {0xDE: 3, 0xDF: 5}.get(kind, 1 if 0x81 <= kind <= 0x8F else len(head))
    return key < len(head) and head[key] in _TEXT


def open_msgpack(file: ByteFile, head: bytes = b"", part: str = "") -> TensorSource:
    """Return the arrays of a Flax file. Raises FormatError for a damaged or hostile one."""
    region = Region.whole(file)
    parser = _Parser(region)
    try:
        root = parser.value()
    except (struct.error, UnicodeDecodeError):
        raise FormatError(f"{file.path}: malformed msgpack at byte {parser.at:,}.") from None
    return tree_source(region, root, "msgpack (flax)", part=part)


@dataclass(frozen=True)
class FlaxArray(Leaf):
    """An array of a Flax file."""

    dtype: str
    shape: tuple[Any, ...]
    data: Blob

    def place(self, name: str, region: Region) -> Extent | str:
        """Return where its bytes lie, or why it cannot be read; see `Leaf`."""
        return place(f"{region.path}: array {name!r}", self.dtype, self.shape, None, self.data.offset, self.data.size)


class _Parser:
    """Reads values one after the other; long byte strings are located, not read."""

    def __init__(self, region: Region, at: int = 0, depth: int = 0) -> None:
        self.region, self.at, self.depth, self.left = region, at, depth, MAX_VALUES
        self._window, self._from = b"", 0

    def value(self) -> Any:
        self.left -= 1
        if self.left < 0 or self.depth > MAX_DEPTH:
            raise FormatError(f"{self.region.path}: its msgpack holds too many values or nests them too deeply.")
        kind = self.number(1)
        if kind < 0x80 or kind >= 0xE0:
            return kind if kind < 0x80 else kind - 0x100
        if kind < 0xC0:
            count = kind & (0x1F if kind >= 0xA0 else 0x0F)
            return self.text(count) if kind >= 0xA0 else self.array(count) if kind >= 0x90 else self.map(count)
        return _KINDS[kind](self) if kind in _KINDS else self.never(kind)

    def never(self, kind: int) -> Any:
        raise FormatError(f"{self.region.path}: malformed msgpack at byte {self.at:,}: {kind:#04x} begins no value.")

    def take(self, count: int) -> bytes:
        first = self.at - self._from
        if not 0 <= first <= first + count <= len(self._window):
            self.region.check(self.at, count)
            size = max(count, min(HEAD, self.region.size - self.at))
            self._window, self._from, first = self.region.read(self.at, size), self.at, 0
        self.at += count
        return self._window[first : first + count]

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "big", signed=signed)

    def text(self, count: int) -> str:
        if count > MAX_TEXT:
            raise FormatError(f"{self.region.path}: a text of {count:,} bytes in its msgpack; it is not read.")
        return self.take(count).decode()

    def blob(self, count: int) -> Any:
        if count < _MIN_BLOB:
            return self.take(count)
        self.region.check(self.at, count)
        self.at += count
        return Blob(self.region.base + self.at - count, count)

    def array(self, count: int) -> list[Any]:
        self.claim(count)
        self.depth += 1
        found = [self.value() for _ in range(count)]
        self.depth -= 1
        return found

    def map(self, count: int) -> Any:
        self.claim(2 * count)
        self.depth += 1
        found: dict[Any, Any] = {}
        for _ in range(count):
            key = self.value()
            if not isinstance(key, (str, int)):
                raise FormatError(f"{self.region.path}: a key in its msgpack is neither a text nor a number.")
            found[key] = self.value()
        self.depth -= 1
        return _joined(found) if _PIECES in found else found

    def claim(self, count: int) -> None:
        """Refuse counts that the rest of the file cannot hold, at a byte a value."""
        self.region.check(self.at, count)

    def extension(self, count: int) -> Any:
        kind, end = self.number(1), self.at + count
        self.region.check(self.at, count)
        made: Any = Unreadable(f"a msgpack extension of type {kind}")
        if kind in (_ARRAY, _SCALAR):
            made = self.numbers(end, kind)
        elif kind == _COMPLEX:
            made = None
        self.at = end
        return made

    def numbers(self, end: int, kind: int) -> Any:
        inner = _Parser(self.region, self.at, self.depth + 1)
        inner.left = 100
        match inner.value():
            case [list() as shape, str() as dtype, (bytes() | Blob()) as data] if inner.at == end:
                if isinstance(data, bytes):
                    if not shape and dtype in _SCALARS and len(data) == ITEMSIZE[dtype]:
                        return struct.unpack(_SCALARS[dtype], data)[0]
                    data = Blob(self.region.base + end - len(data), len(data))
                return FlaxArray(dtype, tuple(shape), data)
        return Unreadable("an array that is malformed")


_PIECES = "__msgpack_chunked_array__"


@dataclass(frozen=True)
class FlaxPieces(Leaf):
    """A large array, written as flat arrays one after the other."""

    shape: tuple[Any, ...]
    pieces: tuple[FlaxArray, ...]

    def place(self, name: str, region: Region) -> Extent | str:
        """Return where its pieces lie, or why it cannot be read; see `Leaf`."""
        dtype = self.pieces[0].dtype
        room = sum(piece.data.size for piece in self.pieces)
        whole = place(f"{region.path}: array {name!r}", dtype, self.shape, None, self.pieces[0].data.offset, room)
        if isinstance(whole, str) or whole.nbytes != room or any(piece.dtype != dtype for piece in self.pieces):
            return whole if isinstance(whole, str) else "its pieces do not make up its shape"
        pieces = tuple(Piece(region.file, piece.data.offset, piece.data.size) for piece in self.pieces)
        return JoinedExtent(dtype, whole.shape, whole.offset, pieces)


def _joined(found: dict[Any, Any]) -> Leaf:
    shape, chunks = found.get("shape"), found.get("chunks")
    if not (isinstance(shape, dict) and isinstance(chunks, dict) and chunks):
        return Unreadable("an array in pieces that is malformed")
    pieces = [chunks.get(str(i)) for i in range(len(chunks))]
    arrays = tuple(piece for piece in pieces if isinstance(piece, FlaxArray))
    if len(arrays) < len(pieces):
        return Unreadable("an array in pieces of which some are missing")
    return FlaxPieces(tuple(shape.get(str(i)) for i in range(len(shape))), arrays)


_SCALARS = {"int32": "<i", "int64": "<q", "uint32": "<I", "uint64": "<Q"}
"""Step counters are arrays without axes: read at once, as facts."""

_KINDS: dict[int, Callable[[_Parser], Any]] = {
    0xC0: lambda p: None,
    0xC2: lambda p: False,
    0xC3: lambda p: True,
    0xCA: lambda p: struct.unpack(">f", p.take(4))[0],
    0xCB: lambda p: struct.unpack(">d", p.take(8))[0],
}
for _step, _size in enumerate((1, 2, 4, 8)):
    _KINDS[0xCC + _step] = lambda p, n=_size: p.number(n)  # type: ignore[misc]
    _KINDS[0xD0 + _step] = lambda p, n=_size: p.number(n, signed=True)  # type: ignore[misc]
for _step, _size in enumerate((1, 2, 4)):
    _KINDS[0xC4 + _step] = lambda p, n=_size: p.blob(p.number(n))  # type: ignore[misc]
    _KINDS[0xC7 + _step] = lambda p, n=_size: p.extension(p.number(n))  # type: ignore[misc]
    _KINDS[0xD9 + _step] = lambda p, n=_size: p.text(p.number(n))  # type: ignore[misc]
for _step, _size in enumerate((2, 4)):
    _KINDS[0xDC + _step] = lambda p, n=_size: p.array(p.number(n))  # type: ignore[misc]
    _KINDS[0xDE + _step] = lambda p, n=_size: p.map(p.number(n))  # type: ignore[misc]
for _step in range(5):
    _KINDS[0xD4 + _step] = lambda p, n=1 << _step: p.extension(n)  # type: ignore[misc]
