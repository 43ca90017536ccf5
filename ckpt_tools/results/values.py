"""One returned value as an array of its declared dtype and dimensions, or what is wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES = {name: np.dtype("U" if name == "str" else name) for name in ("f8", "f4", "i8", "i4", "i1", "str")}
PADDING: Mapping[str, float | int | str] = {"f": np.nan, "i": -1, "U": ""}
_ACCEPTS = {"f": "fiub", "i": "iubf", "U": "U"}


class Fault(Exception):
    """One thing wrong with one returned value."""


def as_array(value: Any, dtype: np.dtype[Any], dims: tuple[str, ...]) -> tuple[NDArray[Any], bool]:
    """Return a fresh array of `dtype` with one axis per dim, and whether rows had to be padded."""
    if _is_masked(value):
        raise Fault("is a masked array; fill the masked entries with NaN, -1 or ''")
    try:
        array = np.array(value, order="C")
    except ValueError:
        if isinstance(value, list | tuple) and len(dims) > 1:
            return _padded(value, dtype, dims), True
        raise Fault(f"has rows of different lengths, but declares {described(dims)}") from None
    except (TypeError, RuntimeError) as error:
        raise Fault(f"{type(value).__name__} does not become an array ({error})") from None
    if array.size == 0 and array.ndim < len(dims):
        array = array.reshape(array.shape + (0,) * (len(dims) - array.ndim))
    array = _cast(array, dtype)
    if array.ndim != len(dims):
        raise Fault(f"has shape {array.shape}, but declares {described(dims)}")
    return array, False


def _is_masked(value: Any) -> bool:
    # Naming numpy.ma imports it, which takes 30 ms; who made a masked array has done that.
    masked = sys.modules.get("numpy.ma")
    return masked is not None and isinstance(value, masked.MaskedArray)


def _padded(rows: Sequence[Any], dtype: np.dtype[Any], dims: tuple[str, ...]) -> NDArray[Any]:
    arrays = [as_array(row, dtype, dims[1:])[0] for row in rows]
    shape = [max(lengths) for lengths in zip(*(a.shape for a in arrays), strict=True)]
    full = np.full((len(arrays), *shape), PADDING[dtype.kind], np.result_type(*arrays))
    for target, array in zip(full, arrays, strict=True):
        target[tuple(slice(n) for n in array.shape)] = array
    return full


def _cast(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return `array` as `dtype`; a fault when a value would change by more than rounding of a float."""
    have = array.dtype.kind
    if array.dtype == dtype or have == dtype.kind == "U":
        return array
    if have == "O" and array.size:
        raise Fault(f"holds Python objects such as {_first(array)!r:.60}; return numbers or texts, NaN where missing")
    if array.size and have not in _ACCEPTS[dtype.kind]:
        raise Fault(f"holds {_spoken(array.dtype)} such as {_first(array)!r:.60}, declared is {_spoken(dtype)}")
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
    if dtype.kind == "i" and have != "b":
        lost = cast != array
    elif dtype == DTYPES["f4"]:
        lost = np.isinf(cast) & ~np.isinf(array)
    else:
        return cast
    if lost.any():
        raise Fault(f"value {_first(array[lost])!r} does not fit the declared {_spoken(dtype)}")
    return cast


def _first(array: NDArray[Any]) -> Any:
    value = array.flat[0]
    return value.item() if isinstance(value, np.generic) else value


def _spoken(dtype: np.dtype[Any]) -> str:
    return "text" if dtype.kind == "U" else dtype.name


def widened(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return an array grown to `shape`, its new cells padded."""
    if array.shape == shape:
        return array
    full = np.full(shape, PADDING[array.dtype.kind], array.dtype)
    full[tuple(slice(n) for n in array.shape)] = array
    return full


def described(dims: tuple[str, ...]) -> str:
    """Return dimensions for people."""
    return f"dims {', '.join(dims)}" if dims else "a single value"
