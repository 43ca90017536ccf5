"""Records as bytes, and the finished units of an analyzer as a sequence that loads each when it is indexed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..results import Record

Array = np.ndarray[Any, Any]


class Records(Sequence[Record]):
    """Finished units in the order of their steps: memory does not grow with the trajectory but for the numbers."""

    def __init__(self, load: Callable[[int], Record], steps: Array) -> None:
        self._load, self._steps = load, steps

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._load(int(step)) for step in self._steps[index]]
        return self._load(int(self._steps[index]))


def encode(record: Record) -> bytes:
    """Return a record as bytes: a JSON header, its length first, then the arrays in order; texts lie in the header."""
    arrays: list[bytes] = []
    header = {
        "step": record.step,
        "values": {name: _described(array, arrays) for name, array in record.values.items()},
        "labels": {dim: _described(np.asarray(of), arrays) for dim, of in record.labels.items()},
    }
    text = json.dumps(header).encode()
    return b"".join([len(text).to_bytes(4, "little"), text, *arrays])


def _described(array: Array, arrays: list[bytes]) -> dict[str, Any]:
    if array.dtype.kind == "U":
        return {"shape": array.shape, "text": array.ravel().tolist()}
    data = np.ascontiguousarray(array)
    arrays.append(data.tobytes())
    return {"shape": array.shape, "dtype": data.dtype.str}


def decode(data: bytes) -> Record:
    """Return the record of `encode`."""
    length = int.from_bytes(data[:4], "little")
    header = json.loads(data[4 : 4 + length])
    at = 4 + length
    found: dict[str, dict[str, Any]] = {"values": {}, "labels": {}}
    for part in found:
        for name, how in header[part].items():
            found[part][name], at = _array(how, data, at)
    labels = {dim: of.tolist() if of.dtype.kind == "U" else of for dim, of in found["labels"].items()}
    return Record(header["step"], found["values"], labels)


def _array(how: Mapping[str, Any], data: bytes, at: int) -> tuple[Array, int]:
    if "text" in how:
        return np.array(how["text"], dtype=np.str_).reshape(how["shape"]), at
    dtype = np.dtype(how["dtype"])
    size = dtype.itemsize * int(np.prod(how["shape"], dtype=np.int64))
    return np.frombuffer(data, dtype, size // dtype.itemsize, at).reshape(how["shape"]), at + size
