"""What a tree of nested containers ends in: tensors, each of which knows where its elements lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import FormatError
from .raw import Extent
from .region import Region
from .source import Skip
from .strided import PackedExtent, StridedExtent, place


class Leaf(ABC):
    """A tensor somewhere in a file."""

    @abstractmethod
    def place(self, name: str, region: Region) -> Extent | str:
        """Return where its bytes lie (from the beginning of the file), or a text that says why it cannot be read.

        Raises FormatError when it claims what its file does not have.
        """


@dataclass(frozen=True, slots=True)
class Unreadable(Leaf):
    """A tensor of a kind that is not read, for `reason`."""

    reason: str

    def place(self, name: str, region: Region) -> Extent | str:
        """Return the reason."""
        return self.reason


@dataclass(slots=True, eq=False)
class Storage:
    """A run of `nbytes` bytes of a file that tensors share.

    `offset`, from the file's beginning, may come later, or be looked up by `find` when a tensor needs it.
    """

    dtype: str
    nbytes: int
    offset: int = -1
    find: Callable[[], int] | None = None

    def locate(self) -> int:
        """Return the offset, negative when the storage is not in the file."""
        if self.offset < 0 and self.find is not None:
            self.offset = self.find()
        return self.offset


@dataclass(frozen=True, slots=True)
class StoredTensor(Leaf):
    """A view of a storage: `first` and `strides` count elements."""

    dtype: str
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]
    first: Any
    itemsize: int
    storage: Storage

    def place(self, name: str, region: Region) -> Extent | str:
        """Return where its bytes lie, or why it cannot be read; see `Leaf`."""
        if type(self.first) is not int or not 0 <= self.first < 2**60:
            raise FormatError(f"{region.path}: tensor {name!r} begins at element {self.first!r:.40} of its storage.")
        offset, skipped = self.storage.locate(), self.first * self.itemsize
        if offset < 0:
            raise FormatError(f"{region.path}: the storage of tensor {name!r} is not in the file.")
        start, room = offset + skipped, self.storage.nbytes - skipped
        return place(f"{region.path}: tensor {name!r}", self.dtype, self.shape, self.strides, start, room)


@dataclass
class Placed:
    """Extents by name, in the order they lie in the file; names that share one; and what cannot be read."""

    extents: dict[str, Extent]
    aliases: dict[str, str]
    skipped: list[Skip]


def place_all(leaves: Iterable[tuple[str, Leaf]], region: Region) -> Placed:
    """Return where all tensors lie. Of names for the very same view, the first one is kept, the others are aliases."""
    found: dict[str, Extent] = {}
    first: dict[Any, str] = {}
    placed = Placed({}, {}, [])
    for name, leaf in leaves:
        extent = leaf.place(name, region)
        if isinstance(extent, str):
            placed.skipped.append(Skip(name, extent))
            continue
        kept = first.setdefault(_identity(extent, leaf), name)
        if kept == name:
            found[name] = extent
        else:
            placed.aliases[name] = kept
    placed.extents = dict(sorted(found.items(), key=lambda item: item[1].offset))
    return placed


def _identity(extent: Extent, leaf: Leaf) -> Any:
    if isinstance(extent, PackedExtent) or not extent.nbytes:
        return id(leaf), id(extent)
    strides = extent.strides if isinstance(extent, StridedExtent) else None
    memory = id(extent.memory) if isinstance(extent, StridedExtent) and extent.memory is not None else None
    return extent.dtype, extent.shape, extent.offset, strides, memory
