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

from ..errors import ResultsError
from .attributes import put
from .datasets import CHUNK_BYTES, SMALL_CHUNK, as_stored, output, scale
from .origin import TRAJECTORY, Trajectory, write_trajectory
from .record import AnalyzerLike, Record, dims_of
from .series import Series
from .sink import Sink
from .target import replacing

SCHEMA = "ckpt-results"
SCHEMA_VERSION = 1
_METADATA_BYTES = 2**18
_BLOCK_BYTES = 2**18
"""Of records in memory as arrays, of all outputs together."""
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


def _build(sink: Sink, groups: Sequence[Group], attrs: Mapping[str, Any], trajectory: Trajectory | None) -> None:
    import h5py

    with h5py.File(sink, "w", libver=("earliest", "v110"), track_order=True, rdcc_nbytes=2 * SMALL_CHUNK) as file:
        _limit_metadata(file)
        put(file, _root_facts(attrs, trajectory))
        if trajectory is not None:
            write_trajectory(file, trajectory)
        for group in groups:
            for _ in _write_group(file, group):
                sink.check()


def _limit_metadata(file: Any) -> None:
    """Keep little of what HDF5 notes of chunks and texts in memory: 2 MiB and more by default, 32 MiB at most."""
    config = file.id.get_mdc_config()
    config.set_initial_size = True
    config.initial_size = config.min_size = config.max_size = _METADATA_BYTES
    file.id.set_mdc_config(config)


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
        facts["content_hashes"] = trajectory.hashes()
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
    scale(target, "step", series.steps, {"units": "1", "long_name": "training step"})
    for dim in dims_of(series.outputs):
        scale(target, dim, series.scale(dim), {"long_name": dim.replace("_", " ")})
    rows = _rows_per_block(series)
    made = {name: output(target, name, series, out, rows) for name, out in series.outputs.items()}
    for start in range(0, len(series), rows):
        stop = min(start + rows, len(series))
        for name, block in series.block(start, stop).items():
            if block.size:
                made[name][start:stop] = as_stored(block)
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


def _rows_per_block(series: Series) -> int:
    rows = [max(1, prod(series.shape(name)[1:]) * 8) for name in series.outputs]
    return max(1, min(_BLOCK_BYTES // max(sum(rows), 1), CHUNK_BYTES // max(rows, default=1)))
