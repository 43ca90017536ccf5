"""`ckpt pack` and `ckpt unpack`, as typed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ckpt_tools.checkpoint import open_trajectory
from ckpt_tools.cli.main import main
from ckpt_tools.run import RunWriter

Ckpt = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ckpt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ckpt:
    """`ckpt(arguments)` in this process; returns exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ckpt", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with RunWriter(tmp_path / "run", family="", family_version=1, config={}, mode="folders") as writer:
        for step in range(5):
            writer.save(step, {"w": np.full((3, 3), step, "f4")})
    return tmp_path / "run"


def test_there_and_back(ckpt: Ckpt, run: Path) -> None:
    size = sum(file.stat().st_size for file in run.glob("step-*/*"))
    assert ckpt("pack", run) == (0, f"5 checkpoints ({size:,} bytes) are now in logs -> {run}\n", "")
    assert ckpt("pack", run, "--check") == (0, f"{run}: no fault found.\n", "")
    assert ckpt("pack", run) == (0, f"0 checkpoints (0 bytes) are now in logs -> {run}\n", "")
    assert ckpt("unpack", run, "--steps", "last")[0] == 0
    code, stdout, _ = ckpt("unpack", run)
    assert (code, stdout) == (
        0,
        f"4 checkpoints ({size * 4 // 5:,} bytes) are now in folders, 1 was there already -> {run}\n",
    )
    assert sorted(path.name for path in run.glob("*step*")) == [f"step-{step:06d}" for step in range(5)]


def test_into_another_run_as_json(ckpt: Ckpt, run: Path, tmp_path: Path) -> None:
    ckpt("pack", run, "--quiet")
    code, stdout, _ = ckpt("unpack", run, "--steps", "at:1,3", "-o", tmp_path / "some", "--json")
    facts = json.loads(stdout)
    assert code == 0
    assert facts["run"] == str(tmp_path / "some")
    assert (facts["written"], facts["present"], facts["damaged"], facts["skipped"]) == (2, 0, [], [])
    assert open_trajectory(tmp_path / "some").steps == [1, 3]


def test_quiet_says_nothing(ckpt: Ckpt, run: Path) -> None:
    assert ckpt("pack", run, "-q") == (0, "", "")
    assert ckpt("pack", run, "-q", "--check") == (0, "", "")
    assert ckpt("unpack", run, "-q") == (0, "", "")


def test_skipped_folders_are_listed(ckpt: Ckpt, run: Path) -> None:
    (run / "step-000002/optimizer.pt").touch()
    _, stdout, _ = ckpt("pack", run)
    assert stdout.splitlines()[1] == "skipped: step-000002: left as it is: it holds 'optimizer.pt'"


def test_damage_is_an_error_after_the_work(ckpt: Ckpt, run: Path) -> None:
    ckpt("pack", run)
    (log,) = run.glob("*.stlog")
    with log.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    code, stdout, stderr = ckpt("pack", run, "--check")
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"ckpt: {log}, step 4: the bytes from ")
    code, stdout, _ = ckpt("pack", run, "--check", "--json")
    assert (code, len(json.loads(stdout)["faults"])) == (2, 1)
    code, stdout, stderr = ckpt("unpack", run)
    assert (code, stdout.startswith("4 checkpoints")) == (2, True)
    assert f"{log}, step 4: the bytes are not those that were written." in stderr


@pytest.mark.parametrize("command", ["pack", "unpack"])
def test_what_is_no_run(ckpt: Ckpt, command: str, tmp_path: Path) -> None:
    code, stdout, stderr = ckpt(command, tmp_path)
    assert (code, stdout) == (2, "")
    assert f"{tmp_path} is not a run: it has no run.json" in stderr


def test_help(ckpt: Ckpt) -> None:
    assert "ckpt pack runs/markov --check" in ckpt("pack", "--help")[1]
    assert "ckpt unpack runs/markov --steps last -o last" in ckpt("unpack", "--help")[1]
