"""NumPy's `.npy` and `.npz`: read at offsets where stored, inflated within their declared size where compressed.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import FormatError
from .dtypes import DTYPES, ITEMSIZE
from .leaves import Leaf, Unreadable
from .localfile import ByteFile
from .numpytypes import NumpyType, fortran_strides
from .raw import Extent
from .region import Region
from .source import Array, TensorSource, as_bytes
from .strided import PackedExtent, place
from .tree import NoWeights, tree_source
from .ziprecords import DEFLATED, Inflating, Record, locate

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 2**16
_BOMB_RATIO, _BOMB_SIZE = 500, 2**30
_BLOCK = 2**22
_HEADER = re.compile(
    r"\{\s*'descr':\s*(?P<descr>'[^']{1,40}'|\[.*\]|.*?),\s*'fortran_order':\s*(?P<fortran>True|False),"
    r"\s*'shape':\s*\((?P<shape>[\d\s,]*)\),?\s*\}\s*",
    re.DOTALL,
)


def is_npy(head: bytes) -> bool:
    """Return whether a file that begins with `head` is a single NumPy array."""
    return head.startswith(_MAGIC)


def open_npy(file: ByteFile, head: bytes = b"") -> TensorSource:
    """Return the one array of a `.npy` file, named like the file. Raises NoWeights when it holds no floats."""
    region = Region.whole(file)
    name = file.path.name.removesuffix(".npy")
    return _floats_only(tree_source(region, {name: _stored(region, name)}, "npy"))


def open_npz(region: Region, records: Mapping[str, Record], part: str = "") -> TensorSource:
    """Return the arrays of an `.npz` archive. Raises FormatError for a damaged or hostile one."""
    leaves = {
        name.removesuffix(".npy"): _deflated(region, record)
        if record.method == DEFLATED
        else _stored(locate(region, record), name)
        for name, record in records.items()
    }
    return _floats_only(tree_source(region, leaves, "npz", part=part))


def _floats_only(source: TensorSource) -> TensorSource:
    if not any("float" in info.dtype or "complex" in info.dtype for info in source.tensors.values()):
        raise NoWeights(f"{source.path} is a NumPy file of integers: data, not weights.")
    return source


@dataclass(frozen=True)
class StoredArray(Leaf):
    """An array whose bytes follow its header in the file, `room` of them from `start`."""

    dtype: str
    shape: tuple[Any, ...]
    fortran: bool
    start: int
    room: int

    def place(self, name: str, region: Region) -> Extent | str:
        """Return where its bytes lie, or why it cannot be read; see `Leaf`."""
        strides = fortran_strides(self.shape) if self.fortran else None
        return place(f"{region.path}: array {name!r}", self.dtype, self.shape, strides, self.start, self.room)


def _stored(region: Region, name: str) -> Leaf:
    header = _read_header(region.read, region, name)
    if isinstance(header, Unreadable):
        return header
    dtype, shape, fortran, start = header
    return StoredArray(dtype, shape, fortran, region.base + start, region.size - start)


_Header = tuple[str, tuple[int, ...], bool, int]


def _read_header(read: Callable[[int, int], bytes], region: Region, name: str) -> _Header | Unreadable:
    """Return dtype, shape, order and the header's length."""
    head = read(0, 10)
    version = head[6]
    if not head.startswith(_MAGIC) or version not in (1, 2, 3):
        raise FormatError(f"{region.path}: record {name!r} is no array in the npy format.")
    wide = 2 if version == 1 else 4
    length = int.from_bytes(read(8, wide), "little")
    if length > _MAX_HEADER:
        raise FormatError(f"{region.path}: the header of array {name!r} has {length:,} bytes; it is not read.")
    found = _HEADER.fullmatch(read(8 + wide, length).decode("latin-1"))
    sizes = found["shape"].replace(",", " ").split() if found else []
    if found is None or any(len(size) > 19 for size in sizes):
        raise FormatError(f"{region.path}: the header of array {name!r} is malformed.")
    descr = found["descr"].strip("'")
    kind = NumpyType(descr)
    if descr.startswith(">") and ITEMSIZE.get(kind.name, 1) > 1:
        return Unreadable("its numbers are big-endian")
    if kind.name not in DTYPES:
        return Unreadable(f"a numpy array of dtype {descr[:40]!r}, not of numbers")
    return kind.name, tuple(map(int, sizes)), found["fortran"] == "True", 8 + wide + length


@dataclass(frozen=True, slots=True)
class InflatedExtent(PackedExtent):
    """An array in a deflated record, read forward from the record's beginning."""

    stream: Inflating | None = field(default=None, compare=False)
    packed: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.packed

    def fetch(self, first: int, out: Array) -> int:
        """Fill `out` block by block; see `PackedExtent`."""
        target, at = as_bytes(out), self.offset + first * ITEMSIZE[self.dtype]
        assert self.stream is not None
        for start in range(0, len(target), _BLOCK):
            count = min(_BLOCK, len(target) - start)
            target[start : start + count] = self.stream.read(at + start, count)
        return len(target)


@dataclass(frozen=True)
class DeflatedArray(Leaf):
    """An array in a compressed record of an npz archive."""

    extent: InflatedExtent

    def place(self, name: str, region: Region) -> Extent | str:
        """Return the extent."""
        return self.extent


def _deflated(region: Region, record: Record) -> Leaf:
    stream = Inflating(region, record)
    header = _read_header(stream.read, region, record.name)
    if isinstance(header, Unreadable):
        return header
    dtype, shape, fortran, start = header
    checked = place(f"{region.path}: array {record.name!r}", dtype, shape, None, start, record.size - start)
    if isinstance(checked, str):
        return Unreadable(checked)
    if record.size > max(_BOMB_SIZE, _BOMB_RATIO * record.packed):
        return Unreadable(f"a zip bomb: its {record.packed:,} bytes inflate to {record.size:,}")
    if fortran and 0 not in shape and sum(n > 1 for n in shape) > 1:
        return Unreadable("a compressed array in Fortran order; save it with order='C' or uncompressed")
    return DeflatedArray(InflatedExtent(dtype, shape, start, stream, record.packed))
