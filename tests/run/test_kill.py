"""Processes that die: SIGKILL at any moment, SIGTERM, a full disk. What was acknowledged is there, and nothing is torn.

CKPT_KILLS says how many times each writer is killed (default 6).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ckpt_tools.checkpoint import open_trajectory
from ckpt_tools.errors import RunError
from ckpt_tools.run import RunWriter, check_run, read_metrics, read_run

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("CKPT_KILLS", "6"))
WAITING = 4
WRITER = f"""
import os, sys, numpy as np
from ckpt_tools.run import RunWriter
assert "torch" not in sys.modules
path, mode, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
queue = 0 if mode != "queue" else {WAITING} * 850_000
mode = mode if mode != "queue" else "auto"
kind = {{"family": "f", "family_version": 1, "config": {{}}}}
run = RunWriter.resume(path, step=first, mode=mode) if first else RunWriter(path, mode=mode, queue=queue, **kind)
tensors = {{"w": np.zeros((400, 500), "f4"), "b": np.zeros(3001, "f4"), "n": np.zeros(5, "i1")}}
for step in range(first, 100_000):
    for value in tensors.values():
        value[:] = step % 100
    run.save(step, tensors, {{"loss": step}})
    os.write(1, b"%d\\n" % step)
"""


def killed(path: Path, mode: str, first: int, after: float) -> int:
    """Run a writer, kill it a while after its first checkpoint, return the last step it acknowledged."""
    command = [sys.executable, "-c", WRITER, str(path), mode, str(first)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines = process.stdout.readline()
    time.sleep(after)
    process.kill()
    lines += process.stdout.read()
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    return int(lines.splitlines()[-1])


def check_intact(path: Path, first: int, acknowledged: int, lost: int = 0) -> int:
    """Check a writer killed since step `first`: nothing is torn, at most `lost` steps are missing; return the last."""
    if acknowledged < lost and not list(path.glob("step-*")):
        return -1
    trajectory = open_trajectory(path)
    last = trajectory.steps[-1]
    assert trajectory.steps == list(range(last + 1))
    assert last >= acknowledged - lost
    for step in trajectory.steps:
        with trajectory.checkpoint(step) as checkpoint:
            assert all((checkpoint.read(name) == step % 100).all() for name in ("w", "b", "n"))
    for folder in path.glob("step-*"):
        assert (load_file(folder / "model.safetensors")["n"] == int(folder.name[5:]) % 100).all()
    assert [fault for fault in check_run(path) if "cut short" not in fault and "unfinished" not in fault] == []
    steps = read_metrics(path)["step"]
    assert set(range(first, acknowledged + 1)) <= set(steps)
    assert read_run(path).status == "running"
    return last


@pytest.mark.parametrize("mode", ["folders", "log", "auto", "queue"])
def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path, mode: str) -> None:
    draw = random.Random(mode)
    for number in range(KILLS):
        path = tmp_path / str(number)
        acknowledged = killed(path, mode, 0, draw.uniform(0.0, 0.15))
        check_intact(path, 0, acknowledged, lost=WAITING + 1 if mode == "queue" else 0)


@pytest.mark.parametrize("mode", ["folders", "log", "auto"])
def test_killed_and_resumed_again_and_again(tmp_path: Path, mode: str) -> None:
    draw = random.Random(mode)
    path, last = tmp_path / "run", -1
    for _ in range(max(2, KILLS // 3)):
        last = check_intact(path, last + 1, killed(path, mode, last + 1, draw.uniform(0.0, 0.1)))
    with RunWriter.resume(path, step=last + 1, mode=mode) as run:
        run.log(last + 1, {"loss": 0.0})
    assert check_run(path) == []


LIMITED = """
import resource, sys, numpy as np
from ckpt_tools import CkptError
from ckpt_tools.run import RunWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    with RunWriter(sys.argv[1], family="f", family_version=1, config={}, mode=sys.argv[2]) as run:
        for step in range(1000):
            run.save(step, {"w": np.full(30_000, step, "f4")}, {"loss": step})
