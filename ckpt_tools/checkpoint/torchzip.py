"""PyTorch's zip archives: `torch.save` since 1.6, and TorchScript.

`NAME/data.pkl` is a pickle whose persistent ids `("storage", type, key, location, numel)` name the records
`NAME/data/KEY`, stored uncompressed; a tensor is a view of one. TorchScript has `code/` and `constants.pkl` besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import FormatError
from .leaves import Storage
from .magic import UnknownFormat
from .pickles import Unpickled, unpickle
from .region import Region
from .source import TensorSource
from .torchtypes import TORCH_BUILDERS, itemsize, storage_dtype
from .tree import tree_source
from .ziprecords import Record, locate, read_directory


def find_data(records: Mapping[str, Record]) -> str | None:
    """Return the folder (with its slash) that holds `data.pkl` in an archive, None when it is not one of PyTorch's."""
    found = [name for name in records if name.endswith("data.pkl") and name.count("/") <= 1]
    return found[0].removesuffix("data.pkl") if len(found) == 1 else None


def open_torch_zip(region: Region, records: Mapping[str, Record] | None = None, part: str = "") -> TensorSource:
    """Return the tensors of an archive by PyTorch. Raises FormatError for a damaged or hostile one."""
    records = read_directory(region) if records is None else records
    script = any(name.endswith("/constants.pkl") for name in records)
    name = "TorchScript" if script else "torch"
    loaded = load_archive(region, records)
    source = tree_source(region, loaded.value, name, unknown=loaded.unknown, part=part)
    return source


def load_archive(region: Region, records: Mapping[str, Record]) -> Unpickled:
    """Return what `data.pkl` holds, its tensors as leaves that know their place."""
    folder = find_data(records)
    if folder is None:
        raise UnknownFormat(f"{region.path} is a zip archive without data.pkl, so not one by PyTorch.")
    _check_order(region, records, folder)
    storages: dict[str, Storage] = {}

    def persistent(identity: Any) -> Any:
        match identity:
            case ("storage", kind, str() as key, _, int() as count, *_) if storage_dtype(kind) is not None:
                if key not in storages:
                    storages[key] = _storage(region, records, folder, key)
                return _claimed(region, storages[key], storage_dtype(kind) or "", key, count)
            case ("module", kind, *_):
                return kind
        raise ValueError("a storage is not described by type, key, location and size")

    return unpickle(locate(region, records[f"{folder}data.pkl"]), builders=TORCH_BUILDERS, persistent=persistent)


def _storage(region: Region, records: Mapping[str, Record], folder: str, key: str) -> Storage:
    record = records.get(f"{folder}data/{key}")
    if record is None:
        raise FormatError(f"{region.path}: the archive has no record {f'{folder}data/{key}'!r}, which a tensor needs.")
    return Storage("", record.size, find=lambda: locate(region, record).base)


def _claimed(region: Region, storage: Storage, dtype: str, key: str, count: int) -> Storage:
    """Return the storage with the element type claimed, after a check that the record has that many elements."""
    claimed = count * itemsize(dtype)
    if not 0 <= claimed <= storage.nbytes:
        raise FormatError(
            f"{region.path}: storage {key!r} claims {claimed:,} bytes, its record has {storage.nbytes:,}."
        )
    return Storage(dtype, claimed, find=storage.locate)


def _check_order(region: Region, records: Mapping[str, Record], folder: str) -> None:
    record = records.get(f"{folder}byteorder")
    if record is not None and record.size < 16 and locate(region, record).read(0, record.size) == b"big":
        raise FormatError(f"{region.path} was written on a big-endian machine; save it again on a little-endian one.")
