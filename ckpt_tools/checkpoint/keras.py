"""Keras weights: HDF5 (`.h5`, `.weights.h5`, `.keras`), and any other HDF5 file of float arrays.

h5py lists the datasets; contiguous ones are then read at their offsets without it, the others through it. The file is a
stranger's, and HDF5 can refer to other files in three ways that h5py follows without a word (external links, external
storage, virtual datasets), so a file that contains any, or a soft link, is refused.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import CkptError, FormatError
from .dtypes import DTYPES
from .jsondata import parse_object
from .leaves import Leaf, Unreadable
from .localfile import ByteFile
from .magic import UnknownFormat
from .numpytypes import NumpyType
from .raw import Extent
from .region import Region
from .source import Array, TensorSource
from .strided import PackedExtent, place
from .tree import tree_source
from .ziprecords import Record, locate

_MAGIC = b"\x89HDF\r\n\x1a\n"
_MAX_OBJECTS = 100_000
_MAX_DEPTH = 32
_MAX_CONFIG = 2**22
_BOMB_RATIO, _BOMB_SIZE = 500, 2**26
_FILTERS = {1, 2, 3, 4, 5, 6, 32000}
"""Deflate, shuffle, checksum, szip, n-bit, scale-offset, LZF: what is built in. Others are libraries found by name."""


def is_hdf5(head: bytes) -> bool:
    """Return whether a file that begins with `head` is HDF5."""
    return head.startswith(_MAGIC)


def open_hdf5(file: ByteFile, head: bytes = b"", part: str = "") -> TensorSource:
    """Return the arrays of an HDF5 file. Raises FormatError for one that is damaged or refers to other files."""
    return _read(Region.whole(file), "HDF5", part)


def open_keras_zip(region: Region, records: Mapping[str, Record], part: str = "") -> TensorSource:
    """Return the weights in a `.keras` archive, with its config.json as configuration."""
    source = _read(locate(region, records["model.weights.h5"]), "Keras", part)
    record = records.get("config.json")
    if record is not None and record.size <= _MAX_CONFIG:
        try:
            source.config = parse_object(locate(region, record).read(0, record.size))
        except CkptError as error:
            raise FormatError(f"{region.path}: config.json in it: {error}.") from None
    return source


def _read(region: Region, name: str, part: str) -> TensorSource:
    import h5py

    try:
        with h5py.File(_RegionIO(region), "r") as file:
            if "ckpt_schema" in file.attrs:
                raise UnknownFormat(f"{region.path} is a results file of this tool, not a checkpoint.")
            tree = dict(_arrays(file, region))
            config = _model_config(file)
            layered = "layer_names" in file.attrs or "layer_names" in getattr(file.get("model_weights"), "attrs", ())
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, CkptError):
            raise
        raise FormatError(f"{region.path}: damaged HDF5 file: {str(error)[:200]}.") from None
    leaves = {_shorter(path) if layered else path: leaf for path, leaf in tree.items()}
    source = tree_source(region, leaves if len(leaves) == len(tree) else tree, name, part=part)
    source.config = config
    return source


def _shorter(path: str) -> str:
    """Return the weight's own name: Keras 2 repeats the layer, `model_weights/dense/dense/kernel:0`."""
    path = path.removeprefix("model_weights/")
    layer, _, rest = path.partition("/")
    return rest if rest.startswith(f"{layer}/") else path