except CkptError as error:
    sys.exit(str(error))
"""


def test_a_log_that_may_not_grow_ends_the_run_cleanly(tmp_path: Path) -> None:
    path = tmp_path / "run"
    command = [sys.executable, "-c", LIMITED, str(path), "log", str(10**6)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"Cannot write the checkpoint of step 8 into {path}: File too large." in done.stderr
    assert "make room or raise the limit, then resume the run" in done.stderr
    assert "Traceback" not in done.stderr
    assert read_run(path).status == "interrupted"
    assert open_trajectory(path).steps == list(range(8))
    assert check_run(path) == []
    with RunWriter.resume(path, step=8, mode="log") as run:
        run.save(8, {"w": np.full(30_000, 8, "f4")})
    assert open_trajectory(path).steps == list(range(9))
    assert check_run(path) == []


FULL = """
import sys, numpy as np
from ckpt_tools import CkptError
from ckpt_tools.run import RunWriter
try:
    saving = {"mode": sys.argv[2], "queue": int(sys.argv[3])}
    with RunWriter(sys.argv[1], family="f", family_version=1, config={}, **saving) as run:
        for step in range(1000):
            run.save(step, {"w": np.full(30_000, step, "f4")}, {"loss": step})
except CkptError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A folder on which a small file system can be mounted, in a mount namespace that hides it from others."""
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("no user namespaces: a small tmpfs cannot be mounted")
    return tmp_path


@pytest.mark.parametrize("queue", [0, 10**6])
@pytest.mark.parametrize("mode", ["log", "folders"])
def test_a_full_disk_ends_the_run_cleanly(small_disk: Path, mode: str, queue: int) -> None:
    inside = f"""
    mount -t tmpfs -o size=2m small {small_disk} &&
    {sys.executable} -c '{FULL}' {small_disk}/run {mode} {queue}; echo "exit $?"
    cp -r {small_disk}/run /proc/self/fd/3/
    """
    copy = small_disk.parent / f"{small_disk.name}-copy"
    copy.mkdir()
    with_copy = os.open(copy, os.O_RDONLY)
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", inside.replace("/proc/self/fd/3", f"/proc/self/fd/{with_copy}")],
            capture_output=True,
            text=True,
            pass_fds=[with_copy],
            timeout=60,
        )
    finally:
        os.close(with_copy)
    assert "exit 1" in done.stdout, done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    path = copy / "run"
    trajectory = open_trajectory(path)
    assert trajectory.steps == list(range(len(trajectory)))
    assert 10 <= len(trajectory) <= 17
    assert check_run(path) == []
    assert json.loads((path / "run.json").read_text())["status"] in ("interrupted", "running")


RECORDED = """
import sys, time, torch
from ckpt_tools import Recorder
module = torch.nn.Linear(300, 300)
recorder = Recorder(module, sys.argv[1], mode=sys.argv[2], queue=int(sys.argv[3]))
print("ready", flush=True)
while True:
    with torch.no_grad():
        module.weight.fill_(recorder.now + 1)
    recorder.step(loss=0.5)
"""


@pytest.mark.parametrize(("mode", "queue"), [("log", 0), ("folders", 0), ("log", 20_000_000)])
def test_sigterm_writes_what_waits(tmp_path: Path, mode: str, queue: int) -> None:
    path = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", RECORDED, str(path), mode, str(queue)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.3)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert read_run(path).status == "interrupted"
    trajectory, steps = open_trajectory(path), read_metrics(path)["step"]
    assert trajectory.steps == [0, *steps]
    assert (trajectory.checkpoint(steps[-1]).read("weight") == steps[-1]).all()
    assert check_run(path) == []


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    killed(tmp_path / "run", "log", 0, 0.0)
    RunWriter.resume(tmp_path / "run", step=1).finish()
    with pytest.raises(RunError, match="is not empty"):
        RunWriter(tmp_path / "run", family="f", family_version=1, config={})
