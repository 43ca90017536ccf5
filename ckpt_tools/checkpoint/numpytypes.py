"""NumPy arrays, scalars and dtypes inside a pickle, rebuilt from what numpy's own `__reduce__` writes.

Array state: `(version, shape, dtype, is_fortran, bytes)`; dtype state: `(version, byte order, ...)`. Arrays of Python
objects and structured arrays are not read: their elements are not numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .dtypes import DTYPES
from .inert import Blob, Builder, Global, Stateful
from .leaves import Leaf, Unreadable
from .raw import Extent
from .region import Region
from .strided import place

_KINDS = {"f": "float", "i": "int", "u": "uint", "c": "complex"}


class NumpyType(Stateful):
    """A dtype: `name` as in `dtypes.DTYPES`, or any other text for one that cannot be read."""

    def __init__(self, code: str) -> None:
        code = code.lstrip("<>=|")
        kind, size = code[:1], code[1:]
        self.name = _SINGLE.get(code, code)
        if kind in _KINDS and size.isdigit() and len(size) < 3:
            self.name = f"{_KINDS[kind]}{8 * int(size)}"
        self.big_endian = False

    def restore(self, state: Any) -> None:
        """Take the byte order; a structured or object dtype loses its name."""
        if not (isinstance(state, tuple) and len(state) >= 2):
            raise ValueError("the state of a numpy dtype is malformed")
        self.big_endian = state[1] in (">", b">")
        if any(part is not None for part in state[2:5]):
            self.name = "structured"


_SINGLE = {"?": "bool", "b1": "bool", "e": "float16", "d": "float64", "V": "void", "O": "object", "O8": "object"}


class NumpyArray(Leaf, Stateful):
    """An array whose bytes are in the file (a `Blob`) or, where an old protocol encoded them as text, in memory."""

    def __init__(self) -> None:
        self.shape: tuple[Any, ...] = ()
        self.dtype, self.data, self.fortran = NumpyType("f8"), b"", False

    data: bytes | Blob

    def restore(self, state: Any) -> None:
        """Take shape, dtype, order and bytes."""
        match state:
            case (*_, tuple() as shape, NumpyType() as dtype, fortran, data) if len(state) in (4, 5):
                self.set(shape, dtype, bool(fortran), data)
            case _:
                raise ValueError("the state of a numpy array is malformed")

    def set(self, shape: tuple[Any, ...], dtype: NumpyType, fortran: bool, data: Any) -> None:
        """Fill in everything; `data` that is no byte string makes it an array of objects."""
        if isinstance(data, str):
            data = data.encode("latin-1")
        if not isinstance(data, (bytes, Blob)):
            dtype, data = NumpyType("O"), b""
        self.shape, self.dtype, self.fortran, self.data = shape, dtype, fortran, data

    def place(self, name: str, region: Region) -> Extent | str:
        """Return where its bytes lie, or why it cannot be read; see `Leaf`."""
        dtype = self.dtype
        if dtype.name not in DTYPES:
            return f"a numpy array of dtype {dtype.name[:40]!r}, not of numbers"
        if dtype.big_endian and DTYPES[dtype.name].stored.itemsize > 1:
            return "its numbers are big-endian"
        strides = fortran_strides(self.shape) if self.fortran and _are_sizes(self.shape) else None
        where = f"{region.path}: array {name!r}"
        if isinstance(self.data, Blob):
            return place(where, dtype.name, self.shape, strides, self.data.offset, self.data.size)
        return place(where, dtype.name, self.shape, strides, 0, len(self.data), self.data)

    def small(self) -> Any:
        """Return the value of a short array that is in memory as nested lists of numbers, else None."""
        if isinstance(self.data, Blob) or self.dtype.name not in DTYPES or self.dtype.big_endian or self.shape != ():
            return None
        return _number(self.dtype, self.data)


def _are_sizes(shape: tuple[Any, ...]) -> bool:
    return all(type(n) is int for n in shape)


def fortran_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of an array whose first axis varies fastest."""
    strides, step = [], 1
    for size in shape:
        strides.append(step)
        step *= size
    return tuple(strides)


def _number(dtype: NumpyType, data: Any) -> Any:
    known = DTYPES.get(dtype.name)
    raw = data.encode("latin-1") if isinstance(data, str) else data
    if known is None or not isinstance(raw, bytes) or len(raw) != known.stored.itemsize:
        return None
    stored = known.stored if dtype.name != "bool" else np.dtype("?")
    return np.frombuffer(raw, stored.newbyteorder(">" if dtype.big_endian else "<"))[0].item()


def _dtype(name: str, args: tuple[Any, ...]) -> Any:
    code = args[0] if args else ""
    if isinstance(code, Global):
        code = code.name  # ml_dtypes.bfloat16 and its like
    return NumpyType(code if isinstance(code, str) else "unknown")


def _reconstruct(name: str, args: tuple[Any, ...]) -> Any:
    return NumpyArray()


def _scalar(name: str, args: tuple[Any, ...]) -> Any:
    match args:
        case (NumpyType() as dtype, data):
            return _number(dtype, data)
    return Unreadable("a numpy scalar that is malformed")


def _from_buffer(name: str, args: tuple[Any, ...]) -> Any:
    match args:
        case (data, NumpyType() as dtype, tuple() as shape, order):
            array = NumpyArray()
            array.set(shape, dtype, order == "F", data)
            return array
    raise ValueError("the buffer of a numpy array is malformed")


def _jax(name: str, args: tuple[Any, ...]) -> Any:
    match args:
        case (_, _, tuple() as state, _):
            array = NumpyArray()
            array.restore(state)
            return array
    raise ValueError("a jax array is malformed")


def _builders() -> dict[str, Builder]:
    made: dict[str, Builder] = {"numpy.dtype": _dtype, "numpy.ndarray": _reconstruct}
    made["jax._src.array._reconstruct_array"] = _jax
    for core in ("numpy.core", "numpy._core"):
        made[f"{core}.multiarray._reconstruct"] = _reconstruct
        made[f"{core}.multiarray.scalar"] = _scalar
        made[f"{core}.numeric._frombuffer"] = _from_buffer
    return made


NUMPY_BUILDERS = _builders()
