"""The bytes of one checkpoint as a safetensors file, laid out once per run.

A safetensors file is an 8-byte little-endian header length, a JSON header, and the tensors' bytes without gaps
(<https://huggingface.co/docs/safetensors>). All checkpoints of a run share names, dtypes and shapes, hence one header:
it is built once, padded with spaces to a multiple of 8, and every file of the run begins with the same bytes.
Tensors whose size is a multiple of 8 come first, then the others by falling item size: each starts at a multiple of its
own item size, and nearly all at a multiple of 8, so that a file can be summed word by word without being put together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any

import numpy as np

from ..errors import RunError

CODES = {
    "complex64": "C64",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
    "float32": "F32",
    "int32": "I32",
    "uint32": "U32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int16": "I16",
    "uint16": "U16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_WIDTHS = {"C64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1}

Array = np.ndarray[Any, np.dtype[np.uint8]]
Layout = dict[str, tuple[str, tuple[int, ...]]]


class TensorError(RunError):
    """Tensors cannot be stored, or are not those of the run's other checkpoints."""


class Template:
    """The header and tensor order that all checkpoints of a run share.

    `layout` maps each name to its dtype (`"float32"`) and shape, in file order; `size` is the bytes of each file.
    """

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        found = layout_of(tensors)
        order = sorted(found, key=lambda name: (_nbytes(*found[name]) % 8 != 0, -_itemsize(found[name][0])))
        self.layout: Layout = {name: found[name] for name in order}
        self.header = _header(self.layout)
        self.size = len(self.header) + sum(_nbytes(*entry) for entry in self.layout.values())
        self._known: list[Any] = []
        self._places: list[Any] = []
        self._buffers: list[memoryview] = []

    def buffers(self, tensors: Mapping[str, Any]) -> list[memoryview]:
        """Return header and tensor bytes in file order, without copying contiguous CPU memory.

        The same list comes again while the same tensors lie where they lay: to look costs a tenth of laying them out.
        Raises TensorError when names, dtypes or shapes are not those of the template.
        """
        if self._known and len(tensors) == len(self._known):
            ordered = list(map(tensors.get, self.layout))
            if all(map(is_, ordered, self._known)) and _places(ordered) == self._places:
                return self._buffers
        self._check(tensors)
        ordered = [tensors[name] for name in self.layout]
        buffers = [memoryview(self.header), *map(self._data, self.layout, ordered)]
        if all(map(_in_place, ordered)):  # kept alive by the buffers, so that nothing else can come to lie there
            self._known, self._places, self._buffers = ordered, _places(ordered), buffers
        return buffers

    def copy(self, tensors: Mapping[str, Any], out: Array) -> None:
        """Fill `out`, `size` bytes, with what `buffers` would return; tensors of a GPU arrive one by one."""
        self._check(tensors)
        at = len(self.header)
        out[:at] = np.frombuffer(self.header, np.uint8)
        for name, entry in self.layout.items():
            part = out[at : at + _nbytes(*entry)]
            at += len(part)
            if len(part):
                part[:] = np.frombuffer(self._data(name, tensors[name]), np.uint8)

    def _check(self, tensors: Mapping[str, Any]) -> None:
        if tensors.keys() != self.layout.keys():
            raise TensorError(_difference(self.layout, layout_of(tensors)))

    def _data(self, name: str, value: Any) -> memoryview:
        if _entry(name, value) != self.layout[name]:
            raise TensorError(_difference(self.layout, {**self.layout, name: _entry(name, value)}))
        return _bytes(value)


def _places(tensors: Sequence[Any]) -> list[Any]:
    """Return what changes when the memory behind a tensor does, or the way it is read."""
    from torch import Tensor

    # No other way to ask is as cheap, and it is asked at every step.
    return [*map(Tensor.data_ptr, tensors), *map(Tensor.numel, tensors), *map(Tensor.stride, tensors)]


def _in_place(tensor: Any) -> bool:
    """Return whether a tensor's bytes can be read where they are."""
    return hasattr(tensor, "is_cpu") and tensor.is_cpu and tensor.is_contiguous()


def layout_of(tensors: Mapping[str, Any]) -> Layout:
    """Return `{name: (dtype, shape)}` of torch tensors or numpy arrays. Raises TensorError for dtypes without code."""
    return {name: _entry(name, value) for name, value in tensors.items()}


def _entry(name: str, value: Any) -> tuple[str, tuple[int, ...]]:
    return _dtype(name, value), tuple(value.shape)


def _dtype(name: str, value: Any) -> str:
    dtype = getattr(value, "dtype", type(value).__name__)
    word = getattr(dtype, "name", None) or str(dtype).removeprefix("torch.")
    if word not in CODES:
        raise TensorError(
            f"Tensor {name!r} is of type {word}, which safetensors cannot hold. Convert it or leave it out."
        )
    return word


def _itemsize(dtype: str) -> int:
    code = CODES[dtype]
    return _WIDTHS.get(code) or int(code.lstrip("BFIU")) // 8


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * _itemsize(dtype)


def _header(layout: Layout) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in layout.items():
        start, end = end, end + _nbytes(dtype, shape)
        entries[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(value: Any) -> memoryview:
    if hasattr(value, "detach"):
        import torch

        # numpy has no bfloat16 and no float8; bytes it has.
        return memoryview(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    array: Any = np.asarray(value, dtype=value.dtype.newbyteorder("<"), order="C")
    return memoryview(array.reshape(-1).view(np.uint8))


def _difference(expected: Layout, got: Layout) -> str:
    missing, extra = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    if missing:
        return f"Tensor {missing[0]!r} is missing; all checkpoints of a run hold the same tensors."
    if extra:
        return f"Tensor {extra[0]!r} is new; all checkpoints of a run hold the same tensors."
    name = next(name for name in expected if expected[name] != got[name])
    (dtype, shape), (dtype_got, shape_got) = expected[name], got[name]
    return (
        f"Tensor {name!r} is {dtype_got} {list(shape_got)}, but {dtype} {list(shape)} in the run's other checkpoints."
    )
