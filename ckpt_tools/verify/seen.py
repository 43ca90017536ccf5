"""The sightings of a whole trajectory in eight bytes per digest: what checkpoints have in common is kept once."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.packed import Lazy
from .sighting import Digests, Held, Sighting

Column = tuple[NDArray[np.intp], NDArray[Any]]
"""Positions of checkpoints, and the digest of a tensor in each: numbers, or texts."""


class _Table:
    """Digests of the checkpoints that hold the same tensors and had the same ones read, row after row."""

    def __init__(self, tensors: Mapping[str, Held], names: Mapping[str, int]) -> None:
        self.tensors, self.names = tensors, names
        self.mark = repr(list(names)).encode()
        self._data, self._rows = bytearray(), 0
        self._width = Digests.SIZE * len(names)

    def add(self, data: bytes) -> int:
        """Append the digests of a checkpoint; return the number of their row."""
        self._data += data
        self._rows += 1
        return self._rows - 1

    def row(self, number: int) -> bytes:
        """Return the digests of a checkpoint."""
        return bytes(self._data[number * self._width : (number + 1) * self._width])

    def column(self, name: str) -> NDArray[np.uint64]:
        """Return the digests of one tensor, a number each, by row."""
        return np.frombuffer(self._data, ">u8").reshape(self._rows, -1)[:, self.names[name]].astype(np.uint64)


class Seen(Mapping[int, Sighting]):
    """Sightings by ascending step, each made when it is asked for.

    By step, `nonfinite` are the tensors that are not finite, if any; `stored` is the step inside, where that is another
    number or none.
    """

    def __init__(self) -> None:
        self.nonfinite: dict[int, tuple[str, ...]] = {}
        self.stored: dict[int, int | None] = {}
        self._tables: list[_Table] = []
        self.steps, self._table, self._row = array("q"), array("L"), array("L")
        self._odd: dict[int, Mapping[str, str]] = {}

    def put(self, step: int, sighting: Sighting) -> None:
        """Keep a sighting, in place of an earlier one of that step."""
        at = bisect_left(self.steps, step)
        if at == len(self) or self.steps[at] != step:
            for column, value in ((self.steps, step), (self._table, 0), (self._row, 0)):
                column.insert(at, value)
        digests = Digests.of(sighting.digests)
        packed = digests if isinstance(digests, Digests) else Digests({}, b"")
        self._table[at] = self._table_of(sighting.tensors, packed)
        self._row[at] = self._tables[self._table[at]].add(packed.data)
        _note(self._odd, step, digests, packed)
        _note(self.nonfinite, step, sighting.nonfinite, ())
        _note(self.stored, step, sighting.stored, step)

    def _table_of(self, tensors: Mapping[str, Held], digests: Digests) -> int:
        for number in range(len(self._tables) - 1, -1, -1):
            table = self._tables[number]
            # Checkpoints that hold the same mostly share the objects that say so.
            names, held = table.names, table.tensors
            if (names is digests.names or names == digests.names) and (held is tensors or held == tensors):
                return number
        self._tables.append(_Table(tensors, digests.names))
        return len(self._tables) - 1

    def compared(self) -> dict[str, Held]:
        """Return the tensors of which any checkpoint has a digest."""
        found: dict[str, Held] = {}
        for table in (self._tables[number] for number in sorted(set(self._table))):
            found |= {name: table.tensors[name] for name in table.names if name not in found}
        for step, digests in self._odd.items():
            found |= {name: self[step].tensors[name] for name in digests if name not in found}
        return found

    def digests(self) -> Rows:
        """Return the digests of all checkpoints, by position."""
        return Rows(self)

    def at(self, position: int) -> tuple[_Table, int, Mapping[str, str] | None]:
        """Return where the digests of a checkpoint lie: table and row, or the digests themselves if of another kind."""
        return self._tables[self._table[position]], self._row[position], self._odd.get(self.steps[position])

    def column(self, name: str) -> Column | None:
        """Return the digests of a tensor; None where there are some of another kind."""
        if self._odd:
            return None
        table, row = (
            np.frombuffer(column, f"u{column.itemsize}").astype(np.intp) for column in (self._table, self._row)
        )
        found, known = np.zeros(len(self), np.uint64), np.zeros(len(self), np.bool_)
        for number, one in enumerate(self._tables):
            if name in one.names:
                here = table == number
                found[here], known[here] = one.column(name)[row[here]], True
        positions = np.flatnonzero(known)
        return positions, found[positions]

    def __getitem__(self, step: int) -> Sighting:
        at = bisect_left(self.steps, step)
        if at == len(self) or self.steps[at] != step:
            raise KeyError(step)
        table, stored = self._tables[self._table[at]], self.stored.get(step, step)
        return Sighting(table.tensors, Rows(self)[at], self.nonfinite.get(step, ()), stored)

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def _note(known: dict[int, Any], step: int, value: Any, usual: Any) -> None:
    known.pop(step, None)
    if value != usual:
        known[step] = value


class Rows(Lazy[Mapping[str, str]]):
    """The digests of the checkpoints of a trajectory, by position in the order of their steps."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def __len__(self) -> int:
        return len(self._seen)

    def make(self, at: int) -> Mapping[str, str]:
        """Return the digests of a checkpoint."""
        table, row, odd = self._seen.at(at)
        return Digests(table.names, table.row(row)) if odd is None else odd

    def column(self, name: str) -> Column:
        """Return where a tensor has a digest, and these digests."""
        packed = self._seen.column(name)
        return column_of(self, name) if packed is None else packed

    def marks(self) -> Iterator[bytes]:
        """Yield what is equal for checkpoints with equal digests, empty for one of which nothing was read."""
        for position in range(len(self)):
            table, row, odd = self._seen.at(position)
            yield mark_of(odd) if odd is not None else table.mark + table.row(row) if table.names else b""


def mark_of(digests: Mapping[str, str]) -> bytes:
    """Return what is equal for equal digests, empty for none."""
    return repr(sorted(digests.items())).encode() if digests else b""


def column_of(rows: Sequence[Mapping[str, str]], name: str) -> Column:
    """Return where a name has a digest, and these digests as texts."""
    known = [(position, row[name]) for position, row in enumerate(rows) if name in row]
    return np.array([at for at, _ in known], dtype=np.intp), np.array([digest for _, digest in known], dtype=object)


def as_text(digest: Any) -> str:
    """Return a digest of a column as text."""
    return digest if isinstance(digest, str) else f"{digest:0{2 * Digests.SIZE}x}"
