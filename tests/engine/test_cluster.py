"""A real Dask cluster of two processes: the same bits, nothing lost when workers die."""

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from ckpt_tools import analyze
from ckpt_tools.engine.cluster import Cluster
from ckpt_tools.errors import ClusterError, OptionError

distributed = pytest.importorskip("distributed")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Dask's own, of many kinds

PLUGIN = '''
import os, time
from pathlib import Path
from ckpt_tools import Analyzer, Out, hookimpl, option

class Deadly(Analyzer):
    """Kills its process at one step, a given number of times; says where it is at another one, and waits there."""
    name = "deadly"
    outputs = {"x": Out(unit="1", long_name="step")}
    folder: str = option("", help="where to count")
    at: int = option(3, help="step")
    times: int = option(100, help="deaths")

    def analyze(self, view):
        if view.step == self.at:
            deaths = len(list(Path(self.folder).iterdir()))
            if deaths < self.times:
                (Path(self.folder) / f"{deaths}-{os.getpid()}").touch()
                os.kill(os.getpid(), 9)
        return {"x": float(view.step)}

class Sleepy(Analyzer):
    """Never ends at step 2."""
    name = "sleepy"
    outputs = {"x": Out(unit="1", long_name="step")}

    def analyze(self, view):
        while view.step == 2:
            time.sleep(0.01)
        return {"x": float(view.step)}

@hookimpl
def ckpt_analyzers():
    return [Deadly, Sleepy]
'''


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with Cluster(kind="local", workers=2).client() as connected:
        yield connected


@pytest.fixture
def trajectory(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for step in range(12):
        folder = tmp_path / "t" / f"step-{step}"
        folder.mkdir(parents=True)
        tensors = {f"w{i}": rng.standard_normal((12, 8)).astype("f4") for i in range(3)}
        save_file(tensors, folder / "model.safetensors")
    (tmp_path / "plugin.py").write_text(PLUGIN)
    (tmp_path / "deaths").mkdir()
    return tmp_path / "t"


def contents(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[...]}) if isinstance(item, h5py.Dataset) else None)
    return found


def same(one: Path, other: Path) -> bool:
    a, b = contents(one), contents(other)
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n], equal_nan=a[n].dtype.kind == "f") for n in a)


def test_the_same_bits_wherever_it_is_computed(client: Any, trajectory: Path, tmp_path: Path) -> None:
    analyze(trajectory, ["rank", "drift"], output=tmp_path / "one.h5")
    outcome = analyze(trajectory, ["rank", "drift"], output=tmp_path / "dask.h5", cluster=client)
    assert (outcome.computed, outcome.failures) == (24, [])
    assert same(tmp_path / "one.h5", tmp_path / "dask.h5")
    assert analyze(trajectory, ["rank", "drift"], output=tmp_path / "dask.h5", cluster=client).computed == 0


def test_a_worker_that_is_killed_loses_nothing(client: Any, trajectory: Path, tmp_path: Path) -> None:
    before = {pid for pid in client.run(os.getpid).values()}
    options = {"deadly": {"folder": str(tmp_path / "deaths"), "times": 1}}
    how: dict[str, Any] = {"options": options, "plugin_files": [tmp_path / "plugin.py"], "cluster": client}
    outcome = analyze(trajectory, ["deadly", "rank"], output=tmp_path / "r.h5", **how)
    died = [int(file.name.split("-")[1]) for file in (tmp_path / "deaths").iterdir()]
    assert len(died) == 1 and died[0] in before
    assert (outcome.computed, outcome.failures) == (24, [])
    assert contents(tmp_path / "r.h5")["deadly/x"].tolist() == [float(step) for step in range(12)]


def test_a_checkpoint_that_kills_workers_is_given_up(client: Any, trajectory: Path, tmp_path: Path) -> None:
    options = {"deadly": {"folder": str(tmp_path / "deaths")}}
    how: dict[str, Any] = {"options": options, "plugin_files": [tmp_path / "plugin.py"], "cluster": client}
    outcome = analyze(trajectory, ["deadly"], output=tmp_path / "r.h5", **how)
    assert outcome.failures == [(3, "deadly", "its worker process died 3 times")]
    assert outcome.computed == 11
    client.wait_for_workers(2, timeout=60)


