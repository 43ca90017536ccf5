"""Datasets of a results file as netCDF4 wants them: dimension scales, texts, and outputs in compressed chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .attributes import put, storable
from .record import Labels, OutLike
from .series import Series
from .values import PADDING

CHUNK_BYTES = 2**18
"""The most a chunk holds."""
SMALL_CHUNK = 2**12
"""What a chunk holds at least, where there are steps enough."""
_TEXTS_AT_ONCE = 1024


def scale(target: Any, dim: str, labels: Labels, facts: Mapping[str, Any]) -> None:
    """Write the labels of a dimension as its scale."""
    made = texts_dataset(target, dim, labels) if isinstance(labels, list) else target.create_dataset(dim, data=labels)
    made.make_scale(dim)
    put(made, facts)


def texts_dataset(target: Any, name: str, texts: Sequence[str]) -> Any:
    """Return a new dataset of texts, written some at a time."""
    import h5py

    made = target.create_dataset(name, shape=(len(texts),), dtype=h5py.string_dtype())
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = np.array(texts[start : start + _TEXTS_AT_ONCE], dtype=object)
        made[start : start + len(some)] = as_stored(some)
    return made


def as_stored(block: NDArray[Any]) -> NDArray[Any]:
    """Return a block as HDF5 takes it: texts as objects, numbers as they are."""
    if block.dtype.kind not in "UO":
        return block
    flat = np.empty(block.size, dtype=object)
    flat[:] = [storable(text) for text in block.ravel().tolist()]
    return flat.reshape(block.shape)


def output(target: Any, name: str, series: Series, out: OutLike, rows: int) -> Any:
    """Return the new dataset of an output, still empty, with its scales and attributes; `rows` are written at once."""
    import h5py

    shape, text = series.shape(name), out.dtype == "str"
    dtype = h5py.string_dtype() if text else np.dtype(out.dtype)
    layout: dict[str, Any] = {} if 0 in shape else {"chunks": _chunk(shape, 16 if text else dtype.itemsize, rows)}
    if layout and not text:
        layout |= {"compression": "gzip", "compression_opts": 4, "shuffle": True}
    made = target.create_dataset(name, shape=shape, dtype=dtype, track_order=True, **layout)
    for axis, dim in enumerate(series.dims(name)):
        made.dims[axis].attach_scale(target[dim])
    errors = " ".join(n for n, o in series.outputs.items() if o.error_of == name)
    put(made, {"units": out.unit, "long_name": out.long_name or name.replace("_", " ")})
    put(made, {"error_of": out.error_of or None, "ancillary_variables": errors or None})
    if not text and dtype.kind == "f":
        made.attrs.create("_FillValue", np.array([np.nan], dtype=dtype))
    elif not text:
        put(made, {"padding": PADDING["i"]})
    return made


def _chunk(shape: Sequence[int], itemsize: int, rows: int) -> tuple[int, ...]:
    """Return a chunk of the steps that are written at once, more of a small output, parts of one step of a large one.

    So nearly every chunk is written whole: HDF5 need not keep it in memory until its other steps come.
    """
    row = prod(shape[1:]) * itemsize
    chunk = [min(shape[0], rows * max(1, -(-SMALL_CHUNK // (rows * row)))), *shape[1:]]
    axis = 1
    while prod(chunk) * itemsize > CHUNK_BYTES and axis < len(chunk):
        chunk[axis] = max(1, CHUNK_BYTES * chunk[axis] // (prod(chunk) * itemsize))
        axis += 1
    return tuple(chunk)
