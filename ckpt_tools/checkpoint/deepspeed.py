"""DeepSpeed's ZeRO folders: the weights, and nothing of the optimizer but its float32 copies of them.

Stages 1 and 2 keep whole weights, in the precision they are computed with, in `mp_rank_00_model_states.pt`. The float32
copies that the optimizer updates are cut up: per group of parameters one flat array, a part of it on each rank (stages
1 and 2), or per rank a flat array of its part of each parameter in turn (stage 3, where nothing else has the weights).
They are put together tensor by tensor, without a copy of the whole. Order and padding follow DeepSpeed's
zero_to_fp32.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from ..errors import FormatError
from .checkpoint import Opened
from .inert import Instance
from .leaves import Leaf, StoredTensor
from .localfile import LocalFile
from .location import Location, open_file
from .magic import HEAD
from .raw import Extent
from .region import Region
from .shards import check_inside
from .source import Skip, TensorSource
from .strided import JoinedExtent, Piece, place
from .torchlegacy import is_torch_legacy, read_object
from .torchzip import load_archive
from .tree import tree_source
from .ziprecords import read_directory

FP32 = "fp32"
_MODEL = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_SLICED = re.compile(r"zero_pp_rank_(\d+)_mp_rank_(\d+)_model_states\.pt")
_OPTIMIZER = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_EXPERT = re.compile(r"layer_\d+_expert_\d+_mp_rank_\d+_model_states\.pt")
_PIPELINE = re.compile(r"layer_\d+-model_\d+-model_states\.pt")
_FLAT = ("single_partition_of_fp32_groups", "fp32_flat_groups", "fp32_groups")
_MAX_RANKS = 4_096


def is_deepspeed(names: Collection[str]) -> bool:
    """Return whether a folder with these names was written by DeepSpeed."""
    return any(pattern.fullmatch(name) for name in names for pattern in (_MODEL, _SLICED, _PIPELINE))


def open_deepspeed(
    folder: Location, names: Collection[str], open_source: Callable[[Location], TensorSource], part: str = ""
) -> Opened:
    """Return the weights of a ZeRO folder; `part="fp32"` means the optimizer's float32 copies of them.

    Raises FormatError for a folder that is incomplete, or whose weights are sliced in a way that it does not tell.
    """
    optimizer = sorted((int(m[1]), name) for name in names if (m := _OPTIMIZER.fullmatch(name)))
    whole = sorted(name for name in names if _MODEL.fullmatch(name))
    ranks = {m[2] for name in names if (m := _OPTIMIZER.fullmatch(name) or _SLICED.fullmatch(name))}
    if len(whole) > 1 or len(ranks) > 1:
        raise FormatError(
            f"{folder} is tensor-parallel: each rank's file has a slice of every matrix. Open one by name."
        )
    if any(_PIPELINE.fullmatch(name) for name in names):
        raise FormatError(f"{folder} is pipeline-parallel: one file per layer. Open one of them by name.")
    if whole and part != FP32:
        experts = sorted(name for name in names if _EXPERT.fullmatch(name))
        return _whole(folder, whole + experts, [name for _, name in optimizer], open_source)
    states = whole or sorted(name for name in names if _SLICED.fullmatch(name))
    source = _Partitions(folder, states[0], [name for _, name in optimizer]).source()
    return Opened([source], source.format)


def _whole(
    folder: Location, names: list[str], optimizer: list[str], open_source: Callable[[Location], TensorSource]
) -> Opened:
    for name in names:
        check_inside(folder, name)
    reason = f"optimizer state; part {FP32!r} opens its float32 copies of the weights"
    sources = [open_source(folder / name) for name in names]
    return Opened(sources, "DeepSpeed ZeRO", skipped=[Skip(name, reason) for name in optimizer])


@dataclass(frozen=True)
class MergedTensor(Leaf):
    """A tensor put together from partitions."""

    extent: Extent

    def place(self, name: str, region: Region) -> Extent | str:
        """Return the extent."""
        return self.extent


class _Partitions:
    """The flat partitions of all ranks, and what they are made of."""

    def __init__(self, folder: Location, states: str, optimizer: list[str]) -> None:
        if not optimizer:
            raise FormatError(
                f"{folder} has no files of optimizer states, which alone hold the weights it is asked for."
            )
        if len(optimizer) > _MAX_RANKS:
            raise FormatError(f"{folder}: {len(optimizer):,} ranks; at most {_MAX_RANKS:,} are put together.")
        self.folder, self.files = folder, [open_file(folder / states).local()]
        self.model = self._load(states, self.files[0])
        if not isinstance(self.model.get("param_shapes"), (dict, list)):
            raise FormatError(f"{folder / states} does not say which parameters the partitions are made of.")
        self.stage = self.world = 0
        self.ranks = [list(self._groups(name)) for name in optimizer]
        if self.world not in (0, len(optimizer)):
            raise FormatError(f"{folder}: optimizer states of {len(optimizer)} of {self.world} ranks are there.")
        if len({len(groups) for groups in self.ranks}) != 1:
            raise FormatError(f"{folder}: the ranks have different numbers of groups of parameters.")

    def source(self) -> TensorSource:
        """Return the float32 weights."""
        merged = dict(self._by_rank() if self.stage == 3 else self._by_group())
        tree: dict[str, Any] = {key: value for key, value in self.model.items() if key != "module"}
        tree["module"] = {name: MergedTensor(extent) for name, extent in merged.items()} | self._buffers()
        region = Region.whole(self.files[0])
        source = tree_source(region, tree, f"DeepSpeed ZeRO stage {self.stage} (float32)")
        source.aliases = {**source.aliases, **self._shared(merged)}
        source.also_close = self._close
        self._close()
        return source

    def _load(self, name: str, file: LocalFile) -> Mapping[Any, Any]:
        check_inside(self.folder, name)
        region = Region.whole(file)
        legacy = is_torch_legacy(region.head(min(HEAD, region.size)))
        value = read_object(region).value if legacy else load_archive(region, read_directory(region)).value
        if not isinstance(value, dict):
            raise FormatError(f"{file.path} is no file of DeepSpeed: it holds {type(value).__name__}.")
        return value

    def _groups(self, name: str) -> Iterator[Piece]:
        """Yield where the flat groups of one rank lie."""
        file = open_file(self.folder / name).local()
        self.files.append(file)
        state = self._load(name, file).get("optimizer_state_dict")
        found = state if isinstance(state, dict) else {}
        groups = next((found[key] for key in _FLAT if isinstance(found.get(key), list)), None)
        if groups is None:
            raise FormatError(f"{file.path} holds no float32 partitions of the weights.")
        self.stage = _number(found.get("zero_stage"), 3 if "fp32_flat_groups" in found else 2)
        self.world = _number(found.get("partition_count"), 0)
        for leaf in groups:
            extent = leaf.place("partition", Region.whole(file)) if isinstance(leaf, StoredTensor) else None
            if type(extent) is not Extent or extent.dtype != "float32" or len(extent.shape) != 1:
                raise FormatError(f"{file.path}: a partition is no flat array of float32.")
            yield Piece(file, extent.offset, extent.nbytes)

    def _shapes(self) -> list[list[tuple[str, tuple[Any, ...]]]]:
        """Return names and shapes of the parameters, per group."""
        listed = self.model["param_shapes"]
        groups = listed if isinstance(listed, list) else [listed]
        if not all(isinstance(group, dict) for group in groups):
            raise FormatError(f"{self.files[0].path}: the shapes of its parameters are malformed.")
        return [[(str(name), shape if isinstance(shape, tuple) else ()) for name, shape in g.items()] for g in groups]

    def _by_group(self) -> Iterator[tuple[str, Extent]]:
        """Stages 1 and 2: a group's parameters follow each other through the ranks' parts of it."""
        shapes = self._shapes()
        if len(shapes) != len(self.ranks[0]):
            raise FormatError(f"{self.folder}: {len(shapes)} groups of parameters, {len(self.ranks[0])} of partitions.")
        align = 2 * len(self.ranks)
        for number, group in enumerate(shapes):
            parts, at = [rank[number] for rank in self.ranks], 0
            for name, shape in group:
                extent, at = self._cut(name, shape, parts, at)
                yield name, extent
            total = sum(part.nbytes for part in parts) // 4
            if -(-(at // 4) // align) != -(-total // align):
                raise FormatError(
                    f"{self.folder}: group {number} has {at // 4:,} parameters, its partitions {total:,}."
                )

    def _by_rank(self) -> Iterator[tuple[str, Extent]]:
        """Stage 3: each rank has its part of every parameter, padded to equal lengths."""
        world, at = len(self.ranks), 0
        for name, shape in (pair for group in self._shapes() for pair in group):
            whole = self._checked(name, shape)
            count = 4 * -(-prod(whole.shape) // world)
            pieces = [piece for rank in self.ranks for piece in _slice(rank, at, count)]
            if sum(piece.nbytes for piece in pieces) != count * world:
                raise FormatError(f"{self.folder}: the partitions end within {name!r}.")
            yield name, JoinedExtent("float32", whole.shape, 0, tuple(pieces))
            at += count
        if any(sum(part.nbytes for part in rank) != at for rank in self.ranks):
            raise FormatError(f"{self.folder}: the partitions go on after the last parameter.")

    def _cut(self, name: str, shape: tuple[Any, ...], parts: list[Piece], at: int) -> tuple[Extent, int]:
        whole = self._checked(name, shape)
        pieces = tuple(_slice(parts, at, whole.nbytes))
        if sum(piece.nbytes for piece in pieces) != whole.nbytes:
            raise FormatError(f"{self.folder}: the partitions end within {name!r}.")
        return JoinedExtent("float32", whole.shape, 0, pieces), at + whole.nbytes

    def _checked(self, name: str, shape: tuple[Any, ...]) -> Extent:
        room = sum(part.nbytes for rank in self.ranks for part in rank)
        whole = place(f"{self.files[0].path}: parameter {name[:200]!r}", "float32", shape, None, 0, room)
        if isinstance(whole, str):
            raise FormatError(f"{self.files[0].path}: parameter {name[:200]!r}: {whole}.")
        return whole

    def _buffers(self) -> dict[str, Any]:
        module, names = self.model.get("module"), self.model.get("buffer_names")
        if not isinstance(module, dict) or not isinstance(names, list):
            return {}
        return {name: module[name] for name in names if isinstance(name, str) and name in module}

    def _shared(self, merged: Mapping[str, Extent]) -> dict[str, str]:
        pairs = self.model.get("shared_params")
        listed = list(pairs.items()) if isinstance(pairs, dict) else pairs if isinstance(pairs, list) else []
        couples = [tuple(pair) for pair in listed if isinstance(pair, (list, tuple)) and len(pair) == 2]
        return {str(alias): str(name) for alias, name in couples if str(name) in merged and str(alias) not in merged}

    def _close(self) -> None:
        for file in self.files:
            file.close()


def _slice(parts: list[Piece], start: int, nbytes: int) -> Iterator[Piece]:
    """Yield what of a range of bytes lies in each of the parts, which follow each other."""
    at = 0
    for part in parts:
        low, high = max(start, at), min(start + nbytes, at + part.nbytes)
        if low < high:
            yield Piece(part.file, part.offset + low - at, high - low)
        at += part.nbytes


def _number(value: Any, default: int) -> int:
    """Return the stage, which newer versions store as an enumeration, or the ranks, counted per group by some."""
    if isinstance(value, Instance) and value.args:
        value = value.args[0]
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value if type(value) is int else default
