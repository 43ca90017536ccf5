"""Every benchmark runs alone on a scale that fits a test; no time is judged."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def ran(name: str, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """Return what a benchmark wrote as JSON; its goals are those it printed."""
    file = tmp_path / f"{name}.json"
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--json", str(file), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(file.read_text())
    assert found["name"] == name
    assert found["goals"]
    for goal in found["goals"]:
        reached = goal["measured"] <= goal["goal"] if goal["sign"] == "<=" else goal["measured"] >= goal["goal"]
        assert goal["holds"] == reached
        assert math.isfinite(goal["measured"])
        printed = next(line for line in done.stdout.splitlines() if line.endswith(goal["what"]))
        assert ("holds" if goal["holds"] else "misses") in printed
    return found


def loaded(name: str) -> ModuleType:
    """Return a file of the folder as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def needs(*peers: str) -> pytest.MarkDecorator:
    """Leave a test out where the peers, pinned in benchmarks/requirements.txt, are not installed."""
    missing = [peer for peer in peers if importlib.util.find_spec(peer) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def test_startup(tmp_path: Path) -> None:
    found = ran("startup", tmp_path, "--rounds", "1")
    assert set(found["found"]) == {"ckpt --help", "python -c pass"}


def test_clustering_finds_the_same_clusters_as_scikit_learn(tmp_path: Path) -> None:
    found = ran("clustering", tmp_path, "--rounds", "1", "--neurons", "640", "--width", "64")["found"]
    assert found["same"]
    # 320 neurons near 10 directions, 320 alone.
    assert set(found["clusters"].values()) == {330}
    assert found["ours"]["peak"] > 10 * 2**20


def test_opening_reads_the_same_tensor_as_transformers(tmp_path: Path) -> None:
    found = ran("opening", tmp_path, "--rounds", "1", "--width", "16", "--layers", "2", "--dir", str(tmp_path))["found"]
    assert found["same"]
    assert found["tensors"] == 28
    assert found["shards"] > 1


def test_trajectory_measures_every_checkpoint(tmp_path: Path) -> None:
    found = ran("trajectory", tmp_path, "--rounds", "1", "--steps", "3", "--dir", str(tmp_path))["found"]
    assert (found["checkpoints"], found["tensors"]) == (3, 25)
    assert 190_000 < found["parameters"] < 210_000
    assert found["errors"]["ours"] < 1e-9 < found["errors"]["script"] < 1e-3


def test_gpt_starts_where_its_stand_in_does(tmp_path: Path) -> None:
    found = ran("gpt", tmp_path, "--rounds", "1", "--steps", "1", "--dir", str(tmp_path))["found"]
    assert found["losses_apart"] < 1e-4


@needs("weightwatcher")
def test_spectra_are_right_on_both_sides(tmp_path: Path) -> None:
    sizes = ["--layers", "1", "--width", "64", "--vocabulary", "50001", "--dir", str(tmp_path)]
    found = ran("spectra", tmp_path, "--rounds", "1", *sizes)["found"]
    assert found["matrices"]["all spectra"] == found["matrices"]["spectra"] + 1 == 8
    assert found["matrices"]["weightwatcher"] == found["matrices"]["weightwatcher fits"] == 5
    assert found["errors"]["ours"] < 1e-9
    assert found["errors"]["weightwatcher"] < 1e-5


@needs("pyhessian", "curvlinops", "hessian_eigenthings")
def test_hessian_products_agree_where_they_are_right(tmp_path: Path) -> None:
    sizes = ["--width", "16", "--layers", "1", "--batch", "8", "--seeds", "1"]
    found = ran("hessian", tmp_path, "--rounds", "1", *sizes)["found"]
    assert found["ours_is_right"]
    assert found["product_errors"]["PyHessian"] < 1e-4
    assert found["eigenvalue_to_1e-3"]["ours"]["error"] <= 1e-3


def test_device_compares_the_cpu_with_itself(tmp_path: Path) -> None:
    sizes = ["--layers", "2", "--width", "48", "--inner", "96", "--vocabulary", "64", "--batch", "4"]
    small = ["--hessian-width", "16", "--hessian-layers", "1", "--device", "cpu", "--dir", str(tmp_path)]
    found = ran("device", tmp_path, "--rounds", "1", *sizes, *small)
    assert found["found"]["matrices"] == 16
    measured = {goal["what"]: goal["measured"] for goal in found["goals"]}
    assert measured["singular values apart, over both errors"] == 0
    assert 0 < measured["Hessian-vector product, error"] < 1e-5
    assert found["machine"]["device"].startswith("cpu, torch")


def test_device_has_nothing_to_measure_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    command = [sys.executable, str(FOLDER / "device.py"), "--json", str(tmp_path / "device.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("No GPU here")
    assert not list(tmp_path.iterdir())


def test_ratios_are_paired() -> None:
    harness = loaded("harness")
    ours = [harness.Cost(0, cpu) for cpu in (1.0, 10.0, 3.0)]
    other = [harness.Cost(0, cpu) for cpu in (2.0, 20.0, 3.0)]
    assert harness.ratio(ours, other) == 0.5  # a ratio of medians would be 1
    assert harness.median(ours) == harness.median(other) == 3.0


def test_sides_take_turns_in_alternating_order() -> None:
    harness, order = loaded("harness"), []
    sides = {name: harness.clocked(lambda name=name: order.append(name)) for name in "ab"}
    costs = harness.turns(sides, 2, warm=1)
    assert "".join(order) == "baabba"
    assert {name: len(rows) for name, rows in costs.items()} == {"a": 2, "b": 2}


def test_the_table_replaces_what_stands_between_its_marks(tmp_path: Path) -> None:
    table, page = loaded("table"), tmp_path / "performance.md"
    results = tmp_path / "results"
    results.mkdir()
    listed = {"what": "a", "sign": "<=", "goal": 0.4, "measured": 0.31, "unit": "", "holds": True}
    facts = {"cpu": "C", "cores": 2, "kernel": "6", "versions": {"torch": "2"}}
    (results / "one.json").write_text(json.dumps({"goals": [listed], "machine": facts}))
    missed = {**listed, "what": "b", "sign": ">=", "measured": 0.12345, "unit": " s", "holds": False}
    (results / "two.json").write_text(json.dumps({"goals": [missed], "machine": {**facts, "versions": {"numpy": "1"}}}))
    table.main(results, page)
    page.write_text("before\n" + page.read_text() + "after\n")
    table.main(results, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert text.count("| `one` | a | <= 0.4 | 0.31 | holds |") == 1
    assert "| `two` | b | >= 0.4 s | 0.123 s | **misses** |" in text
    assert text.count("Machine: C, 2 cores, Linux 6.") == 1
    assert "Versions: numpy 1, torch 2." in text
