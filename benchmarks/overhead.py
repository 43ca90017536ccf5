"""What the engine costs: per unit, beside joblib, on two processes, and on Dask.

    python benchmarks/overhead.py --json overhead.json

- `unit`: 10,000 checkpoints of one small matrix in step folders, an analyzer that does nothing: all the time is the
  engine's, from opening the trajectory to the results file on disk. Goal: under 2 ms per unit.
- `joblib`: the same singular values of the same files by `joblib.Parallel(2)` and by `--workers 2`. Goal: at most 1.1.
- `workers`: two processes beside one on work that the processor bounds. Goal: at most 0.58.
- `dask`: a Dask cluster of two processes beside `--workers 2`. Goal: within 15 %.

Times are medians of rounds in which the contestants take turns. Each contestant's processes are started within its time
but for the cluster's, which runs before, as clusters do. Idle cores are needed: `load` says what else was running.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import joblib  # noqa: E402 - after the variables
import numpy as np  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from ckpt_tools import Analyzer, Out, analyze  # noqa: E402
from ckpt_tools.engine.cluster import Cluster  # noqa: E402

GOALS = {"unit_ms": 2.0, "joblib": 1.1, "workers": 0.58, "dask": 1.15}


class Nothing(Analyzer):
    """Does nothing."""

    name = "nothing"
    outputs = {"x": Out(unit="1", long_name="step")}

    def analyze(self, view: Any) -> dict[str, Any]:
        return {"x": float(view.step)}


class Values(Analyzer):
    """Singular values of every matrix."""

    name = "values"
    outputs = {"values": Out(dims=("matrix", "k"), unit="1")}

    def analyze(self, view: Any) -> dict[str, Any]:
        names = view.matrix_names()
        return {"matrix": names, "values": [np.linalg.svd(view.matrices()[n], compute_uv=False) for n in names]}


def values_of(file: Path) -> list[Any]:
    """Return what `Values` returns, without any engine."""
    return [np.linalg.svd(matrix, compute_uv=False) for matrix in load_file(file).values()]


def write(folder: Path, count: int, width: int, matrices: int) -> Path:
    """Write so many checkpoints with known roles and return their folder."""
    rng = np.random.default_rng(0)
    config = json.dumps({"model_type": "llama", "num_attention_heads": 1, "hidden_size": width, "head_dim": width})
    for step in range(count):
        at = folder / f"step-{step:06d}"
        at.mkdir(parents=True)
        names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(matrices)]
        save_file({n: rng.standard_normal((width, width)).astype("f4") for n in names}, at / "model.safetensors")
        (at / "config.json").write_text(config)
    return folder


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def contest(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each, taking turns."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            found[name].append(timed(work))
    return {name: statistics.median(times) for name, times in found.items()}


def compared(folder: Path, checkpoints: int, width: int, rounds: int) -> dict[str, float]:
    """Return seconds of one process, two, joblib on two, and Dask on two."""
    source = write(folder / "work", checkpoints, width, 4)
    files = sorted(source.glob("*/model.safetensors"))

    def engine(**how: Any) -> Callable[[], object]:
        return lambda: analyze(source, [Values], output=folder / "work.h5", force=True, **how)

    def other() -> object:
        return joblib.Parallel(n_jobs=2)(joblib.delayed(values_of)(file) for file in files)

    with Cluster(kind="local", workers=2).client() as client:
        client.wait_for_workers(2)
        analyze(source, [Values], output=folder / "warm.h5", steps="first", cluster=client)
        return contest(
            {"one": engine(), "two": engine(workers=2), "joblib": other, "dask": engine(cluster=client)}, rounds
        )


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=10_000)
    parser.add_argument("--checkpoints", type=int, default=100)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results here")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        folder = Path(name)
        tiny = write(folder / "tiny", given.units, 8, 1)
        unit = timed(lambda: analyze(tiny, [Nothing], output=folder / "tiny.h5")) / given.units
        seconds = compared(folder, given.checkpoints, given.width, given.rounds)
    figures = {
        "unit_ms": 1e3 * unit,
        "joblib": seconds["two"] / seconds["joblib"],
        "workers": seconds["two"] / seconds["one"],
        "dask": seconds["dask"] / seconds["two"],
    }
    for key, value in figures.items():
        print(f"{key:<8} {value:7.3f}   goal: at most {GOALS[key]}")
    print(f"seconds: {', '.join(f'{k} {v:.1f}' for k, v in seconds.items())}; {os.cpu_count()} cores, load {load:.1f}")
    if given.json:
        found = {**figures, "goals": GOALS, "seconds": seconds, "cores": os.cpu_count(), "load": load}
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
