"""Write results as one HDF5 file that is valid netCDF4: one group per analyzer, a dimension scale per dim.

The schema is `docs/results.md`. Outputs are written in blocks of steps, so memory does not grow with the trajectory.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ResultsError
from .attributes import put, storable
from .record import PADDING, AnalyzerLike, Labels, OutLike, Record, dims_of
from .series import Series
from .sink import Sink
from .target import replacing

SCHEMA = "ckpt-results"
SCHEMA_VERSION = 1
TRAJECTORY = "trajectory"
# A chunk fits its dataset's cache several times over; a block is what is stacked in memory at once.
_CHUNK_BYTES = 2**18
_CACHE_BYTES = 2**20
_BLOCK_BYTES = 2**22
_LIBRARIES = {"torch": "torch", "scipy": "scipy", "sklearn": "scikit-learn", "transformers": "transformers"}


@dataclass(frozen=True, eq=False)
class Group:
    """One analyzer's share of a results file; `name` becomes the HDF5 group, `attrs` further group attributes.

    `options` and `summary` are stored as JSON; `skipped` lists what was left out as (name, reason).
    """

    name: str
    series: Series
    version: str = "1"
    description: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    distribution: str = ""
    distribution_version: str = ""
    needs: str = "weights"
    summary: Mapping[str, Any] = field(default_factory=dict)
    skipped: Sequence[tuple[str, str]] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, analyzer: AnalyzerLike, records: Sequence[Record] | Series, **facts: Any) -> Group:
        """Return the group of an analyzer instance, its version, text, options and needs read from it."""
        series = records if isinstance(records, Series) else Series(analyzer.outputs, records)
        own = {
            "version": getattr(analyzer, "version", "1"),
            "needs": getattr(analyzer, "needs", "weights"),
            "description": " ".join((type(analyzer).__doc__ or "").split()),
            "options": analyzer.as_dict() if hasattr(analyzer, "as_dict") else {},
            "attrs": {
                "reading": " ".join(getattr(analyzer, "reading", "").split()),
                "events": dict(getattr(analyzer, "events", {})),
                "figures": [asdict(figure) for figure in getattr(analyzer, "figures", ())],
            },
        }
        return cls(analyzer.name, series, **{**own, **facts})


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The checkpoints behind the results: per step the content hash, the path, and numbers logged in training.

    `metrics` maps a name (`loss`, `eval/loss`) to one number per step, NaN where it was not logged.
    """

    steps: Sequence[int]
    content_hashes: Sequence[str]
    paths: Sequence[str] = ()
    metrics: Mapping[str, Sequence[float]] = field(default_factory=dict)


def write_results(
    path: str | Path,
    groups: Sequence[Group],
    attrs: Mapping[str, Any] | None = None,
    *,
    trajectory: Trajectory | None = None,
    force: bool = False,
) -> Path:
    """Write a results file and return its path; an existing one is replaced, whole, only with `force`.

    `attrs` become root attributes (`source`, `seed`, `history` = the command line, `storage_dtypes`, ...); the writer
    adds schema, time, library versions and content hashes. Raises ResultsError as `check_target` does, when two groups
    share a name, and when the disk does not take the file; then nothing is left behind.
    """
    _require_names(groups)
    with replacing(path, force) as sink:
        _build(sink, groups, attrs or {}, trajectory)
    return Path(path)


def _require_names(groups: Iterable[Group]) -> None:
    """Names become HDF5 paths, so they must be identifiers, and no two objects may share one."""
    seen = {TRAJECTORY}
    for group in groups:
        odd = [n for n in (group.name, *group.series.outputs, *dims_of(group.series.outputs)) if not n.isidentifier()]
        if odd:
            raise ResultsError(f"Cannot store analyzer {group.name!r}: {odd[0]!r} is not an identifier.")
        if group.name in seen:
            raise ResultsError(f"Cannot store two groups named {group.name!r}; rename the analyzer.")
        seen.add(group.name)


def _build(sink: Sink, groups: Iterable[Group], attrs: Mapping[str, Any], trajectory: Trajectory | None) -> None:
    import h5py

    with h5py.File(sink, "w", libver=("earliest", "v110"), track_order=True, rdcc_nbytes=_CACHE_BYTES) as file:
        put(file, _root_facts(attrs, trajectory))
        if trajectory is not None:
            _write_trajectory(file, trajectory)
        for group in groups:
            for _ in _write_group(file, group):
                sink.check()


def _root_facts(attrs: Mapping[str, Any], trajectory: Trajectory | None) -> dict[str, Any]:
    created = attrs.get("created") or datetime.now(UTC).isoformat(timespec="seconds")
    facts = {
        "Conventions": "CF-1.11",
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        **attrs,
        "created": created,
        "libraries": {**_libraries(), **attrs.get("libraries", {})},
    }
    if "history" in attrs:
        facts["history"] = f"{created}: {attrs['history']}"
    if trajectory is not None:
        facts["content_hashes"] = {str(s): h for s, h in zip(trajectory.steps, trajectory.content_hashes, strict=True)}
    return facts


