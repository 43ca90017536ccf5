"""Write a training run as it goes: `run.json`, `metrics.jsonl`, and one folder per checkpoint.

    run/
      run.json                          family, configuration, task, settings, seed, schedule, status
      metrics.jsonl                     {"step": 128, "loss": 0.5}, one line per step
      probe.safetensors                 the batch on which analyzers run the model
      step-000128/model.safetensors     any safetensors reader opens it

A checkpoint is written under a hidden name and renamed, and so is `run.json`: what is there is whole, whenever the
process dies. Nothing is flushed to the device: a power cut may cost the last checkpoints, a killed process none.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import RunError
from .reader import FORMAT, METRICS_FILE, PROBE_FILE, RUN_FILE, STATUSES, metric_lines, read_run
from .schedule import Schedule
from .template import Template

MODEL_FILE = "model.safetensors"
_MAX_BUFFERS = 1024


class RunWriter:
    """Writes one run into a new or empty folder; a context manager that leaves a valid run however it is left.

    `tied` maps alias to stored tensor: aliases are recorded and not written again. `schedule` is only recorded; the
    training loop asks it. Raises RunError when the folder holds something already.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        family: str,
        family_version: int,
        config: Mapping[str, Any],
        task: str = "",
        task_config: Mapping[str, Any] | None = None,
        train: Mapping[str, Any] | None = None,
        seed: int = 0,
        schedule: Schedule | str = "",
        tied: Mapping[str, str] | None = None,
        probe: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        _create(self.path)
        self._begin(
            {
                "format": FORMAT,
                "status": "running",
                "family": family,
                "family_version": family_version,
                "config": dict(config),
                "task": task,
                "task_config": dict(task_config or {}),
                "train": dict(train or {}),
                "seed": seed,
                "schedule": str(schedule),
                "tied": dict(tied or {}),
                "tensors": {},
                "versions": library_versions(),
            }
        )
        if probe:
            write_file(self.path / PROBE_FILE, Template(probe).buffers(probe))

    @classmethod
    def resume(cls, path: Path | str, *, step: int) -> RunWriter:
        """Continue an existing run at `step`, whose metrics are yet to come; later ones are cut off.

        Checkpoints from `step` on stay until they are written again.
        """
        writer = cls.__new__(cls)
        writer.path = Path(path)
        read_run(path)
        for leftover in writer.path.glob(".step-*"):
            shutil.rmtree(leftover)
        kept = [_line(at, metrics) for at, metrics in metric_lines(writer.path / METRICS_FILE) if at < step]
        write_file(writer.path / METRICS_FILE, [memoryview("".join(kept).encode())])
        writer._begin({**json.loads((writer.path / RUN_FILE).read_bytes()), "status": "running"})
        return writer

    def _begin(self, facts: dict[str, Any]) -> None:
        self._facts = facts
        self._template: Template | None = None
        self._write_facts()
        # Line buffering: one short write per step, and a killed process loses no line.
        self._metrics = (self.path / METRICS_FILE).open("a", buffering=1)

    @property
    def status(self) -> str:
        """The run's status: "running" until `finish`, then what `finish` was given."""
        return str(self._facts["status"])

    def save(self, step: int, tensors: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Write a checkpoint of torch tensors or numpy arrays, and its metrics.

        All checkpoints of a run have the same names, dtypes and shapes; RunError says which tensor differs.
        """
        if type(step) is not int or step < 0:
            raise RunError(f"A step must be an int of at least 0. Got {step!r} instead.")
        stored = {name: value for name, value in tensors.items() if name not in self._facts["tied"]}
        try:
            buffers = self._laid_out(stored).buffers(stored)
        except RunError as error:
            raise RunError(f"{self.path}, step {step}: {error}") from None
        self._put(step, buffers)
        if metrics:
            self.log(step, metrics)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append numbers about a step to `metrics.jsonl`; several lines of one step are merged on reading."""
        self._metrics.write(_line(step, metrics))

    def finish(self, status: str = "finished") -> None:
        """Close the run with its final status. A later call changes nothing."""
        if status not in STATUSES:
            raise RunError(f"The status of a run is one of {', '.join(STATUSES)}. Got {status!r} instead.")
        if self._metrics.closed:
            return
        self._metrics.close()
        self._facts["status"] = status
        self._write_facts()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.finish("finished" if kind is None else "interrupted")

    def _laid_out(self, tensors: Mapping[str, Any]) -> Template:
        if self._template is not None:
            return self._template
        lost = sorted(set(self._facts["tied"].values()) - tensors.keys())
        if lost:
            raise RunError(f"Tensor {lost[0]!r} is missing, and tied to another that is not stored by itself.")
        template = Template(tensors)
        table = {name: {"dtype": d, "shape": list(s)} for name, (d, s) in template.layout.items()}
        if self._facts["tensors"] not in ({}, table):
            raise RunError(
                f"The tensors are not those in {RUN_FILE}. Continue with the same model, or choose another --out."
            )
        self._facts["tensors"] = table
        self._write_facts()
        self._template = template
        return template

    def _put(self, step: int, buffers: Sequence[memoryview]) -> None:
        """Put the bytes of one checkpoint on disk: the only place that knows how checkpoints lie in a run."""
        final = self.path / f"step-{step:06d}"
        draft = self.path / f".{final.name}"
        try:
            draft.mkdir()
            _write(draft / MODEL_FILE, buffers)
            if final.exists():
                os.replace(draft / MODEL_FILE, final / MODEL_FILE)
                draft.rmdir()
            else:
                draft.rename(final)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise RunError(f"Cannot write the checkpoint of step {step} into {self.path}: {error.strerror}.") from error

    def _write_facts(self) -> None:
        text = json.dumps(self._facts, indent=2, allow_nan=False) + "\n"
        write_file(self.path / RUN_FILE, [memoryview(text.encode())])


def _create(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        taken = any(path.iterdir())
    except OSError as error:
        raise RunError(f"Cannot create the run folder {path}: {error.strerror}. Choose another --out.") from None
    if taken:
        raise RunError(f"{path} is not empty. Continue its run with --resume, or choose another --out.")


def library_versions() -> dict[str, str]:
    """Return the versions of Python, ckpt-tools, numpy and, when it is loaded, torch."""
    found = {"python": platform.python_version()}
    for name in ("ckpt-tools", "numpy", *(["torch"] if "torch" in sys.modules else [])):
        found[name] = metadata.version(name)
    return found


def _line(step: int, metrics: Mapping[str, float]) -> str:
    # JSON has no NaN.
    row = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
    return json.dumps({"step": step, **row}) + "\n"


def write_file(path: Path, buffers: Sequence[memoryview]) -> None:
    """Write a file whole under a hidden name and rename it into place. Raises RunError when that fails."""
    draft = path.with_name(f".{path.name}.tmp")
    try:
        _write(draft, buffers)
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise RunError(f"Cannot write {path}: {error.strerror}.") from error


def _write(path: Path, buffers: Sequence[memoryview]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        left = list(buffers)
        while left:
            written = os.writev(descriptor, left[:_MAX_BUFFERS])
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if written:
                left[0] = left[0][written:]
    finally:
        os.close(descriptor)
