"""The queue: copies in order, bounded in bytes, errors where the training loop sees them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_tools.checkpoint import open_trajectory
from ckpt_tools.errors import RunError
from ckpt_tools.run import RunWriter, read_run
from ckpt_tools.run import saving as saving_module
from ckpt_tools.run.background import MEMORY_SHARE, SaveQueue, available_memory, default_limit
from ckpt_tools.run.template import Template


class Slow:
    """A store that writes when it is allowed to."""

    def __init__(self) -> None:
        self.allowed = threading.Semaphore(0)
        self.seen: list[tuple[int, bytes]] = []
        self.closed = False
        self.error: Exception | None = None

    def put(self, step: int, buffers: Sequence[memoryview]) -> None:
        self.allowed.acquire()
        if self.error:
            raise self.error
        self.seen.append((step, b"".join(buffers)))

    def close(self) -> None:
        self.closed = True


def fill(value: int) -> Any:
    def into(out: np.ndarray[Any, Any]) -> None:
        out[:] = value

    return into


def test_copies_are_written_in_order() -> None:
    store = Slow()
    queue = SaveQueue(store, 10**6)
    for step in range(20):
        queue.put(step, 4, fill(step))
    assert store.seen == []
    store.allowed.release(20)
    queue.close()
    assert store.seen == [(step, bytes([step]) * 4) for step in range(20)]
    assert store.closed


@pytest.mark.parametrize(("limit", "held"), [(0, 1), (99, 1), (100, 1), (250, 2), (1000, 10)])
def test_no_more_copies_than_the_limit_holds(limit: int, held: int) -> None:
    store = Slow()
    queue = SaveQueue(store, limit)
    stepped: list[int] = []

    def train() -> None:
        for step in range(15):
            queue.put(step, 100, fill(step))
            stepped.append(step)

    thread = threading.Thread(target=train)
    thread.start()
    for done in range(15 - held):
        wait_for(lambda done=done: len(stepped) == held + done)
        assert thread.is_alive()
        store.allowed.release()
    store.allowed.release(15)
    thread.join(10)
    queue.close()
    assert [step for step, _ in store.seen] == list(range(15))
    assert queue._made == held


def wait_for(true: Any) -> None:
    event = threading.Event()
    for _ in range(2000):
        if true():
            return
        event.wait(0.005)
    raise AssertionError("it never came")


@pytest.mark.parametrize("error", [RunError("disk full"), OSError(5, "I/O"), MemoryError("none")])
def test_errors_come_up_in_the_training_loop(error: Exception) -> None:
    store = Slow()
    store.error = error
    queue = SaveQueue(store, 250)
    queue.put(0, 100, fill(0))
    store.allowed.release(10)
    wait_for(lambda: queue._error is not None)
    with pytest.raises(type(error)):
        queue.put(1, 100, fill(1))
    with pytest.raises(type(error)):
        queue.close()
    assert store.seen == []
    assert store.closed


def test_a_copy_that_fails_gives_its_room_back() -> None:
    def fail(out: object) -> None:
        raise RunError("no such tensor")

    store = Slow()
    queue = SaveQueue(store, 100)
    for _ in range(3):
        with pytest.raises(RunError, match="no such tensor"):
            queue.put(0, 100, fail)
    queue.put(1, 100, fill(1))
    store.allowed.release()
    queue.close()
    assert [step for step, _ in store.seen] == [1]


def test_waiting_for_room_ends_with_the_error() -> None:
    store = Slow()
    store.error = RunError("disk full")
    queue = SaveQueue(store, 100)
    queue.put(0, 100, fill(0))
    threading.Timer(0.1, lambda: store.allowed.release(5)).start()
    with pytest.raises(RunError, match="disk full"):
        queue.put(1, 100, fill(1))
    with pytest.raises(RunError, match="disk full"):
        queue.close()


def test_default_limit() -> None:
    assert default_limit(1000) == 64_000
    assert default_limit(2**40) <= MEMORY_SHARE * available_memory() * 1.5
    assert available_memory() > 2**20


def test_the_copy_is_what_the_tensors_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {
        "w": torch.zeros(40, 30),
        "t": torch.zeros(8, 6).T,
        "h": torch.zeros(5, dtype=torch.bfloat16),
        "n": np.zeros(3),
        "none": torch.ones(0, 3),
    }
    with RunWriter(tmp_path / "run", family="", family_version=1, config={}, queue=10**6) as run:
        store = run._saving.store
        wait, put = threading.Event(), store.put
        monkeypatch.setattr(store, "put", lambda step, buffers: (wait.wait(10), put(step, buffers)))
        for step in range(3):
            for tensor in tensors.values():
                tensor[:] = step
            run.save(step, tensors)
        wait.set()
    trajectory = open_trajectory(tmp_path / "run")
    for step in trajectory.steps:
        with trajectory.checkpoint(step) as checkpoint:
            assert all((checkpoint.read(name) == step).all() for name in tensors)
    assert trajectory.steps == [0, 1, 2]


def test_copy_is_what_buffers_are() -> None:
    tensors = {"a": torch.randn(3, 5), "b": np.arange(3, dtype=np.int8), "c": torch.randn(4, 4).T, "d": torch.tensor(1)}
    template = Template(tensors)
    out = np.empty(template.size, np.uint8)
    template.copy(tensors, out)
    assert out.tobytes() == b"".join(template.buffers(tensors))


@pytest.mark.parametrize(
    ("queue", "size", "threaded"),
    [(None, 10, False), (None, 1000, True), (0, 1000, False), (4000, 10, True)],
)
def test_threads_only_where_they_pay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queue: int | None, size: int, threaded: bool
) -> None:
    monkeypatch.setattr(saving_module, "BACKGROUND_BYTES", 2000)
    with RunWriter(tmp_path / "run", family="", family_version=1, config={}, queue=queue) as run:
        for step in range(3):
            run.save(step, {"a": torch.full((size,), float(step))})
        assert (run._saving._queue is not None) == threaded
    assert open_trajectory(tmp_path / "run").steps == [0, 1, 2]


def test_a_failed_save_leaves_an_interrupted_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunWriter(tmp_path / "run", family="", family_version=1, config={}, queue=10**6)
    run.save(0, {"a": torch.ones(3)})
    run._saving._queue.drain()  # type: ignore[union-attr]

    def full(step: int, buffers: object) -> None:
        raise RunError("No space left on device")

    monkeypatch.setattr(run._saving.store, "put", full)
    run.save(1, {"a": torch.ones(3)})
    with pytest.raises(RunError, match="No space left"):
        run.finish()
    assert read_run(tmp_path / "run").status == "interrupted"
    assert open_trajectory(tmp_path / "run").steps == [0]


LEFT = """
import sys, numpy as np
from ckpt_tools.run import RunWriter
run = RunWriter(sys.argv[1], family="", family_version=1, config={}, queue=10**9)
for step in range(40):
    run.save(step, {"a": np.full(250_000, step)})
"""


def test_leaving_the_interpreter_writes_what_waits(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LEFT, str(tmp_path / "run")], check=True, timeout=60)
    trajectory = open_trajectory(tmp_path / "run")
    assert trajectory.steps == list(range(40))
    assert (trajectory.checkpoint(39).read("a") == 39).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu_is_saved_in_the_background(tmp_path: Path) -> None:
    tensor = torch.zeros(1000, device="cuda")
    with RunWriter(tmp_path / "run", family="", family_version=1, config={}) as run:
        for step in range(50):
            tensor.fill_(step)
            run.save(step, {"a": tensor})
        assert run._saving._queue is not None
    trajectory = open_trajectory(tmp_path / "run")
    assert all((trajectory.checkpoint(step).read("a") == step).all() for step in range(50))
