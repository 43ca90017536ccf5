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
from multiprocessing import get_context

from ..checkpoint import Trajectory
from .plan import Job, Plan
from .run import Runner, StepResult, Tick, Wanted

TASK_STEPS = 16
TRIES = 3
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_plan: Plan | None = None


@dataclass
class Task:
    """Positions of one task with the analyzers wanted at each, and how often it has killed its process."""

    wanted: Wanted
    deaths: int = 0


def compute(plan: Plan, wanted: Wanted, workers: int = 1, tick: Tick | None = None) -> Iterator[StepResult]:
    """Yield the result of every position of `wanted`, in the order they are finished."""
    if workers == 1 or len(wanted) < 2:
        yield from Runner(plan, tick).run(wanted)
    else:
        yield from _parallel(plan, wanted, workers)


def tasks_of(wanted: Wanted, workers: int) -> list[Task]:
    """Cut the work into tasks of consecutive positions: small enough that the last ones keep all workers busy."""
    positions = sorted(wanted)
    size = max(1, min(TASK_STEPS, len(positions) // (4 * workers)))
    parts = [positions[i : i + size] for i in range(0, len(positions), size)]
    return [Task({p: wanted[p] for p in part}) for part in parts]


def _parallel(plan: Plan, wanted: Wanted, workers: int) -> Iterator[StepResult]:
    waiting = deque(tasks_of(wanted, workers))
    suspects: deque[Task] = deque()
    while waiting or suspects:
        # After a death the tasks that were out go one at a time, so that only the guilty one is blamed.
        alone = bool(suspects)
        queue = suspects if alone else waiting
        yield from _with_pool(plan, queue, suspects, 1 if alone else workers)


def _with_pool(plan: Plan, queue: deque[Task], suspects: deque[Task], workers: int) -> Iterator[StepResult]:
    """Work off the queue until it is empty or a process dies."""
    running: dict[Future[list[StepResult]], Task] = {}
    with _pool(plan, workers) as pool:
        while queue or running:
            while queue and len(running) < workers:
                task = queue.popleft()
                running[pool.submit(_work, task.wanted)] = task
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            try:
                for future in done:
                    results = future.result()
                    del running[future]
                    yield from results
            except BrokenProcessPool:
                yield from _bury(plan, list(running.values()), suspects, blame=workers == 1)
                return


def _bury(plan: Plan, tasks: Sequence[Task], suspects: deque[Task], *, blame: bool) -> Iterator[StepResult]:
    """Queue the tasks of a broken pool again, cut into single steps; yield failures for those given up."""
    for task in tasks:
        deaths = task.deaths + blame
        if len(task.wanted) > 1:
            suspects.extend(Task({position: names}) for position, names in task.wanted.items())
        elif deaths < TRIES:
            suspects.appendleft(Task(task.wanted, deaths))
        else:
            for position, names in task.wanted.items():
                step = plan.steps[position]
                reason = f"its worker process died {TRIES} times"
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
    return list(Runner(_plan).run(wanted))
