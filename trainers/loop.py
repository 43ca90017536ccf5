"""The training loop: one for all families and tasks.

The loss written at step k is that of checkpoint k: weights after k updates, on the examples of update k + 1. A signal
ends the loop between two steps. The side file `resume.pt` (weights, optimizer, random state, step) is then written, and
at checkpoints every half minute against harder deaths, so that the continued run is the uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from ckpt_tools import Family, RunError, RunInfo, RunWriter, is_run, read_run

from .distributed import processes
from .settings import Plan, plan
from .tasks import Batch
from .training import Training, tied

if TYPE_CHECKING:
    from .family import TrainedFamily

RESUME_FILE = "resume.pt"
RESUME_SECONDS = 30.0

OnStep = Callable[[int, int, Mapping[str, float]], None]


def train(
    family: type[TrainedFamily],
    task: str,
    values: Mapping[str, Any],
    out: Path,
    *,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> str:
    """Train a family into run folder `out` and return the run's status; see `ckpt_tools.Family.train`."""
    info = read_run(out) if resume and is_run(out) else None
    chosen = plan(family, task, values) if info is None else _same_plan(family, task, values, info)
    if info is not None and info.status == "finished":
        return "finished"
    with processes(chosen.loop.device) as group:
        training = Training(family, task, chosen, group)
        group.wait()  # until all have looked for the run
        run = _run if group.rank == 0 else _follow
        status = run(training, out, info, on_step)
        group.wait()  # whoever leaves first closes connections that others still use
        return status


def _same_plan(family: type[Family], task: str, values: Mapping[str, Any], info: RunInfo) -> Plan:
    stored = {**info.config, **info.task_config, **info.train}
    if (family.name, family.version, task) != (info.family, info.family_version, info.task):
        asked = f"{family.name} version {family.version} on {task}"
        there = f"{info.family} version {info.family_version} on {info.task}"
        raise RunError(f"{info.path} is a run of {there}, not of {asked}. Choose another --out.")
    before, now = plan(family, task, stored), plan(family, task, {**stored, **values})
    for name, value in now.flat().items():
        if value != before.flat()[name] and name != "device":
            raise RunError(
                f"{info.path} was begun with {name} = {before.flat()[name]}, not {value}. "
                f"Leave {name} out to continue it, or choose another --out."
            )
    return now


def _open(training: Training, out: Path, info: RunInfo | None) -> RunWriter:
    if info is not None:
        _restore(training, out)
        return RunWriter.resume(out, step=training.step, mode=training.plan.loop.mode)
    training.metrics(training.probe)  # a family that refuses the task does so before there is a run
    chosen = training.plan
    run = RunWriter(
        out,
        family=training.family.name,
        family_version=training.family.version,
        config=training.config,
        task=training.task_name,
        task_config=chosen.task.as_dict(),
        train=chosen.loop.as_dict(),
        seed=chosen.loop.seed,
        schedule=chosen.loop.schedule,
        tied=tied(training.module),
        probe=training.probe,
        mode=chosen.loop.mode,
    )
    for name, content in chosen.task.files().items():
        (out / name).write_bytes(content)
    return run


def _restore(training: Training, out: Path) -> None:
    if (out / RESUME_FILE).exists():
        training.restore(out / RESUME_FILE)
    training.group.wait()  # until all have read it


class Follower:
    """What stands in for the run in processes that write nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, step: int, tensors: Mapping[str, Any]) -> None:
        """Write no checkpoint."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write no numbers."""


def _follow(training: Training, out: Path, info: RunInfo | None, on_step: OnStep | None) -> str:
    """Train beside the process that writes the run."""
    with _threads(training.plan.loop.threads), _signals() as stop:
        if info is not None:
            _restore(training, out)
        return _steps(training, Follower(out), stop, on_step)


def _run(training: Training, out: Path, info: RunInfo | None, on_step: OnStep | None) -> str:
    with _threads(training.plan.loop.threads), _signals() as stop, _open(training, out, info) as run:
        try:
            run.finish(_steps(training, run, stop, on_step))
        except KeyboardInterrupt:
            run.finish("interrupted")
    if run.status == "finished":
        (out / RESUME_FILE).unlink(missing_ok=True)
    return run.status


def _steps(training: Training, run: RunWriter | Follower, stop: threading.Event, on_step: OnStep | None) -> str:
    last, schedule = training.plan.loop.steps, training.plan.loop.schedule
    tensors = training.module.state_dict()  # shares memory with the parameters
    writes, asked = isinstance(run, RunWriter), False
    kept = time.monotonic()
    while not asked:
        step, due = training.step, schedule.due(training.step, last)
        if writes and due and time.monotonic() - kept > RESUME_SECONDS:
            training.keep(run.path / RESUME_FILE)
            kept = time.monotonic()
        batch = training.batch()
        loss = training.loss(batch)
        total, asked = training.group.agree(loss, stop.is_set())
        metrics = {"loss": finite(total, training)}
        if due and writes:
            metrics |= training.metrics(batch)
            run.save(step, tensors)
        run.log(step, metrics)
        if on_step is not None:
            on_step(step, last, {**metrics, **tokens(batch)})
        if step == last:
            return "finished"
        training.update(loss)
        asked = asked or (stop.is_set() and training.group.size == 1)
    if writes:
        training.keep(run.path / RESUME_FILE)
    return "interrupted"


def tokens(batch: Batch) -> dict[str, float]:
    """Return how many tokens a batch holds, where it holds any, under the name `tokens`."""
    return {"tokens": batch["tokens"].numel()} if "tokens" in batch else {}


def finite(loss: float, training: Training) -> float:
    """Return the loss; raises RunError when training has diverged."""
    if not math.isfinite(loss):
        raise RunError(f"The loss is {loss} at step {training.step}: lower lr, which is {training.plan.loop.lr}.")
    return loss


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set; a second signal raises KeyboardInterrupt at once."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