def _arrays(file: Any, region: Region) -> Iterator[tuple[str, Leaf]]:
    """Yield every dataset under its path, optimizer state apart."""
    import h5py

    seen: set[Any] = set()
    open_groups: list[tuple[str, Any]] = [("", file)]
    count = 0
    while open_groups:
        path, group = open_groups.pop()
        for key in group:
            count += 1
            if count > _MAX_OBJECTS or path.count("/") > _MAX_DEPTH:
                raise FormatError(f"{region.path} holds more than {_MAX_OBJECTS:,} objects or nests them too deeply.")
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                kind = type(link).__name__
                raise FormatError(f"{region.path}: {path + key!r} is a link ({kind}); links are not followed.")
            child = group[key]
            if isinstance(child, h5py.Dataset):
                yield f"{path}{key}", _leaf(child, region, f"{path}{key}")
            elif isinstance(child, h5py.Group):
                address = h5py.h5o.get_info(child.id).addr
                if address not in seen:
                    seen.add(address)
                    open_groups.append((f"{path}{key}/", child))


def _leaf(data: Any, region: Region, path: str) -> Leaf:
    if data.is_virtual or data.external:
        raise FormatError(f"{region.path}: dataset {path!r} takes its numbers from other files; these are not opened.")
    if path.partition("/")[0] in ("optimizer_weights", "optimizer"):
        return Unreadable("optimizer state, not weights")
    if data.shape is None or data.dtype.kind not in "fiu":
        return Unreadable(f"an HDF5 dataset of {data.dtype.kind!r}, not of numbers")
    name = NumpyType(data.dtype.str).name
    if name not in DTYPES:
        return Unreadable(f"its dtype {data.dtype.str!r} cannot be read")
    filters = data.id.get_create_plist()
    used = {filters.get_filter(number)[0] for number in range(filters.get_nfilters())}
    if used - _FILTERS:
        return Unreadable(f"compressed by HDF5 filter {min(used - _FILTERS)}, which would be a program of its own")
    stored = data.id.get_storage_size()
    if data.nbytes > max(_BOMB_SIZE, _BOMB_RATIO * stored):
        return Unreadable(f"its {data.nbytes:,} bytes are {stored:,} stored ones inflated")
    offset = data.id.get_offset()
    if offset is not None and data.dtype.str[0] in "<|" and not data.file.userblock_size:
        return HDF5Array(place(f"{region.path}: {path!r}", name, data.shape, None, region.base + offset, stored))
    return HDF5Array(ChunkedExtent(name, data.shape, 0, region, path, stored))


@dataclass(frozen=True)
class HDF5Array(Leaf):
    """A dataset."""

    extent: Extent | str

    def place(self, name: str, region: Region) -> Extent | str:
        """Return the extent."""
        return self.extent


@dataclass(frozen=True, slots=True)
class ChunkedExtent(PackedExtent):
    """A dataset that HDF5 keeps in chunks, perhaps compressed: h5py reads it."""

    region: Region | None = None
    path: str = ""
    packed: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.packed

    def fetch(self, first: int, out: Array) -> int:
        """Fill `out` with whole rows; see `PackedExtent`."""
        import h5py

        assert self.region is not None
        try:
            with h5py.File(_RegionIO(self.region), "r") as file:
                data = file[self.path]
                if self.shape:
                    inner = int(np.prod(self.shape[1:]))
                    rows = slice(first // inner, first // inner + out.size // inner)
                    out.reshape(-1, *self.shape[1:])[...] = data[rows]
                else:
                    out[...] = data[()]
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise FormatError(f"{self.region.path}: {self.path!r} cannot be read: {str(error)[:200]}.") from None
        return out.nbytes


def _model_config(file: Any) -> dict[str, Any]:
    """Return the model's configuration as Keras 2 keeps it in an attribute, {} where there is none."""
    text = file.attrs.get("model_config", "")
    data = text.encode() if isinstance(text, str) else text
    if not isinstance(data, bytes) or not 0 < len(data) <= _MAX_CONFIG:
        return {}
    try:
        return parse_object(data)
    except FormatError:
        return {}


class _RegionIO(io.RawIOBase):
    """A region as a file object, for h5py."""

    def __init__(self, region: Region) -> None:
        self._region, self._at = region, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._region.size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._region.size - self._at))
        view[:count] = self._region.read(self._at, count) if count else b""
        self._at += count
        return count
