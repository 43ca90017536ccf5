"""Folders or a log: the first saves are timed, and the choice is what the times say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ckpt_tools.errors import OptionError, RunError
from ckpt_tools.run import RunWriter
from ckpt_tools.run import store as store_module
from ckpt_tools.run.files import Sync
from ckpt_tools.run.folders import FolderStore
from ckpt_tools.run.lock import RunLock
from ckpt_tools.run.log import LogStore
from ckpt_tools.run.store import TIMED, AutoStore, open_store, share


class Clock:
    """A clock on which saves and steps take what is said."""

    def __init__(self, save: float, step: float) -> None:
        self.now, self.gaps = 0.0, (save, step)
        self.calls = 0

    def __call__(self) -> float:
        self.calls += 1
        self.now += self.gaps[self.calls % 2]
        return self.now


def test_share_is_a_ratio_of_medians() -> None:
    times = [(0.0, 1.0), (11.0, 12.0), (22.0, 23.0), (1000.0, 1500.0)]
    assert share(times) == 1.0 / 10.0


@pytest.mark.parametrize(
    ("save", "step", "logs"), [(0.6, 6.0, True), (0.31, 6.0, True), (0.29, 6.0, False), (1, 1e3, False)]
)
def test_short_steps_go_to_a_log(tmp_path: Path, save: float, step: float, logs: bool) -> None:
    auto = AutoStore(tmp_path, Sync("never"), Clock(save, step))
    for number in range(30):
        auto.put(number, [memoryview(bytes(16))])
    auto.close()
    folders = {p.name for p in tmp_path.glob("step-*")}
    assert len(folders) == (TIMED + 1 if logs else 30)
    assert [p.name for p in tmp_path.glob("*.stlog")] == ([f"log-{TIMED + 1:06d}.stlog"] if logs else [])


def test_a_run_with_a_log_goes_on_with_it(tmp_path: Path) -> None:
    assert isinstance(open_store(tmp_path, "auto", Sync("never")), AutoStore)
    assert isinstance(open_store(tmp_path, "folders", Sync("never")), FolderStore)
    log = open_store(tmp_path, "log", Sync("never"))
    assert isinstance(log, LogStore)
    log.put(0, [memoryview(bytes(16))])
    log.close()
    again = open_store(tmp_path, "auto", Sync("never"))
    assert isinstance(again, LogStore)
    again.close()
    assert isinstance(open_store(tmp_path, "folders", Sync("never")), FolderStore)


def test_unknown_mode(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"The mode of saving is one of auto, folders, log\. Got 'logs'"):
        RunWriter(tmp_path / "run", family="", family_version=1, config={}, mode="logs")
    assert not (tmp_path / "run").exists()


def test_the_writer_switches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARE", -1.0)
    with RunWriter(tmp_path / "run", family="", family_version=1, config={}) as run:
        for step in range(TIMED + 5):
            run.save(step, {"a": np.full(3, step)})
    assert len(list((tmp_path / "run").glob("step-*"))) == TIMED + 1
    assert len(list((tmp_path / "run").glob("*.stlog"))) == 1


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "run", family="", family_version=1, config={})
    with pytest.raises(RunError, match="is being written by another process"):
        RunWriter.resume(tmp_path / "run", step=0)
    run.finish("interrupted")
    RunWriter.resume(tmp_path / "run", step=0).finish()


def test_an_abandoned_writer_lets_go(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "run", family="", family_version=1, config={})
    del run
    RunLock(tmp_path / "run").release()


def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import fcntl

    def fail(number: int) -> None:
        def flock(descriptor: int, operation: int) -> None:
            raise OSError(number, "no")

        monkeypatch.setattr(fcntl, "flock", flock)

    fail(errno.ENOLCK)
    RunLock(tmp_path).release()
    fail(errno.EIO)
    with pytest.raises(RunError, match="Cannot lock"):
        RunLock(tmp_path)
