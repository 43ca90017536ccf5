"""Following a run that is still training."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ckpt_tools import Analyzer, Out, RunWriter, analyze
from ckpt_tools.errors import SourceError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpt_tools.engine.watch.POLL_SECONDS", 0.02)


def begun(path: Path, mode: str = "folders") -> RunWriter:
    return RunWriter(path, family="", family_version=1, config={}, mode=mode)


def save(run: RunWriter, step: int) -> None:
    run.save(step, {"w": RNG.standard_normal((6, 4)).astype("f4")})


class Apart(Analyzer):
    """Distance from the last checkpoint."""

    name = "apart"
    reference = "last"
    outputs = {"against": Out(unit="1", dtype="i8")}

    def analyze(self, view: Any) -> dict[str, Any]:
        return {"against": view.reference.step}


@pytest.mark.parametrize("mode", ["folders", "log"])
def test_checkpoints_are_analyzed_as_they_appear(tmp_path: Path, mode: str) -> None:
    run = begun(tmp_path / "run", mode)
    save(run, 0)
    seen: list[int] = []

    def train_on(done: float, total: int, detail: str) -> None:
        """The next checkpoint is saved when the one before was analyzed: nothing here depends on speed."""
        if done == total and total > len(seen):
            seen.append(total)
            if total < 4:
                save(run, total)
            else:
                run.finish()

    outcome = analyze(tmp_path / "run", ["rank", Apart], output=tmp_path / "r.h5", watch=True, on_progress=train_on)
    assert seen == [1, 2, 3, 4] and outcome.steps == [0, 1, 2, 3]
    assert (outcome.computed, outcome.reused, outcome.failures) == (8, 0, []), "the last is compared with only once"
    with h5py.File(tmp_path / "r.h5") as file:
        assert file["apart/against"][...].tolist() == [3, 3, 3, 3]
    again = analyze(tmp_path / "run", ["rank", Apart], output=tmp_path / "r.h5", watch=True)
    assert (again.computed, again.reused) == (0, 8), "a run that has ended is analyzed at once"


def test_a_run_without_a_checkpoint_is_waited_for(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")

    def train() -> None:
        save(run, 5)
        run.finish()

    timer = threading.Timer(0.3, train)
    timer.start()
    outcome = analyze(tmp_path / "run", ["rank"], output=tmp_path / "r.h5", watch=True)
    timer.join()
    assert outcome.steps == [5]


def test_an_unreadable_checkpoint_does_not_end_the_watch(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    save(run, 0)
    file = tmp_path / "run" / "step-000000" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])

    def mend(done: float, total: int, detail: str) -> None:
        if detail == "step 0" and not (tmp_path / "run" / "step-000001").exists():
            file.write_bytes(whole)
            save(run, 1)
            run.finish()

    outcome = analyze(tmp_path / "run", ["rank"], output=tmp_path / "r.h5", watch=True, on_progress=mend)
    assert outcome.steps == [0, 1] and outcome.failures == []


def test_only_a_run_can_be_watched(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(SourceError, match=r"no run that could be watched: it has no run\.json"):
        analyze(tmp_path / "folder", ["rank"], output=tmp_path / "r.h5", watch=True)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_everything(tmp_path: Path, number: int) -> None:
    run = begun(tmp_path / "run")
    for step in range(3):
        save(run, step)
    target = tmp_path / "r.h5"
    command = [sys.executable, "-m", "ckpt_tools.cli", "analyze", str(tmp_path / "run"), "-p", "rank", "--watch"]
    watching = subprocess.Popen([*command, "-o", str(target), "--json"], stdout=subprocess.PIPE, text=True)
    while not target.exists():
        assert watching.poll() is None
        threading.Event().wait(0.05)
    os.kill(watching.pid, number)
    out, _ = watching.communicate(timeout=60)
    assert watching.returncode == 130 and json.loads(out)["interrupted"] is True
    with h5py.File(target) as file:
        assert file["rank/step"][...].tolist() == [0, 1, 2]
    run.finish()
