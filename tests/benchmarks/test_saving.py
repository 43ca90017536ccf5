"""The benchmark of saving measures what it says, on a scale that fits a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "saving.py"


def test_a_few_steps(tmp_path: Path) -> None:
    arguments = ["--rounds", "2", "--steps", "3", "--dir", str(tmp_path), "--json", str(tmp_path / "saving.json")]
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=True)
    report = json.loads((tmp_path / "saving.json").read_text())
    found = report["found"]
    assert 190_000 < found["parameters"] < 210_000
    assert set(found["modes"]) == {"log", "folders"}
    for mode, row in found["modes"].items():
        assert row["rounds"] == 2
        assert 0.2 < row["ratio"] < 20
        assert row["save_us"] > 0
        assert f"{mode:8} loop {row['ratio']:.3f} of no saving" in done.stdout
    assert [goal["goal"] for goal in report["goals"]] == [1.05]
    assert report["machine"]["cores"] >= 1
    assert [path.name for path in tmp_path.iterdir()] == ["saving.json"]
