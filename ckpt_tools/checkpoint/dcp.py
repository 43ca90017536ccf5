"""Folders of torch.distributed.checkpoint (DCP), which FSDP, torchtitan and Megatron-Core write too.

`.metadata` is a pickle: for each tensor its size and the boxes it was cut into, for each box the file and the bytes of
an archive by `torch.save` that holds it. torch itself reads `.metadata` with `pickle.load`; here it is data. Nothing
else is read when a folder is opened, apart from step counters, and later only the boxes that a range of rows touches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..errors import FormatError
from .facts import COUNTERS
from .inert import Instance
from .leaves import Leaf, Unreadable
from .localfile import ByteFile
from .location import Location, open_file
from .pickles import unpickle
from .raw import Extent
from .region import Region
from .shards import check_inside, check_name
from .source import Array, TensorSource
from .strided import PackedExtent, StridedSource, place
from .torchtypes import TORCH_BUILDERS, tensor_dtype
from .torchzip import load_archive
from .tree import tree_source
from .ziprecords import read_directory

INDEX = ".metadata"
_SCALE = 4
_MAX_BOXES = 1_024
_SMALL = 2**16
_OWN = "torch.distributed.checkpoint."


@dataclass(frozen=True, slots=True)
class Box:
    """A piece of a tensor: where it begins in it, its sizes, and the archive that holds it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    at: int
    length: int


def open_dcp(folder: Location, part: str = "") -> TensorSource:
    """Return the tensors of a DCP folder. Raises FormatError for a damaged, incomplete or hostile one."""
    region = Region.whole(open_file(folder / INDEX))
    loaded = unpickle(region, builders=TORCH_BUILDERS, scale=_SCALE)
    region.file.close()
    facts = loaded.value.fields if isinstance(loaded.value, Instance) else {}
    tensors, stored = facts.get("state_dict_metadata"), facts.get("storage_data")
    if not isinstance(tensors, dict) or not isinstance(stored, dict):
        raise FormatError(f"{folder / INDEX} is no index of torch.distributed.checkpoint.")
    shards = Shards(folder)
    places = dict(_places(folder, stored))
    leaves = {name: _leaf(shards, name, what, places) for name, what in tensors.items() if isinstance(name, str)}
    shards.check({place[0] for place in places.values()})
    unknown = [name for name in loaded.unknown if not name.startswith(_OWN)]
    tree = _nested(leaves, facts.get("planner_data"))
    source = shards.adopt(tree_source(region, tree, "torch.distributed.checkpoint", unknown=unknown, part=part))
    shards.close()
    return source


_Place = tuple[str, int, int, bool]


def _places(folder: Location, stored: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, Any], _Place]]:
    """Yield (tensor name, offsets or None) and where that box is stored, in a file checked to be the folder's own."""
    for key, info in stored.items():
        index = key.fields if isinstance(key, Instance) else {}
        found = info.fields if isinstance(info, Instance) else {}
        match index.get("fqn"), found.get("relative_path"), found.get("offset"), found.get("length"):
            case str() as name, str() as file, int() as at, int() as length if at >= 0 and length >= 0:
                check_name(folder / INDEX, file)
                offset = index.get("offset")
                piece = f"{folder / INDEX}: a piece of {name[:200]!r}"
                where = (name, None if offset is None else _sizes(piece, offset))
                yield where, (file, at, length, bool(found.get("transform_descriptors")))
            case _:
                raise FormatError(f"{folder / INDEX}: where a tensor is stored is malformed.")


def _leaf(shards: Shards, name: str, what: Any, places: Mapping[tuple[str, Any], _Place]) -> Any:
    fields = what.fields if isinstance(what, Instance) else {}
    if "chunks" not in fields:
        return _small_value(shards, name, places.get((name, None)))
    where = f"{shards.folder / INDEX}: tensor {name[:200]!r}"
    properties = fields.get("properties")
    state = properties.state if isinstance(properties, Instance) else None
    kind = state[0] if isinstance(state, tuple) and state else getattr(properties, "fields", {}).get("dtype")
    whole = place(where, tensor_dtype(kind), _sizes(where, fields.get("size")), None, 0, 2**60)
    if isinstance(whole, str):
        return Unreadable(whole)
    chunks = fields["chunks"] if isinstance(fields["chunks"], list) and whole.nbytes else []
    boxes = [(box, changed) for box, changed in (_box(where, name, c, places) for c in chunks) if prod(box.sizes)]
    if any(transformed for _, transformed in boxes):
        return Unreadable("its bytes were transformed (compressed) when it was saved")
    reason = _check_cover(where, whole.shape, [box for box, _ in boxes])
    tensor = BoxedExtent(whole.dtype, whole.shape, 0, tuple(box for box, _ in boxes), shards)
    return Unreadable(reason) if reason else BoxedTensor(tensor)


def _sizes(where: str, value: Any) -> tuple[int, ...]:
    if not (isinstance(value, tuple) and all(type(n) is int and n >= 0 for n in value)):
        raise FormatError(f"{where} has no size.")
    return value


def _box(where: str, name: str, chunk: Any, places: Mapping[tuple[str, Any], _Place]) -> tuple[Box, bool]:
    fields = chunk.fields if isinstance(chunk, Instance) else {}
    offsets, sizes = _sizes(where, fields.get("offsets")), _sizes(where, fields.get("sizes"))
    if (name, offsets) not in places:
        raise FormatError(f"{where}: its piece at {list(offsets)} is stored nowhere; the save is not complete.")
    file, at, length, transformed = places[name, offsets]
    return Box(offsets, sizes, file, at, length), transformed


