"""What one call of `Analyzer.analyze` returned, checked against what the analyzer declared.

`check` is the gate between plugins and everything that stores or aligns results: behind it every output is there, has
the declared dimensions and dtype, and agrees with the labels. It runs once per (checkpoint, analyzer), so it must cost
microseconds, and it reports all faults of a record in one message.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import PluginError, nearest
from .attributes import plain
from .values import DTYPES, Fault, as_array, described, widened

Labels = list[str] | NDArray[Any]


class OutLike(Protocol):
    """What is read of a declared output (`ckpt_tools.Out`)."""

    @property
    def dims(self) -> tuple[str, ...]: ...
    @property
    def unit(self) -> str: ...
    @property
    def long_name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def error_of(self) -> str: ...


class AnalyzerLike(Protocol):
    """What is read of an analyzer, class or instance (`ckpt_tools.Analyzer`)."""

    @property
    def name(self) -> str: ...
    @property
    def outputs(self) -> Mapping[str, OutLike]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One analyzer's outputs at one step: `values[output]` has the declared dims, `labels[dim]` names the entries.

    Arrays are the record's own copies: an analyzer may return a buffer that is reused for the next checkpoint.
    """

    step: int
    values: dict[str, NDArray[Any]]
    labels: dict[str, Labels]


def check(analyzer: AnalyzerLike, raw: Mapping[str, Any], where: str, *, step: int = 0) -> Record:
    """Return the record of what `analyze` gave for one checkpoint.

    Rows of different lengths (lists of lists, for outputs with two or more dims) are padded with NaN, -1 or "".
    Raises PluginError naming `where` and every fault: missing outputs, unknown keys, wrong dims, lengths that disagree,
    values that do not become the declared dtype without loss, labels that repeat.
    """
    return _checked(analyzer, raw, where, [step], lead=())[0]


def check_batch(analyzer: AnalyzerLike, raw: Mapping[str, Any], where: str, *, steps: Sequence[int]) -> list[Record]:
    """Return one record per step of what a `batched` analyzer gave: as `check`, every output led by a step axis."""
    return _checked(analyzer, raw, where, steps, lead=("step",))


def check_summary(analyzer: AnalyzerLike, raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what `summarize` gave as JSON-able facts, NaN as None; raises PluginError for anything else."""
    if not isinstance(raw, Mapping):
        raise _error(analyzer, where, [f"summarize returned {type(raw).__name__}, expected a dict of facts"])
    facts, faults = {}, []
    for key, value in raw.items():
        try:
            facts[str(key)] = plain(value)
        except TypeError as error:
            faults.append(f"summary {key!r}: {error}; use numbers, texts or lists of them")
    if faults:
        raise _error(analyzer, where, faults)
    return facts


def _error(analyzer: AnalyzerLike, where: str, faults: list[str]) -> PluginError:
    listed = "".join(f"\n  - {fault}" for fault in faults)
    return PluginError(f"Analyzer {analyzer.name!r} returned what it did not declare ({where}):{listed}")


def _checked(
    analyzer: AnalyzerLike, raw: Mapping[str, Any], where: str, steps: Sequence[int], lead: tuple[str, ...]
) -> list[Record]:
    if not isinstance(raw, Mapping):
        raise _error(analyzer, where, [f"analyze returned {type(raw).__name__}, expected a dict of outputs and labels"])
    dims = {name: (*lead, *out.dims) for name, out in analyzer.outputs.items()}
    faults: list[str] = []
    labels = _read_labels(raw, dims, lead, faults)
    values, ragged = _read_values(analyzer.outputs, raw, dims, faults)
    _agree(values, ragged, dims, labels, {d: len(steps) for d in lead}, faults)
    if faults:
        raise _error(analyzer, where, faults)
    if not lead:
        return [Record(int(steps[0]), values, labels)]
    return [Record(int(s), {n: v[i, ...] for n, v in values.items()}, labels) for i, s in enumerate(steps)]


def _read_labels(
    raw: Mapping[str, Any], dims: Mapping[str, tuple[str, ...]], lead: tuple[str, ...], faults: list[str]
) -> dict[str, Labels]:
    """Return the labels among the keys; what is neither output nor dimension is a fault."""
    known = {d for of_output in dims.values() for d in of_output}.difference(lead)
    labels: dict[str, Labels] = {}
    for key, value in raw.items():
        if key in known:
            try:
                labels[key] = _labels(value)
            except Fault as fault:
                faults.append(f"labels of {key!r}: {fault}")
        elif key not in dims:
            faults.append(f"unknown key {key!r}, neither output nor dimension.{nearest(str(key), {*dims, *known})}")
    return labels


def _labels(value: Any) -> Labels:
    """Return unique texts as a list, unique numbers as an int64 or float64 array."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise Fault(f"{value!r} is no list of texts or numbers")
    items = list(value.tolist() if isinstance(value, np.ndarray) else value)
    if all(isinstance(item, str) for item in items):
        _refuse_repeats(items)
        return [str(item) for item in items]
    odd = next((i for i in items if isinstance(i, bool) or not isinstance(i, int | float | np.number)), None)
    if odd is not None:
        raise Fault(f"{odd!r} is neither text nor number, or texts and numbers are mixed")
    array = np.array(items)
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise Fault("numbers must be finite and real")
    _refuse_repeats(array.tolist())
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)


