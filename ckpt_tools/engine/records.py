"""Records as bytes, and what a journal holds of many steps as sequences that load what they are asked for."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, overload

import numpy as np

from ..checkpoint.packed import Lazy
from ..results import Record

Array = np.ndarray[Any, Any]

_FRONT = struct.Struct("<qI")
_LOADED = 1024


class Records(Lazy[Record]):
    """Finished units in the order of their steps: memory does not grow with the trajectory but for the numbers."""

    def __init__(self, load: Callable[[int], Record], steps: Array) -> None:
        self._load, self._steps = load, steps

    def __len__(self) -> int:
        return len(self._steps)

    def make(self, at: int) -> Record:
        """Return the unit of a step."""
        return self._load(int(self._steps[at]))


class Column(Sequence[str]):
    """A text for each of these steps, "" where there is none; some are loaded at a time."""

    def __init__(self, load: Callable[[int, int], Mapping[int, str]], steps: Array) -> None:
        self._load, self._steps = load, steps

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        steps: list[int] = np.atleast_1d(self._steps[index]).tolist()
        found = self._load(min(steps), max(steps)) if steps else {}
        texts = [found.get(step, "") for step in steps]
        return texts if isinstance(index, slice) else texts[0]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _LOADED):
            yield from self[start : start + _LOADED]


def encode(record: Record) -> bytes:
    """Return a record as bytes: step, length of the header, the header in JSON, which holds the texts, the arrays."""
    arrays: list[bytes] = []
    header = {
        "values": {name: _described(array, arrays) for name, array in record.values.items()},
        "labels": {dim: _described(np.asarray(of), arrays) for dim, of in record.labels.items()},
    }
    text = json.dumps(header).encode()
    return b"".join([_FRONT.pack(record.step, len(text)), text, *arrays])


def _described(array: Array, arrays: list[bytes]) -> dict[str, Any]:
    if array.dtype.kind == "U":
        return {"shape": array.shape, "text": array.ravel().tolist()}
    data = np.ascontiguousarray(array)
    arrays.append(data.tobytes())
    return {"shape": array.shape, "dtype": data.dtype.str}


def decode(data: bytes) -> Record:
    """Return the record of `encode`; its arrays are read-only."""
    step, length = _FRONT.unpack_from(data)
    start = _FRONT.size + length
    values, labels = _parts(data[_FRONT.size : start])
    return Record(
        step,
        {name: part.of(data, start) for name, part in values.items()},
        {dim: part.of(data, start) if part.text is None else part.text.tolist() for dim, part in labels.items()},
    )


@dataclass(frozen=True)
class _Part:
    """Where one array lies behind the header, or its texts."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    at: int
    text: Array | None

    def of(self, data: bytes, start: int) -> Array:
        if self.text is not None:
            return self.text
        return np.frombuffer(data, self.dtype, prod(self.shape), start + self.at).reshape(self.shape)


@lru_cache(maxsize=64)
def _parts(header: bytes) -> tuple[dict[str, _Part], dict[str, _Part]]:
    """Return what a header describes; successive steps of one analyzer mostly share theirs."""
    at, found = 0, []
    for described in json.loads(header).values():
        parts = {}
        for name, how in described.items():
            shape, dtype = tuple(how["shape"]), np.dtype(how.get("dtype", "U1"))
            text = np.array(how["text"], dtype=np.str_).reshape(shape) if "text" in how else None
            parts[name] = _Part(shape, dtype, at, text)
            at += 0 if text is not None else dtype.itemsize * prod(shape)
        found.append(parts)
    return found[0], found[1]