def _check_cover(where: str, shape: tuple[int, ...], boxes: list[Box]) -> str:
    """Raise unless the boxes cover the tensor exactly; return why that cannot be told, if so."""
    if any(len(box.offsets) != len(shape) or len(box.sizes) != len(shape) for box in boxes):
        raise FormatError(f"{where}: its pieces have another number of axes than its shape {list(shape)}.")
    if len(boxes) > _MAX_BOXES:
        return f"it is cut into {len(boxes):,} pieces; at most {_MAX_BOXES:,} are put together"
    first = np.array([box.offsets for box in boxes], np.int64).reshape(len(boxes), len(shape))
    last = first + np.array([box.sizes for box in boxes], np.int64).reshape(first.shape)
    apart = (last[:, None] <= first[None]) | (last[None] <= first[:, None])
    overlap = (~apart.any(axis=-1)).sum() > len(boxes)
    if overlap or (last > np.array(shape)).any() or sum(prod(box.sizes) for box in boxes) != prod(shape):
        raise FormatError(f"{where}: its {len(boxes)} pieces do not make up its shape {list(shape)}.")
    return ""


def _nested(leaves: Mapping[str, Any], paths: Any) -> dict[str, Any]:
    """Return the tree that was saved: DCP flattens it and keeps the path of each name."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        path = paths.get(name) if isinstance(paths, dict) else None
        keys = [str(key) for key in path] if isinstance(path, tuple) and path else [name]
        box = tree
        for key in keys[:-1]:
            inner = box.setdefault(key, {})
            box = inner if isinstance(inner, dict) else tree
        box[keys[-1]] = leaf
        if len(keys) > 1 and keys[-1] in COUNTERS and type(leaf) is int:
            tree.setdefault(keys[-1], leaf)
    return tree


def _small_value(shards: Shards, name: str, where: _Place | None) -> Any:
    """Return a step counter, which DCP pickles like any other object; None for everything else."""
    if name.rpartition(".")[2] not in COUNTERS or where is None or where[2] > _SMALL or where[3]:
        return None
    shards.check({where[0]})
    region = shards.region(where[0], where[1], where[2])
    return load_archive(region, read_directory(region)).value


@dataclass(frozen=True)
class BoxedTensor(Leaf):
    """A tensor in boxes."""

    extent: Extent

    def place(self, name: str, region: Region) -> Extent | str:
        """Return the extent."""
        return self.extent


class Shards:
    """The files of a folder, and the archives in them that have been looked into."""

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self._files: dict[str, ByteFile] = {}
        self._boxes: dict[Box, StridedSource] = {}

    def check(self, names: set[str]) -> None:
        """Raise FormatError unless all files are there and are the folder's own."""
        missing = sorted(name for name in names if not (self.folder / name).exists())
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            listed = ", ".join(missing[:5])
            raise FormatError(f"{self.folder}: {len(missing)} of {len(names)} files missing: {listed}{more}.")
        for name in names:
            check_inside(self.folder, name)

    def region(self, name: str, at: int, length: int) -> Region:
        """Return a part of a file."""
        if name not in self._files:
            self._files[name] = open_file(self.folder / name)
        return Region.whole(self._files[name]).part(at, length)

    def rows(self, box: Box, dtype: str, first: int, count: int) -> Array:
        """Return rows of a box, elements as stored. Raises FormatError when its archive holds something else."""
        if box not in self._boxes:
            region = self.region(box.file, box.at, box.length)
            value = load_archive(region, read_directory(region)).value
            extent = value.place("piece", region) if isinstance(value, Leaf) else "it holds no tensor"
            if isinstance(extent, str) or (extent.dtype, extent.shape) != (dtype, box.sizes):
                raise FormatError(
                    f"{region.path}: the piece at byte {box.at:,} should be a tensor {dtype} {list(box.sizes)}, but "
                    + (extent if isinstance(extent, str) else f"is {extent.dtype} {list(extent.shape)}")
                )
            self._boxes[box] = StridedSource(region.file, {"piece": extent}, 0)
        return self._boxes[box].stored_rows("piece", first, count)

    def adopt(self, source: StridedSource) -> StridedSource:
        """Make closing the source close all files."""
        source.also_close = self.close
        return source

    def close(self) -> None:
        """Release all handles."""
        for file in self._files.values():
            file.close()


@dataclass(frozen=True, slots=True)
class BoxedExtent(PackedExtent):
    """A tensor put together from boxes."""

    boxes: tuple[Box, ...] = ()
    shards: Shards | None = None

    def fetch(self, first: int, out: Array) -> int:
        """Fill `out` with whole rows from the boxes they touch; see `PackedExtent`."""
        assert self.shards is not None
        if not self.shape:
            out[...] = self.shards.rows(self.boxes[0], self.dtype, 0, 1)
            return out.nbytes
        inner = prod(self.shape[1:])
        start, target = first // inner, out.reshape(-1, *self.shape[1:])
        stop, count = start + len(target), 0
        for box in self.boxes:
            low, high = max(start, box.offsets[0]), min(stop, box.offsets[0] + box.sizes[0])
            if low < high:
                rows = self.shards.rows(box, self.dtype, low - box.offsets[0], high - low)
                across = (slice(at, at + size) for at, size in zip(box.offsets[1:], box.sizes[1:], strict=True))
                target[(slice(low - start, high - start), *across)] = rows
                count += rows.nbytes
        return count
