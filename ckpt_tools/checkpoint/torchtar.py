"""The tar archives of torch 0.1: members `sys_info`, `pickle`, `storages` and mostly `tensors`.

`storages`: their number, then per storage a pickle `(key, location, type)`, its number of elements (int64) and the
elements; then a pickle of views `(key, root, offset, size)`. `tensors`: their number, then per tensor a pickle
`(key, storage, type)`, the number of axes (int64), sizes, strides and offset (int64 each). `pickle` refers to tensors
by their keys. Archives without `tensors` rebuild them from `("storage", type, key, location, size)`, as later versions.
"""

from __future__ import annotations

import struct
from typing import Any

from ..errors import FormatError
from .inert import Builder
from .leaves import Storage, StoredTensor
from .localfile import ByteFile
from .magic import UnknownFormat
from .pickles import Unpickled, unpickle
from .region import Region
from .source import TensorSource
from .torchtypes import TORCH_BUILDERS, itemsize, storage_dtype
from .tree import tree_source

_BLOCK = 512
_MAX_MEMBERS = 10_000
_MAX_DIMS = 64


def is_tar(head: bytes) -> bool:
    """Return whether a file that begins with `head` is a tar archive."""
    return head[257:262] == b"ustar" or (head.startswith((b"sys_info\0", b"storages\0")) and len(head) >= _BLOCK)


def open_torch_tar(file: ByteFile, head: bytes = b"", part: str = "") -> TensorSource:
    """Return the tensors of a torch 0.1 archive. Raises UnknownFormat for any other tar archive."""
    region = Region.whole(file)
    members = _members(region)
    if not {"storages", "pickle"} <= members.keys():
        inside = ", ".join(list(members)[:5])
        raise UnknownFormat(f"{file.path} is a tar archive of other files ({inside}): unpack it and open one of them.")
    storages = _read_storages(members["storages"])
    tensors = _read_tensors(members["tensors"], storages) if "tensors" in members else {}
    loaded = _read_pickle(members["pickle"], storages, tensors)
    return tree_source(region, loaded.value, "torch 0.1 (tar)", unknown=loaded.unknown, part=part)


def _members(region: Region) -> dict[str, Region]:
    found: dict[str, Region] = {}
    at = 0
    while at + _BLOCK <= region.size and len(found) < _MAX_MEMBERS:
        header = region.read(at, _BLOCK)
        name = header[:100].split(b"\0")[0].decode("latin-1")
        if not name:
            break
        size = _octal(header[124:136], region)
        if header[156:157] in (b"0", b"\0"):
            found[name.removeprefix("./")] = region.part(at + _BLOCK, size)
        at += _BLOCK + -(-size // _BLOCK) * _BLOCK
    return found


def _octal(text: bytes, region: Region) -> int:
    digits = text.strip(b" \0")
    if digits and not all(c in b"01234567" for c in digits):
        raise FormatError(f"{region.path}: damaged tar archive: {text!r} is no size.")
    return int(digits or b"0", 8)


def _count(region: Region) -> Unpickled:
    counted = unpickle(region, builders={})
    if type(counted.value) is not int or not 0 <= counted.value <= region.size:
        raise FormatError(f"{region.path}: a torch 0.1 archive without the number of its storages or tensors.")
    return counted


def _read_storages(region: Region) -> dict[Any, Storage]:
    number, at, _ = _count(region)
    found: dict[Any, Storage] = {}
    for _ in range(number):
        entry = unpickle(region, at, builders={})
        match entry.value:
            case ((str() | int()) as key, _, kind) if storage_dtype(kind):
                found[key], at = _placed(region, storage_dtype(kind) or "", entry.end)
            case _:
                raise FormatError(f"{region.path}: a storage at byte {at:,} is not described by key, place and type.")
    if at < region.size:
        _add_views(region, unpickle(region, at, builders={}).value, found)
    return found


def _placed(region: Region, dtype: str, at: int) -> tuple[Storage, int]:
    nbytes = int.from_bytes(region.read(at, 8), "little", signed=True) * itemsize(dtype)
    region.check(at + 8, nbytes)
    return Storage(dtype, nbytes, region.base + at + 8), at + 8 + nbytes


def _add_views(region: Region, views: Any, found: dict[Any, Storage]) -> None:
    for view in views if isinstance(views, list) else []:
        match view:
            case ((str() | int()) as key, (str() | int()) as root, int() as first, int() as count) if root in found:
                size = itemsize(found[root].dtype)
                if first < 0 or count < 0 or (first + count) * size > found[root].nbytes:
                    raise FormatError(f"{region.path}: a view reaches outside its storage.")
                found[key] = Storage(found[root].dtype, count * size, found[root].offset + first * size)
            case _:
                raise FormatError(f"{region.path}: a view of a storage is malformed.")


def _read_tensors(region: Region, storages: dict[Any, Storage]) -> dict[Any, StoredTensor]:
    number, at, _ = _count(region)
    found: dict[Any, StoredTensor] = {}
    for _ in range(number):
        entry = unpickle(region, at, builders={})
        match entry.value:
            case ((str() | int()) as key, (str() | int()) as storage, _) if storage in storages:
                found[key], at = _tensor(region, storages[storage], entry.end)
            case _:
                raise FormatError(f"{region.path}: a tensor at byte {at:,} is not described by key, storage and type.")
    return found


def _tensor(region: Region, storage: Storage, at: int) -> tuple[StoredTensor, int]:
    (dims,) = struct.unpack("<i", region.read(at, 4))
    if not 0 <= dims <= _MAX_DIMS:
        raise FormatError(f"{region.path}: a tensor at byte {at:,} has {dims} axes.")
    numbers = struct.unpack(f"<{2 * dims + 1}q", region.read(at + 8, 16 * dims + 8))
    shape, strides, first = numbers[:dims], numbers[dims : 2 * dims], numbers[-1]
    made = StoredTensor(storage.dtype, shape, strides, first, itemsize(storage.dtype), storage)
    return made, at + 16 + 16 * dims


def _read_pickle(region: Region, storages: dict[Any, Storage], tensors: dict[Any, StoredTensor]) -> Unpickled:
    def persistent(identity: Any) -> Any:
        if isinstance(identity, tuple) and identity:
            return identity[0]  # a class, with its source
        key = int(identity) if isinstance(identity, str) and identity not in tensors else identity
        if not isinstance(key, (str, int)):
            raise ValueError("a tensor is referred to by no key")
        return tensors[key]

    def inline(name: str, args: tuple[Any, ...]) -> Any:
        match args:
            case (("storage", _, (str() | int()) as key, *_), *rest) if key in storages:
                return rebuild(name, (storages[key], *rest))
        return rebuild(name, args)

    rebuild = TORCH_BUILDERS["torch._utils._rebuild_tensor_v2"]
    builders: dict[str, Builder] = {**TORCH_BUILDERS, "torch._utils._rebuild_tensor_v2": inline}
    return unpickle(region, builders=builders, persistent=persistent)
