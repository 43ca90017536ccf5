"""What goes wrong around an analysis: full disks, wrong outputs, clocks, places that cannot be written."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from ckpt_tools import Analyzer, Out, analyze
from ckpt_tools.errors import PluginError, ResultsError


def save(trajectory: Path, step: int, value: float) -> Path:
    folder = trajectory / f"step-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"model.layers.0.self_attn.{p}_proj.weight" for p in "qkvo"]
    save_file({n: np.full((8, 8), value, "f4") for n in names}, folder / "model.safetensors")
    config = {"model_type": "llama", "num_attention_heads": 2, "hidden_size": 8, "head_dim": 4}
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "model.safetensors"


@pytest.fixture
def trajectory(tmp_path: Path) -> Path:
    for step in range(40):
        save(tmp_path / "t", step, step + 1.0)
    return tmp_path / "t"


class Sum(Analyzer):
    """Sum of all entries; NaN at step 3, of a wrong shape at step 5, text at step 7."""

    name = "sum"
    outputs = {"sum": Out(unit="1")}

    def analyze(self, view: Any) -> dict[str, Any]:
        total = sum(float(m.sum()) for m in view.matrices().values())
        return {"sum": {3: float("nan"), 5: [total, total], 7: "a lot"}.get(view.step, total)}


def test_wrong_outputs_are_recorded_and_nan_is_a_value(trajectory: Path, tmp_path: Path) -> None:
    outcome = analyze(trajectory, [Sum], output=tmp_path / "r.h5")
    assert [(step, name) for step, name, _ in outcome.failures] == [(5, "sum"), (7, "sum")]
    assert "has shape (2,), but declares a single value" in outcome.failures[0][2]
    assert "step 7" in outcome.failures[1][2] and "'a lot'" in outcome.failures[1][2]
    with h5py.File(tmp_path / "r.h5") as file:
        steps, sums = file["sum/step"][...].tolist(), file["sum/sum"][...]
    assert steps == [step for step in range(40) if step not in (5, 7)]
    assert np.isnan(sums[3]) and np.array_equal(np.delete(sums, 3), [256.0 * (s + 1) for s in steps if s != 3])


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = ["ckpt", *sys.argv[2:]]
from ckpt_tools.cli.main import main
main()
"""


@pytest.mark.parametrize("limit", [20_000, 200_000])
def test_a_full_disk_is_said_and_costs_nothing_that_was_acknowledged(
    trajectory: Path, tmp_path: Path, limit: int
) -> None:
    target = tmp_path / "r.h5"
    command = ["analyze", str(trajectory), "-p", "rank", "-o", str(target), "--quiet"]
    full = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *command], capture_output=True, text=True, cwd=tmp_path
    )
    assert full.returncode == 2 and "Traceback" not in full.stderr, full.stderr
    assert "Free some space" in full.stderr
    outcome = analyze(trajectory, ["rank"], output=target)
    assert outcome.computed + outcome.reused == 40 and outcome.failures == []
    if limit > 100_000:
        assert outcome.reused > 0
    analyze(trajectory, ["rank"], output=tmp_path / "fresh.h5")
    with h5py.File(target) as one, h5py.File(tmp_path / "fresh.h5") as other:
        assert np.array_equal(one["rank/singular_values"][...], other["rank/singular_values"][...], equal_nan=True)
        assert one["trajectory/content_hash"][...].tolist() == other["trajectory/content_hash"][...].tolist()
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where nobody may write")
def test_a_place_that_cannot_be_written(trajectory: Path) -> None:
    with pytest.raises(ResultsError, match=r"Cannot write /proc/r\.h5: .* choose a writable place with -o"):
        analyze(trajectory, ["rank"], output="/proc/r.h5")


def test_a_clock_that_goes_backwards(trajectory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(2_000_000_000, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    assert analyze(trajectory, ["rank"], output=tmp_path / "r.h5").computed == 40
    file = trajectory / "step-4" / "model.safetensors"
    before = file.stat()
    save(trajectory, 4, 77.0)
    # As if the clock had been set back: other bytes, the same size, the same time of change.
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert analyze(trajectory, ["rank"], output=tmp_path / "r.h5").computed == 1
    with h5py.File(tmp_path / "r.h5") as stored:
        assert stored["rank/nuclear_norm"][4] == pytest.approx([77.0 * 8] * 4)


def test_nothing_but_wrong_outputs_is_an_error(trajectory: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="declares a single value"):
        analyze(trajectory, [Sum], output=tmp_path / "r.h5", steps="at:5")
    assert not (tmp_path / "r.h5").exists()
