"""All records of one analyzer along the trajectory, aligned: what `summarize` sees and what is written.

Records may differ from step to step (a layer that appears, more clusters than before). Labelled dimensions are joined
in the order labels were first seen, numbered ones grow to the longest; cells a record does not fill hold NaN, -1 or "".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import PluginError, ResultsError, nearest
from .record import Labels, OutLike, Record, dims_of
from .values import DTYPES, PADDING

Array = NDArray[Any]

_LOADED = 64


class Series:
    """An analyzer's own outputs over all steps: `series["effective_rank"]` is an array `[step, matrix]`.

    `records` may be any indexable sequence, also one that loads records on demand: one pass is made for steps and
    labels, and `block` touches only the records it needs. Raises ResultsError when a step occurs twice.
    """

    def __init__(self, outputs: Mapping[str, OutLike], records: Sequence[Record]) -> None:
        self.outputs = dict(outputs)
        self._records = records
        self._axes = {dim: _Axis(dim) for dim in dims_of(outputs)}
        self._whole: dict[str, Array] = {}
        steps = np.fromiter((self._see(record) for record in records), np.int64)
        ascending = bool((steps[1:] > steps[:-1]).all())
        self._order = None if ascending else np.argsort(steps, kind="stable")
        self.steps = steps if self._order is None else steps[self._order]
        twice = self.steps[1:][np.diff(self.steps) == 0]
        if twice.size:
            raise ResultsError(f"There is more than one record of step {twice[0]}; keep one record per step.")

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __contains__(self, name: object) -> bool:
        return name in self.outputs

    def __getitem__(self, name: str) -> Array:
        """Return an output over all steps, read-only, shape `[step, *dims]`."""
        if name not in self.outputs:
            raise PluginError(f"The series has no output {name!r}.{nearest(name, self.outputs)}")
        if name not in self._whole:
            self._whole[name] = self.part(name, 0, len(self))
            self._whole[name].setflags(write=False)
        return self._whole[name]

    def part(self, name: str, start: int, stop: int) -> Array:
        """Return an output for steps number `start` to `stop`, `[stop - start, *dims]`: all steps may be a lot."""
        # Records hold all outputs, so only a few are in memory at once.
        starts = range(start, stop, _LOADED) or (start,)
        parts = (self._stacked(name, *self._placed(at, min(at + _LOADED, stop))) for at in starts)
        if self.outputs[name].dtype == "str" or len(starts) == 1:
            return np.concatenate(list(parts))
        whole = np.empty((stop - start, *self.shape(name)[1:]), DTYPES[self.outputs[name].dtype])
        for at, part in zip(starts, parts, strict=True):
            whole[at - start : at - start + len(part)] = part
        return whole

    def forget(self) -> None:
        """Let go of outputs over all steps; they are made again when asked for."""
        self._whole.clear()

    def dims(self, name: str) -> tuple[str, ...]:
        """Return an output's dimensions, `step` first."""
        return ("step", *self.outputs[name].dims)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return an output's shape over all steps."""
        return (len(self), *(self._axes[d].length for d in self.outputs[name].dims))

    def labels(self, dim: str) -> list[Any]:
        """Return the labels of a dimension, or 0, 1, 2, ... when it is numbered."""
        scale = self.scale(dim)
        return list(scale) if isinstance(scale, list) else scale.tolist()

    def scale(self, dim: str) -> Labels:
        """Return the labels of a dimension as stored: texts, or an int64 or float64 array."""
        if dim == "step":
            return self.steps
        if dim not in self._axes:
            raise PluginError(f"The series has no dimension {dim!r}.{nearest(dim, ['step', *self._axes])}")
        return self._axes[dim].scale()

    def block(self, start: int, stop: int) -> dict[str, Array]:
        """Return every output for steps number `start` to `stop`, each `[stop - start, *dims]`."""
        records, places = self._placed(start, stop)
        return {name: self._stacked(name, records, places) for name in self.outputs}

    def _see(self, record: Record) -> int:
        shapes = ((out.dims, record.values[name].shape) for name, out in self.outputs.items())
        lengths = {dim: n for dims, shape in shapes for dim, n in zip(dims, shape, strict=True)}
        for dim, axis in self._axes.items():
            axis.see(record.labels.get(dim), lengths[dim], record.step)
        return record.step

    def _placed(self, start: int, stop: int) -> tuple[list[Record], dict[str, list[Array | None]]]:
        places = range(start, stop) if self._order is None else self._order[start:stop]
        records = [self._records[i] for i in places]
        return records, {d: [axis.place(r.labels.get(d)) for r in records] for d, axis in self._axes.items()}

    def _stacked(self, name: str, records: Sequence[Record], places: Mapping[str, list[Array | None]]) -> Array:
        out, parts = self.outputs[name], [r.values[name] for r in records]
        dtype = np.result_type(*parts, "U1") if parts and out.dtype == "str" else DTYPES[out.dtype]
        shape = self.shape(name)[1:]
        in_place = all(place is None for d in out.dims for place in places[d])
        if parts and in_place and all(part.shape == shape for part in parts):
            return np.stack(parts)
        full = np.full((len(parts), *shape), PADDING[dtype.kind], dtype)
        for i, part in enumerate(parts):
            at = [places[d][i] for d in out.dims]
            at = [np.arange(n) if a is None else a for a, n in zip(at, part.shape, strict=True)]
            full[(i, *np.ix_(*at))] = part
        return full


class _Axis:
    """One dimension over all records; `place` says where a record's entries go, None when at 0, 1, 2, ..."""

    def __init__(self, dim: str) -> None:
        self.dim = dim
        self.length = 0
        self._first: Labels | None = None
        self._first_step: int | None = None
        self._seen: Labels | None = None
        self._at: dict[Any, int] = {}
        self._placed: tuple[Labels | None, Array | None] = (None, None)

    def see(self, labels: Labels | None, length: int, step: int) -> None:
        """Take note of one record's labels (None when numbered) and length."""
        if self._first_step is None:
            self._first, self._first_step = labels, step
        if _kind(labels) != _kind(self._first):
            raise PluginError(
                f"Dimension {self.dim!r} is {_kind(labels)} at step {step} but {_kind(self._first)} "
                f"at step {self._first_step}; return the same kind of labels at every step."
            )
        if labels is None:
            self.length = max(self.length, length)
        elif not _same(labels, self._seen):
            self._seen = labels
            for label in labels if isinstance(labels, list) else labels.tolist():
                self._at.setdefault(label, len(self._at))
            self.length = len(self._at)

    def place(self, labels: Labels | None) -> Array | None:
        """Return the positions of a record's entries along the joined axis."""
        if labels is None:
            return None
        if self._placed[0] is None or not _same(labels, self._placed[0]):
            items = labels if isinstance(labels, list) else labels.tolist()
            at = np.array([self._at[item] for item in items], dtype=np.intp)
            self._placed = (labels, None if np.array_equal(at, np.arange(len(at))) else at)
        return self._placed[1]

    def scale(self) -> Labels:
        """Return the joined labels."""
        if self._first is None:
            return np.arange(self.length, dtype=np.int64)
        return list(self._at) if isinstance(self._first, list) else np.array(list(self._at))


def _kind(labels: Labels | None) -> str:
    if labels is None:
        return "numbered"
    return "labelled by texts" if isinstance(labels, list) else "labelled by numbers"


def _same(a: Labels, b: Labels | None) -> bool:
    if a is b:
        return True
    if isinstance(a, list) or isinstance(b, list):
        return a == b if isinstance(a, list) and isinstance(b, list) else False
    return b is not None and np.array_equal(a, b)
