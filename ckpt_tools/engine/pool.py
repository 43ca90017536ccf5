"""Where units are computed: in this process, or in several.

Work goes out in tasks of consecutive checkpoints; each worker reads its checkpoints itself. Results do not depend on
where or in which order they were computed. A process that dies takes its task along: the task is tried again, and one
that kills three processes is given up and recorded.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import current_process, get_context
from typing import Any

from ..checkpoint import Trajectory
from ..errors import SourceError
from ..spectra import Spectrum
from ..weights import Weights
from .ahead import Ahead
from .device import placed
from .plan import Job, Plan
from .run import Runner, StepResult, Tick, Wanted
from .work import cost

TASK_STEPS = 16
AHEAD = 2
"""Tasks handed out per process: none waits for its next one while this process keeps the results of another."""
TRIES = 3
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

SPLIT_COST = 2e10
"""Multiplications from which a checkpoint is split by matrix when there are fewer checkpoints than workers."""

_plan: Plan | None = None
_runner: Runner | None = None


@dataclass
class Task:
    """Positions of one task with the analyzers wanted at each, and how often it has killed its process."""

    wanted: Wanted
    deaths: int = 0


def compute(
    plan: Plan, wanted: Wanted, workers: int = 1, tick: Tick | None = None, client: Any = None
) -> Iterator[StepResult]:
    """Yield the result of every position of `wanted`, in the order they are finished.

    With the `client` of a Dask cluster they are computed there, else in `workers` processes.
    """
    if client is not None:
        from .remote import compute_remotely

        yield from compute_remotely(plan, wanted, client, tick)
    elif workers > 1 and len(wanted) < workers and _is_large(plan, wanted):
        with placed(plan) as here:
            yield from Runner(here, tick, ahead=lambda weights: _ahead(plan, weights, workers)).run(wanted)
    elif workers == 1 or len(wanted) < 2:
        with placed(plan) as here:
            yield from Runner(here, tick).run(wanted)
    else:
        yield from _parallel(plan, wanted, workers)


def _is_large(plan: Plan, wanted: Wanted) -> bool:
    """Return whether the matrices of the first checkpoint are worth the start of processes for each checkpoint."""
    runner = Runner(plan)
    try:
        weights, _ = runner.weights_of(plan.steps[min(wanted)])
        return sum(cost(weights.info(name).shape) for name in weights.names) > SPLIT_COST
    except SourceError:
        return False
    finally:
        runner.close()


def _ahead(plan: Plan, weights: Weights, workers: int) -> Ahead:
    return Ahead(weights, lambda: _pool(plan, workers), _spectrum, window=2 * workers, tries=TRIES)


def tasks_of(wanted: Wanted, workers: int) -> list[Task]:
    """Cut the work into tasks of consecutive positions, each its worker's share of half of what is left.

    So they end with single checkpoints, and no worker is idle for longer than one of them.
    """
    positions, at, tasks = sorted(wanted), 0, []
    while at < len(positions):
        size = max(1, min(TASK_STEPS, (len(positions) - at) // (2 * workers)))
        tasks.append(Task({p: wanted[p] for p in positions[at : at + size]}))
        at += size
    return tasks


def _parallel(plan: Plan, wanted: Wanted, workers: int) -> Iterator[StepResult]:
    waiting = deque(tasks_of(wanted, workers))
    suspects: deque[Task] = deque()
    while waiting or suspects:
        # After a death the tasks that were out go one at a time, so that only the guilty one is blamed.
        alone = bool(suspects)
        queue = suspects if alone else waiting
        yield from _with_pool(plan, queue, suspects, 1 if alone else workers)


def _with_pool(plan: Plan, queue: deque[Task], suspects: deque[Task], workers: int) -> Iterator[StepResult]:
    """Work off the queue until it is empty or a process dies; what was being done then may have killed it."""
    running: dict[Future[list[StepResult]], Task] = {}
    with _pool(plan, workers) as pool:
        try:
            while queue or running:
                while queue and len(running) < AHEAD * workers:
                    future = pool.submit(_work, queue[0].wanted)
                    running[future] = queue.popleft()
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    results = future.result()
                    del running[future]
                    yield from results
        except BrokenProcessPool:
            finished = [future for future in running if future.exception() is None]
            for future in finished:
                del running[future]
                yield from future.result()
            # They are taken up in the order they were handed out, so those behind the first ones were only waiting.
            tasks = list(running.values())
            queue.extendleft(reversed(tasks[workers:]))
            yield from buried(plan, tasks[:workers], suspects)


def buried(plan: Plan, tasks: Sequence[Task], suspects: deque[Task]) -> Iterator[StepResult]:
    """Queue tasks whose process died again, cut into single steps; yield failures for those that did so TRIES times.

    The first time one of them may have died with another's process; from then on each goes alone.
    """
    for task in tasks:
        deaths = task.deaths + 1
        if deaths < TRIES:
            suspects.extend(Task({position: names}, deaths) for position, names in task.wanted.items())
            continue
        for position, names in task.wanted.items():
            step = plan.steps[position]
            reason = f"its worker process died {deaths} times"
            yield StepResult(step, str(plan.path_of(step)), failures=dict.fromkeys(names, reason))


@contextmanager
def _pool(plan: Plan, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of fresh processes with one BLAS thread each; leaving early kills them."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    # In the environment before the processes start: BLAS libraries read it once, when they are loaded.
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    known = (plan.job, plan.trajectory)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start, initargs=known)
    try:
        yield pool
    finally:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        _restore(before)


def _restore(before: Mapping[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _start(job: Job, trajectory: Trajectory) -> None:
    """Prepare a worker: Ctrl-C is the coordinator's business."""
    global _plan  # the one thing a worker process keeps between tasks
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _plan = job.plan(trajectory=trajectory)


def _work(wanted: Wanted) -> list[StepResult]:
    assert _plan is not None  # set by the initializer
    with placed(_plan, current_process().name) as plan:
        return list(Runner(plan).run(wanted))


def _spectrum(step: int, name: str) -> tuple[Spectrum, str, str]:
    """Return the spectrum of a matrix, the tensor it is from and that one's digest; the checkpoint stays open."""
    global _runner
    assert _plan is not None  # set by the initializer
    if _runner is None:
        with placed(_plan, current_process().name) as plan:
            _runner = Runner(plan)
    weights, _ = _runner.weights_of(step)
    _runner.close(keep=[step])
    tensor = weights.info(name).tensor
    spectrum = weights.spectrum(name)
    weights.spectra.clear()
    return spectrum, tensor, weights.checkpoint.digest(tensor)
