"""Write a training run as it goes: `run.json`, `metrics.jsonl`, and checkpoints in folders or in a log.

    run/
      run.json                          family, configuration, task, settings, seed, schedule, status
      metrics.jsonl                     {"step": 128, "loss": 0.5}, one line per step
      probe.safetensors                 the batch on which analyzers run the model
      step-000128/model.safetensors     any safetensors reader opens it
      log-000129.stlog                  the steps from 129 on, when folders would cost too much of a step

Files and folders are written under a hidden name and renamed, and a record of a log counts only when it is whole: what
is there is intact whenever the process dies. Without `fsync` a power cut may cost the last checkpoints, a kill none.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import RunError
from .files import Sync, write_file
from .folders import remove_drafts
from .lock import RunLock
from .metrics import MetricsFile, metrics_line
from .reader import FORMAT, METRICS_FILE, PROBE_FILE, RUN_FILE, STATUSES, metric_lines, read_run
from .saving import Saving
from .schedule import Schedule
from .store import check_mode
from .template import Template, TensorError


class RunWriter:
    """Writes one run into a new or empty folder; a context manager that leaves a valid run however it is left.

    `tied` maps alias to stored tensor: aliases are recorded and not written again. `schedule` is only recorded; the
    training loop asks it. `mode` is "folders", "log", or "auto", which times the first saves. `fsync` is "never",
    "close", or seconds between flushes to the device. `queue` is how many bytes of copies may wait for a writing
    thread, 0 for no thread; by default models above 50 MB and models on a GPU have one, with a quarter of the memory.

    Raises RunError when the folder holds something already or another process is writing it. A RunError of `save`,
    such as a full disk, may come one call late with a thread; `finish` raises what is left.
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
        mode: str = "auto",
        fsync: str | float = "never",
        queue: int | None = None,
    ) -> None:
        self.path = Path(path)
        sync = _sync(self.path, fsync)
        check_mode(mode)
        self._lock = _create(self.path)
        self._begin(
            Saving(self.path, mode, sync, queue),
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
            },
        )
        if probe:
            write_file(self.path / PROBE_FILE, Template(probe).buffers(probe))

    @classmethod
    def resume(
        cls,
        path: Path | str,
        *,
        step: int,
        mode: str = "auto",
        fsync: str | float = "never",
        queue: int | None = None,
    ) -> RunWriter:
        """Continue an existing run at `step`, whose metrics are yet to come; later ones are cut off.

        Checkpoints from `step` on stay until they are written again. What a kill left unfinished is removed.
        """
        writer = cls.__new__(cls)
        writer.path = Path(path)
        read_run(path)
        sync = _sync(writer.path, fsync)
        writer._lock = RunLock(writer.path)
        remove_drafts(writer.path)
        kept = [metrics_line(at, metrics) for at, metrics in metric_lines(writer.path / METRICS_FILE) if at < step]
        write_file(writer.path / METRICS_FILE, [memoryview("".join(kept).encode())])
        facts = json.loads((writer.path / RUN_FILE).read_bytes())
        writer._begin(Saving(writer.path, mode, sync, queue), {**facts, "status": "running"})
        return writer

    def _begin(self, saving: Saving, facts: dict[str, Any]) -> None:
        self._saving, self._facts = saving, facts
        self._template: Template | None = None
        self._write_facts()
        self._metrics = MetricsFile(self.path / METRICS_FILE)

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
        tied = self._facts["tied"]
        stored = {name: value for name, value in tensors.items() if name not in tied} if tied else tensors
        try:
            self._saving.put(step, self._template or self._laid_out(stored), stored)
        except TensorError as error:
            raise RunError(f"{self.path}, step {step}: {error}") from None
        if metrics:
            self.log(step, metrics)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append numbers about a step to `metrics.jsonl`; several lines of one step are merged on reading."""
        self._metrics.write(metrics_line(step, metrics))

    def finish(self, status: str = "finished") -> None:
        """Write what waits, and close the run with its final status; a later call changes nothing.

        Raises RunError when a checkpoint could not be written; the status is then "interrupted".
        """
        if status not in STATUSES:
            raise RunError(f"The status of a run is one of {', '.join(STATUSES)}. Got {status!r} instead.")
        if self._metrics.closed:
            return
        self._facts["status"] = "interrupted"
        with self._lock:
            try:
                self._saving.close()
                self._facts["status"] = status
            finally:
                self._metrics.close()
                self._write_facts()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        try:
            self.finish("finished" if kind is None else "interrupted")
        except RunError:
            if kind is None:  # else the error on its way says more
                raise

    def _laid_out(self, tensors: Mapping[str, Any]) -> Template:
        lost = sorted(set(self._facts["tied"].values()) - tensors.keys())
        if lost:
            raise TensorError(f"Tensor {lost[0]!r} is missing, and tied to another that is not stored by itself.")
        template = Template(tensors)
        table = {name: {"dtype": d, "shape": list(s)} for name, (d, s) in template.layout.items()}
        if self._facts["tensors"] not in ({}, table):
            raise TensorError(
                f"The tensors are not those in {RUN_FILE}. Continue with the same model, or choose another --out."
            )
        self._facts["tensors"] = table
        self._write_facts()
        self._template = template
        return template

    def _write_facts(self) -> None:
        text = json.dumps(self._facts, indent=2, allow_nan=False) + "\n"
        write_file(self.path / RUN_FILE, [memoryview(text.encode())])


def _create(path: Path) -> RunLock:
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = RunLock(path)
        taken = any(path.iterdir())
    except OSError as error:
        raise RunError(f"Cannot create the run folder {path}: {error.strerror}. Choose another --out.") from None
    if taken:
        raise RunError(f"{path} is not empty. Continue its run with --resume, or choose another --out.")
    return lock


def _sync(path: Path, rule: str | float) -> Sync:
    return Sync(rule, [path / METRICS_FILE, path / RUN_FILE, path])


def library_versions() -> dict[str, str]:
    """Return the versions of Python, ckpt-tools, numpy and, when it is loaded, torch."""
    found = {"python": platform.python_version()}
    for name in ("ckpt-tools", "numpy", *(["torch"] if "torch" in sys.modules else [])):
        found[name] = metadata.version(name)
    return found
