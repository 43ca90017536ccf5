"""Flushing to the device follows its rule."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ckpt_tools.errors import OptionError, RunError
from ckpt_tools.run import RunWriter
from ckpt_tools.run.files import Sync


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files and folders flushed so far."""
    names: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        names.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return names


def save(path: Path, fsync: str | float, mode: str, steps: int = 2) -> RunWriter:
    run = RunWriter(path, family="", family_version=1, config={}, mode=mode, fsync=fsync)
    for step in range(steps):
        run.save(step, {"a": np.arange(3)}, {"loss": 1.0})
    return run


def test_never(tmp_path: Path, flushed: list[str]) -> None:
    save(tmp_path / "run", "never", "log").finish()
    assert flushed == []


def test_close_flushes_everything_written(tmp_path: Path, flushed: list[str]) -> None:
    run = save(tmp_path / "a", "close", "folders")
    assert flushed == []
    run.finish()
    assert flushed.count("model.safetensors") == 2
    assert {"step-000000", "step-000001", "a", "metrics.jsonl", "run.json"} <= set(flushed)
    flushed.clear()
    save(tmp_path / "b", "close", "log").finish()
    assert {"log-000000.stlog", "b", "metrics.jsonl"} <= set(flushed)


def test_seconds_flush_what_was_written_since(tmp_path: Path, flushed: list[str]) -> None:
    times = iter([0.0, 3.0, 11.0, 11.0, 12.0, 21.0, 21.0])
    sync = Sync(10.0, [tmp_path / "always", tmp_path / "absent"], clock=lambda: next(times))
    for name in ("always", "a", "b"):
        (tmp_path / name).touch()
    for path in "abaa":
        sync.wrote(tmp_path / path)
    assert flushed == ["a", "b", "always", "a", "always"]


def test_zero_seconds_flush_each_save(tmp_path: Path, flushed: list[str]) -> None:
    save(tmp_path / "run", 0, "log").finish()
    assert flushed.count("log-000000.stlog") >= 2


@pytest.mark.parametrize("rule", ["always", -1, True])
def test_unknown_rule(tmp_path: Path, rule: str | float) -> None:
    with pytest.raises(OptionError, match="fsync must be 'never', 'close' or a number of seconds"):
        RunWriter(tmp_path / "run", family="", family_version=1, config={}, fsync=rule)
    assert not (tmp_path / "run").exists()


def test_a_device_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    run = save(tmp_path / "run", "close", "log")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match=r"Cannot flush .* to the device: Input/output error"):
        run.finish()
    assert run.status == "interrupted"