def _libraries() -> dict[str, str]:
    """Return the versions of everything that may have touched the numbers."""
    import h5py

    found = {"python": platform.python_version(), "numpy": np.__version__, "h5py": h5py.__version__}
    found["hdf5"] = h5py.version.hdf5_version
    for distribution in ("ckpt-tools", *(dist for module, dist in _LIBRARIES.items() if module in sys.modules)):
        try:
            found[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return found


def _write_group(file: Any, group: Group) -> Iterator[int]:
    """Write a group block by block, yielding the number of steps done after each."""
    target = file.create_group(group.name, track_order=True)
    put(target, _group_facts(group))
    series = group.series
    _scale(target, "step", series.steps, {"units": "1", "long_name": "training step"})
    for dim in dims_of(series.outputs):
        _scale(target, dim, series.scale(dim), {"long_name": dim.replace("_", " ")})
    made = {name: _dataset(target, name, series, out) for name, out in series.outputs.items()}
    rows = _rows_per_block(series)
    for start in range(0, len(series), rows):
        stop = min(start + rows, len(series))
        for name, block in series.block(start, stop).items():
            if block.size:
                made[name][start:stop] = _texts(block) if block.dtype.kind == "U" else block
        yield stop


def _group_facts(group: Group) -> dict[str, Any]:
    return {
        **group.attrs,
        "analyzer": group.name,
        "analyzer_version": group.version,
        "description": group.description,
        "needs": group.needs,
        "options": dict(group.options),
        "distribution": group.distribution,
        "distribution_version": group.distribution_version,
        "summary": dict(group.summary),
        "skipped": [{"name": name, "reason": reason} for name, reason in group.skipped],
    }


def _scale(target: Any, dim: str, labels: Labels, facts: Mapping[str, Any]) -> None:
    made = _texts_dataset(target, dim, labels) if isinstance(labels, list) else target.create_dataset(dim, data=labels)
    made.make_scale(dim)
    put(made, facts)


def _texts_dataset(target: Any, name: str, texts: Sequence[str]) -> Any:
    import h5py

    made = target.create_dataset(name, shape=(len(texts),), dtype=h5py.string_dtype())
    if texts:
        made[:] = _texts(np.array(texts, dtype=object))
    return made


def _texts(array: NDArray[Any]) -> NDArray[Any]:
    flat = np.empty(array.size, dtype=object)
    flat[:] = [storable(text) for text in array.ravel().tolist()]
    return flat.reshape(array.shape)


def _dataset(target: Any, name: str, series: Series, out: OutLike) -> Any:
    """Create an output's dataset with its scales and attributes, still empty."""
    import h5py

    shape, text = series.shape(name), out.dtype == "str"
    dtype = h5py.string_dtype() if text else np.dtype(out.dtype)
    layout: dict[str, Any] = {} if 0 in shape else {"chunks": _chunks(shape, 16 if text else dtype.itemsize)}
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


def _chunks(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Return a chunk of as many whole steps as fit, or parts of one step when a single one is too large."""
    row = prod(shape[1:]) * itemsize
    chunk = [min(shape[0], max(1, _CHUNK_BYTES // row)), *shape[1:]]
    axis = 1
    while prod(chunk) * itemsize > _CHUNK_BYTES and axis < len(chunk):
        chunk[axis] = max(1, _CHUNK_BYTES * chunk[axis] // (prod(chunk) * itemsize))
        axis += 1
    return tuple(chunk)


def _rows_per_block(series: Series) -> int:
    row = sum(prod(series.shape(name)[1:]) * 8 for name in series.outputs)
    return max(1, _BLOCK_BYTES // max(row, 1))


def _write_trajectory(file: Any, trajectory: Trajectory) -> None:
    target = file.create_group(TRAJECTORY, track_order=True)
    put(target, {"description": "The checkpoints these results were computed from."})
    steps = np.asarray(trajectory.steps, dtype=np.int64)
    _scale(target, "step", steps, {"units": "1", "long_name": "training step"})
    texts = {"content_hash": trajectory.content_hashes, "path": trajectory.paths}
    for name, values in texts.items():
        if len(values) or name == "content_hash":
            _along_step(target, _texts_dataset(target, name, list(values)), name.replace("_", " "))
    taken = {"step", *texts}
    for name, numbers in trajectory.metrics.items():
        key = _variable_name(name, taken)
        made = target.create_dataset(key, data=np.asarray(numbers, dtype=np.float64))
        made.attrs.create("_FillValue", np.array([np.nan]))
        _along_step(target, made, name, metric=name)


def _along_step(target: Any, made: Any, long_name: str, **facts: Any) -> None:
    if made.shape != target["step"].shape:
        raise ValueError(f"trajectory {long_name!r} has {made.shape[0]} entries for {target['step'].shape[0]} steps")
    made.dims[0].attach_scale(target["step"])
    put(made, {"units": "1", "long_name": long_name, **facts})


def _variable_name(metric: str, taken: set[str]) -> str:
    """Return an identifier for a metric such as `eval/loss`, and note it as taken."""
    stem = "".join(c if c.isascii() and c.isalnum() else "_" for c in metric)
    stem = stem if stem.isidentifier() else f"metric_{stem}"
    key = next(k for k in (stem, *(f"{stem}_{i}" for i in range(2, len(taken) + 3))) if k not in taken)
    taken.add(key)
    return key
