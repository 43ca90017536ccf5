"""What `torch.save` wrote before its zip format: a row of pickles, then the storages.

Legacy file: pickles of a magic number, the protocol version, facts of the system, the object, and the list of storage
keys; then, per key, the number of elements (int64) and the elements. Several storages may be views of one.
"""

from __future__ import annotations

from typing import Any

from ..errors import FormatError
from .leaves import Storage
from .localfile import ByteFile
from .pickles import Unpickled, unpickle
from .region import Region
from .source import TensorSource
from .torchtypes import TORCH_BUILDERS, itemsize, storage_dtype
from .tree import tree_source

MAGIC = 0x1950A86A20F9469CFC6C
_HEAD = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_VERSION = 1001


def is_torch_legacy(head: bytes) -> bool:
    """Return whether a file begins with the magic number of legacy `torch.save`."""
    return head.startswith(_HEAD)


def open_torch_legacy(file: ByteFile, head: bytes = b"", part: str = "") -> TensorSource:
    """Return the tensors of a legacy file. Raises FormatError for a damaged or hostile one."""
    region = Region.whole(file)
    loaded = read_object(region)
    return tree_source(region, loaded.value, "torch (legacy)", unknown=loaded.unknown, part=part)


def read_object(region: Region) -> Unpickled:
    """Return the object in a legacy file, its tensors (or itself) as leaves and storages that know their place."""
    at = len(_HEAD)
    version = unpickle(region, at, builders={})
    if version.value != _VERSION:
        raise FormatError(f"{region.path} is of an unknown version of torch.save: {version.value!r:.40}.")
    system = unpickle(region, version.end, builders={})
    if isinstance(system.value, dict) and system.value.get("little_endian") is False:
        raise FormatError(f"{region.path} was written on a big-endian machine; save it again on a little-endian one.")
    storages = _Storages(region)
    loaded = unpickle(region, system.end, builders=TORCH_BUILDERS, persistent=storages.of)
    keys = unpickle(region, loaded.end, builders={})
    storages.locate(keys.value, keys.end)
    return loaded


class _Storages:
    """Storages by key; the places of the roots are known only after the object has been read."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.roots: dict[str, Storage] = {}
        self.views: dict[str, tuple[Storage, str, int]] = {}

    def of(self, identity: Any) -> Any:
        match identity:
            case ("module", kind, *_):
                return kind
            case ("storage", kind, key, _, int() as count, *rest) if storage_dtype(kind):
                dtype, key = storage_dtype(kind) or "", _text(key)
                if not 0 <= count < 2**60:
                    raise ValueError("a storage has a size that is none")
                root = self.roots.setdefault(key, Storage(dtype, count * itemsize(dtype)))
                return root if not rest or rest[0] is None else self._view(root, key, rest[0])
        raise ValueError("a storage is not described by type, key, location and size")

    def _view(self, root: Storage, root_key: str, view: Any) -> Storage:
        match view:
            case (key, int() as first, int() as count) if 0 <= first < 2**60 and 0 <= count < 2**60:
                size = itemsize(root.dtype)
                if (first + count) * size > root.nbytes:
                    raise ValueError("a view reaches outside its storage")
                made = Storage(root.dtype, count * size)
                return self.views.setdefault(f"{_text(key)}", (made, root_key, first * size))[0]
        raise ValueError("a view of a storage is malformed")

    def locate(self, keys: Any, at: int) -> None:
        """Find the roots, which follow each other from `at` on in the order of `keys`, and their views."""
        if not isinstance(keys, list):
            raise FormatError(f"{self.region.path}: the list of storages is missing; the save was cut short.")
        for key in map(_text, keys):
            if key not in self.roots:
                raise FormatError(f"{self.region.path}: storage {key[:40]!r} belongs to no tensor.")
            at = _place(self.region, self.roots[key], at)
        for storage, root, first in self.views.values():
            if self.roots[root].offset >= 0:
                storage.offset = self.roots[root].offset + first


def _place(region: Region, storage: Storage, at: int) -> int:
    """Set the place of a storage that begins at `at` with its number of elements; return where it ends."""
    count = int.from_bytes(region.read(at, 8), "little", signed=True)
    if count * itemsize(storage.dtype) != storage.nbytes:
        raise FormatError(
            f"{region.path}: a storage at byte {at:,} has {count:,} elements, the tensors say "
            f"{storage.nbytes // itemsize(storage.dtype):,}."
        )
    region.check(at + 8, storage.nbytes)
    storage.offset = region.base + at + 8
    return at + 8 + storage.nbytes


def _text(key: Any) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else str(key) if isinstance(key, (str, int)) else "?"
