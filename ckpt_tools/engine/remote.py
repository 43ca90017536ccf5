"""Units computed by the workers of a Dask cluster: each reads its checkpoints itself and sends back numbers only.

What a worker had at hand when it died is cut into single checkpoints, which then go one to a worker with nothing beside
them, so that only the guilty one is blamed when another worker dies, as with `--workers`. A scheduler that was there
before may be set to try a few more times by itself first.
"""

from __future__ import annotations

import os
import pickle
import queue
import threading
import uuid
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .. import __version__
from ..errors import ClusterError
from .device import placed
from .memory import free_memory
from .plan import Plan
from .pool import Task, buried, tasks_of
from .run import Runner, StepResult, Tick, Wanted

AHEAD = 4
"""Tasks handed out per worker: enough that none waits, few enough that results do not pile up."""
_PATIENCE = 1.0

_known: dict[str, Plan] = {}
_turn = threading.Lock()


def compute_remotely(plan: Plan, wanted: Wanted, client: Any, tick: Tick | None = None) -> Iterator[StepResult]:
    """Yield the result of every position of `wanted`, in the order they are finished."""
    work = _Work(plan, wanted, client)
    try:
        yield from work.results(tick)
    finally:
        work.cancel()


class _Work:
    """What is to be done, what is out (future, task, the worker it is alone on), and what may be deadly."""

    def __init__(self, plan: Plan, wanted: Wanted, client: Any) -> None:
        self._plan, self._client = plan, client
        self._token = uuid.uuid4().hex
        self._waiting = deque(tasks_of(wanted, max(len(client.nthreads()), 1)))
        self._suspects: deque[Task] = deque()
        self._out: dict[str, tuple[Any, Task, str]] = {}
        self._done: queue.SimpleQueue[str] = queue.SimpleQueue()
        # A task of its own: whoever needs the plan fetches it once, and it is made again when its worker dies.
        payload = pickle.dumps((__version__, plan.job, plan.trajectory))
        self._setup = client.submit(bytes, payload, key=f"ckpt-plan-{self._token}")

    def results(self, tick: Tick | None) -> Iterator[StepResult]:
        """Hand out tasks and yield what comes back until nothing is left."""
        while self._waiting or self._suspects or self._out:
            self._hand_out()
            try:
                key = self._done.get(timeout=_PATIENCE)
            except queue.Empty:
                yield from self._vanished(tick)
                continue
            if key in self._out:
                future, task, _ = self._out.pop(key)
                yield from self._result(future, task)

    def _hand_out(self) -> None:
        workers = self._client.nthreads()
        alone = any(worker for _, _, worker in self._out.values())
        while self._waiting and len(self._out) < AHEAD * max(len(workers), AHEAD) and not (self._suspects or alone):
            self._submit(self._waiting.popleft())
        if self._suspects and (alone or not self._out):
            taken = {worker for _, _, worker in self._out.values()}
            for worker in workers.keys() - taken:
                if self._suspects:
                    self._submit(self._suspects.popleft(), worker)

    def _submit(self, task: Task, worker: str = "") -> None:
        where: dict[str, Any] = {"workers": [worker]} if worker else {}
        key = f"ckpt-{uuid.uuid4().hex}"
        future = self._client.submit(_work, self._token, self._setup, task.wanted, key=key, **where)
        self._out[key] = (future, task, worker)
        future.add_done_callback(lambda done: self._done.put(done.key))

    def _vanished(self, tick: Tick | None) -> Iterator[StepResult]:
        """Bury what was alone on a worker that is gone: a scheduler would wait for it to come back."""
        workers = self._client.nthreads()
        if tick is not None and not workers:
            tick(self._plan.steps[0], 0.0, "no worker is connected")
        for key, (future, task, worker) in list(self._out.items()):
            if worker and worker not in workers and not future.done():
                del self._out[key]
                self._client.cancel([future])
                yield from buried(self._plan, [task], self._suspects)

    def _result(self, future: Any, task: Task) -> Iterator[StepResult]:
        from distributed import KilledWorker

        error = future.exception() if future.status == "error" else None
        if future.status == "finished":
            results: list[StepResult] = future.result()
            yield from results
        elif isinstance(error, KilledWorker):
            yield from buried(self._plan, [task], self._suspects)
        elif error is not None:
            raise error
        else:
            raise ClusterError(
                "The connection to the Dask scheduler was lost. What is finished is kept: run the same command again."
            )

    def cancel(self) -> None:
        """Take back what is still out."""
        self._client.cancel([future for future, _, _ in self._out.values()])
        self._setup.release()


def _work(token: str, payload: bytes, wanted: Wanted) -> list[StepResult]:
    """Compute a task on a worker, one at a time in each process: analyzers are free to use its global state."""
    with _turn:
        if token not in _known:
            _known.clear()
            _known[token] = _unpacked(payload)
        with placed(_known[token], _worker_name(), os.environ.get("CUDA_VISIBLE_DEVICES", "")) as plan:
            return list(Runner(plan).run(wanted))


def _worker_name() -> str:
    from distributed import get_worker

    return str(get_worker().name)


def _unpacked(payload: bytes) -> Plan:
    from distributed import get_worker

    worker = get_worker()
    version, job, trajectory = pickle.loads(payload)
    if version != __version__:
        raise ClusterError(
            f"The Dask worker {worker.address} has ckpt-tools {__version__}, this process {version}. Install the same."
        )
    limit = getattr(worker.memory_manager, "memory_limit", None) or free_memory()
    plan: Plan = replace(job, memory=min(job.memory, limit // 2) or limit // 2).plan(trajectory=trajectory)
    return plan
