"""Read what a run folder says about itself: `run.json`, `metrics.jsonl`, `probe.safetensors`.

The checkpoints themselves are opened like anybody's, through `ckpt_tools.checkpoint`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, SourceError

FORMAT = 1
RUN_FILE, METRICS_FILE, PROBE_FILE = "run.json", "metrics.jsonl", "probe.safetensors"
STATUSES = ("running", "finished", "interrupted")
MAX_RUN_FILE = 64 * 2**20

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RunInfo:
    """What `run.json` holds. `family` is "" for a model that nobody named, as a `Recorder` finds it.

    `tied` maps alias to stored tensor; `tensors` maps each stored name to `{"dtype": "float32", "shape": [...]}` and
    is empty before the first checkpoint. A run whose `status` is still "running" was killed or is being written.
    """

    path: Path
    format: int
    family: str
    family_version: int
    config: Mapping[str, Any]
    task: str
    task_config: Mapping[str, Any]
    train: Mapping[str, Any]
    seed: int
    schedule: str
    tied: Mapping[str, str]
    tensors: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]
    status: str


_KINDS: dict[str, type] = {
    "family": str,
    "family_version": int,
    "config": dict,
    "task": str,
    "task_config": dict,
    "train": dict,
    "seed": int,
    "schedule": str,
    "tied": dict,
    "tensors": dict,
    "versions": dict,
    "status": str,
}


def is_run(path: Path | str) -> bool:
    """Return whether `path` is a folder with a `run.json`."""
    return (Path(path) / RUN_FILE).is_file()


def read_run(path: Path | str) -> RunInfo:
    """Return the checked contents of a run's `run.json`.

    Raises SourceError when there is none, FormatError when it is damaged or of a newer format.
    """
    folder = Path(path)
    file = folder / RUN_FILE
    if not file.is_file():
        raise SourceError(f"{folder} is not a run: it has no {RUN_FILE}. Give the folder a trainer wrote with --out.")
    data = _json_object(file)
    _check_format(file, data.get("format"))
    for key, kind in _KINDS.items():
        if not isinstance(data.get(key), kind) or isinstance(data[key], bool):
            raise FormatError(f"{file}: {key!r} must be {kind.__name__}. Got {data.get(key)!r} instead.")
    _check_parts(file, data)
    return RunInfo(path=folder, **{f.name: data[f.name] for f in fields(RunInfo) if f.name != "path"})


def _json_object(file: Path) -> dict[str, Any]:
    if file.stat().st_size > MAX_RUN_FILE:
        raise FormatError(f"{file} has {file.stat().st_size} bytes; a {RUN_FILE} has at most {MAX_RUN_FILE}.")
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file} is not valid JSON: {error}. The run cannot be read without it.") from None
    if not isinstance(data, dict):
        raise FormatError(f"{file} must hold a JSON object. Got {type(data).__name__} instead.")
    return data


def _check_format(file: Path, number: Any) -> None:
    if isinstance(number, int) and number > FORMAT:
        raise FormatError(f"{file} has run format {number}; this version reads up to {FORMAT}. Upgrade ckpt-tools.")
    if number != FORMAT or isinstance(number, bool):
        raise FormatError(f"{file} is not from a ckpt trainer: 'format' must be {FORMAT}. Got {number!r} instead.")


def _check_parts(file: Path, data: Mapping[str, Any]) -> None:
    if data["status"] not in STATUSES:
        raise FormatError(f"{file}: 'status' must be one of {', '.join(STATUSES)}. Got {data['status']!r} instead.")
    for key in ("tied", "versions"):
        if not all(isinstance(value, str) for value in data[key].values()):
            raise FormatError(f"{file}: {key!r} must map names to text.")
    for name, entry in data["tensors"].items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if not (isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)):
            raise FormatError(f"{file}: tensor {name!r} must have a shape of integers. Got {entry!r} instead.")


def read_metrics(path: Path | str) -> dict[str, Array]:
    """Return `{"step": int64 [S], name: float64 [S], ...}`, steps ascending, NaN where a step has no such metric.

    A last line that was torn by a kill is left out; raises FormatError for damage anywhere else. A run without metrics
    gives an empty `step`.
    """
    rows: dict[int, dict[str, float]] = {}
    for step, metrics in metric_lines(Path(path) / METRICS_FILE):
        rows.setdefault(step, {}).update(metrics)
    steps = sorted(rows)
    names = dict.fromkeys(name for step in steps for name in rows[step])
    columns = {name: np.array([rows[s].get(name, np.nan) for s in steps], dtype=np.float64) for name in names}
    return {"step": np.array(steps, dtype=np.int64), **columns}


def metric_lines(file: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield `(step, metrics)` of each whole line; nothing when there is no file."""
    if not file.is_file():
        return
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return
        try:
            row = json.loads(line)
            step = row.pop("step")
            yield step, {name: np.nan if value is None else float(value) for name, value in row.items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            raise FormatError(
                f"{file}, line {number}: expected a JSON object with 'step'. Got {line[:80]!r}."
            ) from None


def read_probe(path: Path | str) -> dict[str, Array]:
    """Return the run's probe batch, `{}` when it has none. Raises FormatError when the file is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    file = Path(path) / PROBE_FILE
    if not file.is_file():
        return {}
    try:
        return dict(load_file(file))
    except SafetensorError as error:
        raise FormatError(
            f"{file} is not a valid safetensors file: {error}. Train again or copy the file again."
        ) from None
