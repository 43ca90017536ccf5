"""A pickle that is no file of PyTorch's: dicts of NumPy arrays, or of tensors that were pickled one by one."""

from __future__ import annotations

from typing import Any

from .inert import Blob, Builder
from .leaves import Storage, Unreadable
from .localfile import ByteFile
from .pickles import unpickle
from .region import Region
from .source import TensorSource
from .torchlegacy import is_torch_legacy, read_object
from .torchtypes import TORCH_BUILDERS
from .tree import tree_source

_PROTOCOLS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_OLD = (b"(dp", b"(lp", b"ccollections\n", b"ccopy_reg\n", b"cnumpy", b"}q\x00", b"]q\x00")


def is_pickle(head: bytes) -> bool:
    """Return whether a file that begins with `head` is a pickle."""
    return head.startswith(_PROTOCOLS) or head.startswith(_OLD)


def open_pickle(file: ByteFile, head: bytes = b"", part: str = "") -> TensorSource:
    """Return the arrays in a pickle, which stay in the file until read. Raises FormatError for a damaged one."""
    region = Region.whole(file)
    known: dict[Blob, Any] = {}

    def load_from_bytes(name: str, args: tuple[Any, ...]) -> Any:
        """`torch.storage._load_from_bytes`: a storage as a legacy file within the pickle."""
        blob = args[0] if args and isinstance(args[0], Blob) else None
        if blob is None:
            return Unreadable("a tensor pickled as text; save it with torch.save or a later pickle protocol")
        if blob not in known:
            known[blob] = _storage(Region(file, blob.offset, blob.size))
        return known[blob]

    builders: dict[str, Builder] = {**TORCH_BUILDERS, "torch.storage._load_from_bytes": load_from_bytes}
    loaded = unpickle(region, builders=builders)
    return tree_source(region, loaded.value, "pickle", unknown=loaded.unknown, part=part)


def _storage(region: Region) -> Any:
    if not is_torch_legacy(region.head(32)):
        return Unreadable("a tensor pickled in a way that is not known here; save it with torch.save")
    stored = read_object(region).value
    return stored if isinstance(stored, Storage) else Unreadable("a tensor without a storage")
