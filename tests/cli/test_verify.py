"""`ckpt verify` as a user meets it: findings, exit codes, JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ckpt_tools.verify import KINDS

Run = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ckpt(tmp_path: Path) -> Run:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ckpt_tools.cli", *args]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return run


@pytest.fixture
def drifting(tmp_path: Path) -> Path:
    """Six checkpoints of a matrix that drifts."""
    rng = np.random.default_rng(0)
    start, drift = rng.standard_normal((2, 40, 40)).astype(np.float32)
    for step in range(0, 60, 10):
        folder = tmp_path / "run" / f"step-{step}"
        folder.mkdir(parents=True)
        save_file({"w\x1b[31m": start + 0.01 * step * drift}, folder / "model.safetensors")
    return tmp_path / "run"


def test_a_trained_run_is_clean(ckpt: Run) -> None:
    trained = ckpt("train", "transformer", "--task", "markov", "--steps", "300", "--save", "every:10", "--out", "run")
    assert trained.returncode == 0, trained.stderr
    done = ckpt("verify", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "31 checkpoints, step 0 to 300" in done.stdout and "nothing suspicious" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_suspicion_is_exit_code_1(ckpt: Run, drifting: Path) -> None:
    (drifting / "step-20" / "model.safetensors").write_bytes((drifting / "step-50" / "model.safetensors").read_bytes())
    for args in ([], ["--cheap"], ["--quiet"]):
        done = ckpt("verify", "run", *args)
        assert done.returncode == 1 and done.stderr == ""
        assert done.stdout.startswith("warning: steps 20 and 50 hold the same weights, byte for byte"), done.stdout
    assert ckpt("verify", "run", "--steps", "0:10").returncode == 0
    data = json.loads(ckpt("verify", "run", "--json").stdout)
    assert data["suspicious"] and [f["kind"] for f in data["findings"]] == ["identical"]
    assert data["hashes"]["20"] == data["hashes"]["50"] != data["hashes"]["40"]


def test_names_from_files_are_escaped(ckpt: Run, drifting: Path) -> None:
    file = drifting / "step-20" / "model.safetensors"
    save_file({name: np.full_like(w, np.nan) for name, w in load_file(file).items()}, file)
    done = ckpt("verify", "run")
    assert done.returncode == 1 and r"NaN or infinity in w\x1b[31m at step 20" in done.stdout


def test_many_findings_of_a_kind_are_counted(ckpt: Run, drifting: Path) -> None:
    for i in range(12):
        (drifting / f"extra{i}.tmp").mkdir()
    done = ckpt("verify", "run")
    assert done.returncode == 0 and "and 4 more of kind left_out" in done.stdout
    assert "nothing suspicious (12 notes)" in done.stdout
    assert ckpt("verify", "run", "--quiet").stdout == ""


def test_a_damaged_checkpoint_does_not_stop_the_others(ckpt: Run, drifting: Path) -> None:
    file = drifting / "step-20" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    done = ckpt("verify", "run")
    assert done.returncode == 1 and done.stdout.startswith("error:   step 20 cannot be read.")
    assert "suspicious: 1 error" in done.stdout


def test_misuse_is_exit_code_2(ckpt: Run, drifting: Path) -> None:
    for args, said in (
        (["rnu"], "Did you mean 'run'?"),
        (["run", "--steps", "at:5"], "there is no step 5"),
        (["run", "--stepz"], "--steps"),
        (["run", "extra"], "extra"),
    ):
        done = ckpt("verify", *args)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert ckpt("verify", "run/step-10").returncode == 0


def test_every_kind_of_finding_is_documented() -> None:
    page = (ROOT / "docs" / "verify.md").read_text("utf-8")
    for kind in KINDS:
        assert f"| `{kind}` |" in page, f"docs/verify.md does not say what {kind} is"


def test_the_documented_limits_are_those_in_use() -> None:
    from ckpt_tools.verify import detours, kin, paths

    page = (ROOT / "docs" / "verify.md").read_text("utf-8")
    for value in (detours.STRONG, detours.WEAK, detours.FLOOR, detours.SHARE, kin.LOST, paths.JUMP_RATIO):
        assert f"`{value:g}`" in page, f"docs/verify.md does not state the limit {value:g}"
