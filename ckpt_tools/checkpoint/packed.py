"""Long rows of small things in little memory: each thing is made when it is asked for.

An object per checkpoint, with its path, takes a kilobyte; ten thousand of them would be more than all else an analysis
keeps of a trajectory.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import SourceError
from .location import Location, RemotePath
from .log import Record
from .series import Series

_NONE = Record(0, 0, 0, 0, 0, 0)
"""Stands for no record: those there are say `every` which word they checked."""


T = TypeVar("T")


class Lazy(Sequence[T]):
    """A sequence of what `make` makes; a slice is a list."""

    @abstractmethod
    def make(self, at: int) -> T:
        """Return the item at a place from 0 to the length."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        places = range(len(self))[index]
        return [self.make(at) for at in places] if isinstance(places, range) else self.make(places)


class Texts(Lazy[str]):
    """Texts in one piece of memory, all with the same `start` before them; what all begin with is kept once."""

    def __init__(self, texts: Sequence[str], start: str = "") -> None:
        common = _common(texts)
        self._start, self._data = start + common, bytearray()
        self._ends = np.zeros(len(texts) + 1, np.uint32)
        for at, text in enumerate(texts, 1):
            # Names of files may hold lone surrogates, for bytes that are no UTF-8.
            self._data += text[len(common) :].encode("utf-8", "surrogatepass")
            self._ends[at] = len(self._data)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def make(self, at: int) -> str:
        """Return a text."""
        return self._start + self._data[self._ends[at] : self._ends[at + 1]].decode("utf-8", "surrogatepass")


def _common(texts: Sequence[str]) -> str:
    """Return what all texts begin with."""
    low, high = min(texts, default=""), max(texts, default="")
    differ = (at for at, (one, other) in enumerate(zip(low, high, strict=False)) if one != other)
    return low[: next(differ, len(low))]


class Members(Lazy[tuple[int, Location]]):
    """The checkpoints of a series in one folder as (number, path)."""

    def __init__(self, folder: Location, series: Series) -> None:
        self._folder, self._series = folder, series

    def entries(self) -> Entries:
        """Return these as entries of a trajectory; paths on this machine are not made for that."""
        if not isinstance(self._folder, Path):
            return Entries.of(Entry(*pair) for pair in self)
        return Entries(self._series.numbers, Texts(self._series.names, str(self._folder / "_")[:-1]))

    def __len__(self) -> int:
        return len(self._series)

    def make(self, at: int) -> tuple[int, Location]:
        """Return number and path of a checkpoint."""
        return self._series.numbers[at], self._folder / self._series.names[at]


class Entry(NamedTuple):
    """Where the checkpoint of a step lies: a folder or file, or a record in the log `path`."""

    step: int
    path: Location
    record: Record | None = None

    @property
    def local(self) -> Path:
        """The path on this machine; raises SourceError for a URL."""
        if not isinstance(self.path, Path):
            raise SourceError(f"{self.path} is not on this machine; copy it here first.")
        return self.path


class Entries(Lazy[Entry]):
    """Where the checkpoints of a trajectory lie, by ascending step; `steps` are the numbers."""

    def __init__(
        self,
        steps: Sequence[int] = (),
        places: Sequence[str | RemotePath] = (),
        records: Sequence[Record | None] = (),
    ) -> None:
        self.steps: NDArray[np.int64] = np.array(steps, dtype=np.int64)
        self._places = places
        self._records = np.array([record or _NONE for record in records], dtype=np.uint64) if any(records) else None

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Entries:
        """Return these entries, packed."""
        steps: list[int] = []
        places: list[str | RemotePath] = []
        records: list[Record | None] = []
        for step, path, record in entries:
            steps.append(step)
            places.append(str(path) if isinstance(path, Path) else path)
            records.append(record)
        local = [place for place in places if isinstance(place, str)]
        return cls(steps, Texts(local) if len(local) == len(places) else places, records)

    def at(self, step: int) -> Entry | None:
        """Return the entry of a step, None when there is none."""
        index = int(np.searchsorted(self.steps, step))
        return self[index] if index < len(self) and self.steps[index] == step else None

    def __len__(self) -> int:
        return len(self.steps)

    def make(self, at: int) -> Entry:
        """Return where a checkpoint lies."""
        place = self._places[at]
        return Entry(int(self.steps[at]), Path(place) if isinstance(place, str) else place, self._record(at))

    def _record(self, index: int) -> Record | None:
        if self._records is None:
            return None
        record = Record(*self._records[index].tolist())
        return record if record.every else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entries) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]