def _refuse_repeats(items: list[Any]) -> None:
    if len(set(items)) != len(items):
        seen: set[Any] = set()
        twice = next(i for i in items if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise Fault(f"{twice!r} occurs more than once; labels must be unique")


def _read_values(
    outputs: Mapping[str, OutLike], raw: Mapping[str, Any], dims: Mapping[str, tuple[str, ...]], faults: list[str]
) -> tuple[dict[str, NDArray[Any]], set[str]]:
    """Return every output as an array of its declared dtype, and the names of those that were padded."""
    values, ragged = {}, set()
    for name, out in outputs.items():
        if name not in raw:
            faults.append(f"missing output {name!r} ({described(dims[name])})")
            continue
        try:
            values[name], padded = as_array(raw[name], DTYPES[out.dtype], dims[name])
        except Fault as fault:
            faults.append(f"output {name!r}: {fault}")
            continue
        if padded:
            ragged.add(name)
    return values, ragged


def _agree(
    values: dict[str, NDArray[Any]],
    ragged: set[str],
    dims: Mapping[str, tuple[str, ...]],
    labels: Mapping[str, Labels],
    sizes: dict[str, int],
    faults: list[str],
) -> None:
    """Hold all outputs and labels to one length per dim, widening padded outputs to it; else add faults."""
    said = {dim: f"the step axis has {n}" for dim, n in sizes.items()}
    for dim, of_dim in labels.items():
        sizes[dim], said[dim] = len(of_dim), f"its labels have {len(of_dim)}"
    loose: dict[str, int] = {}
    for name, array in values.items():
        for axis, (dim, n) in enumerate(zip(dims[name], array.shape, strict=True)):
            if axis and name in ragged and dim not in labels:
                loose[dim] = max(n, loose.get(dim, 0))
            elif sizes.setdefault(dim, n) != n:
                faults.append(f"output {name!r} has {n} entries along {dim!r}, but {said[dim]}")
            elif dim not in said:
                said[dim] = f"output {name!r} has {n}"
    for dim, n in loose.items():
        if sizes.setdefault(dim, n) < n:
            faults.append(f"padded rows reach {n} entries along {dim!r}, but {said[dim]}")
    if not faults:
        for name in ragged:
            values[name] = widened(values[name], tuple(sizes[d] for d in dims[name]))


def dims_of(outputs: Mapping[str, OutLike]) -> Iterator[str]:
    """Yield every dim of these outputs once, in the order they are declared."""
    yield from dict.fromkeys(dim for out in outputs.values() for dim in out.dims)