def test_a_time_limit_holds_on_workers_too(client: Any, trajectory: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"plugin_files": [tmp_path / "plugin.py"], "cluster": client, "timeout": 0.3}
    outcome = analyze(trajectory, ["sleepy"], output=tmp_path / "r.h5", **how)
    assert outcome.failures == [(2, "sleepy", "UnitTimeout: took longer than 0.3 s (--timeout)")]
    assert outcome.computed == 11


def test_a_device_that_a_worker_lacks_is_refused(client: Any, trajectory: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--device mps: torch finds no Apple GPU"):
        analyze(trajectory, ["rank"], output=tmp_path / "r.h5", cluster=client, device="mps")


def test_by_address_on_the_command_line(client: Any, trajectory: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ckpt_tools.cli", "analyze", str(trajectory), "-p", "rank", "--quiet"]
    target = tmp_path / "r.h5"
    address = client.scheduler.address
    done = subprocess.run([*command, "-o", str(target), "--scheduler", address], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert contents(target)["rank/step"].tolist() == list(range(12))


def test_clear_errors(trajectory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpt_tools.engine.cluster.CONNECT_SECONDS", 0.5)

    def refused(match: str, error: type[Exception] = ClusterError, **how: Any) -> None:
        with pytest.raises(error, match=match):
            analyze(trajectory, ["rank"], output=tmp_path / "r.h5", cluster=Cluster(**how))
        assert not (tmp_path / "r.h5.journal").exists()

    refused(r"Cannot reach the Dask scheduler tcp://127\.0\.0\.1:9", scheduler="tcp://127.0.0.1:9")
    refused("no such file", scheduler_file=str(tmp_path / "none.json"))
    refused("'slrum' is not known. Did you mean 'slurm'", OptionError, kind="slrum")
    refused("one of --scheduler", OptionError, scheduler="tcp://x:1", kind="local")
    refused("one of --scheduler", OptionError)
    refused("goes with --cluster", OptionError, scheduler="tcp://x:1", config="c.toml")
    (tmp_path / "bad.toml").write_text("cores = ")
    refused("bad.toml cannot be read", OptionError, kind="local", config=str(tmp_path / "bad.toml"))
    (tmp_path / "odd.toml").write_text("coers = 3")
    refused("Cannot start a cluster of kind 'local': .*coers", kind="local", config=str(tmp_path / "odd.toml"))
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    refused("pip install dask-jobqueue", kind="slurm")


SBATCH = """#!/bin/sh
# Runs the script of a job at once, as a cluster of this one machine would.
cp "$1" {log}.sh  # as the real one does: the script is removed once this returns
setsid sh {log}.sh > {log} 2>&1 &
echo $! >> {jobs}
echo "Submitted batch job $!"
"""


def test_slurm_through_its_own_commands(trajectory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask_jobqueue")
    jobs, commands = tmp_path / "jobs", tmp_path / "bin"
    commands.mkdir()
    for name, text in {
        "sbatch": SBATCH.format(jobs=jobs, log=tmp_path / "log"),
        "scancel": '#!/bin/sh\nkill -- "-$1"\n',
    }.items():
        (commands / name).write_text(text)
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    config = tmp_path / "slurm.toml"
    config.write_text(f'workers = 1\ncores = 1\nprocesses = 1\nmemory = "1GB"\nlog_directory = "{tmp_path}"\n')
    try:
        cluster = Cluster(kind="slurm", config=str(config))
        outcome = analyze(trajectory, ["rank"], output=tmp_path / "slurm.h5", cluster=cluster)
    finally:
        for job in jobs.read_text().split() if jobs.exists() else []:
            threading.Event().wait(0.1)
            with suppress(ProcessLookupError):
                os.killpg(int(job), signal.SIGKILL)
    assert (outcome.computed, outcome.failures) == (12, []), (tmp_path / "log").read_text()
    analyze(trajectory, ["rank"], output=tmp_path / "one.h5")
    assert same(tmp_path / "one.h5", tmp_path / "slurm.h5")
