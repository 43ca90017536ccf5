"""The proofs of the engine measure what they say, on a scale that fits a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def measured(tmp_path: Path, script: str, *arguments: str) -> tuple[dict[str, Any], str]:
    command = [sys.executable, str(FOLDER / script), *arguments, "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "found.json").read_text()), done.stdout


def test_kills(tmp_path: Path) -> None:
    report, shown = measured(tmp_path, "kills.py", "--rounds", "2", "--checkpoints", "40")
    found = report["found"]
    assert (found["runs"], found["units"], found["lost_or_computed_twice"]) == (2, 80, 0)
    assert found["different"] == 0 and found["unreadable"] == [] and found["reads"] > 0
    assert all(0 <= row["acknowledged"] <= 80 and row["identical"] for row in found["rows"])
    assert "lost or computed twice   0" in shown


def test_memory(tmp_path: Path) -> None:
    found, shown = measured(tmp_path, "memory.py", "--lengths", "3,6", "--width", "8", "--layers", "1")
    short, long = found["found"]["rows"]
    assert (short["checkpoints"], long["checkpoints"]) == (3, 6)
    assert found["goals"][0]["measured"] == long["peak_bytes"] / short["peak_bytes"]
    assert min(short["peak_bytes"], long["peak_bytes"]) > 20 << 20 and "peak memory over 6" in shown


def test_overhead(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    arguments = ["--units", "10", "--checkpoints", "4", "--width", "16", "--rounds", "1"]
    found, shown = measured(tmp_path, "overhead.py", *arguments)
    floor = found["found"].pop("the function in two processes against one")
    seconds = {name: row["seconds"] for name, row in found["found"].items()}
    assert set(seconds) == {"units", "one", "two", "bare", "joblib", "dask"} and min(seconds.values()) > 0
    assert floor == pytest.approx(seconds["joblib"] / seconds["bare"])
    goals = {goal["what"]: goal["measured"] for goal in found["goals"]}
    assert goals["the engine's time per unit"] == pytest.approx(1e3 * seconds["units"] / 10)
    assert goals["two processes against one"] == pytest.approx(seconds["two"] / seconds["one"])
    assert goals["two processes against joblib on two"] == pytest.approx(seconds["two"] / seconds["joblib"])
    assert goals["Dask on two processes against two processes"] == pytest.approx(seconds["dask"] / seconds["two"])
    assert len(goals) == 4 and all(f"  {what}\n" in shown for what in goals)
