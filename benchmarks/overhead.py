"""What the engine costs: per unit, beside joblib, on two processes, and on Dask.

    python benchmarks/overhead.py --json overhead.json

- per unit: 10,000 checkpoints of one small matrix in step folders, an analyzer that does nothing: all the time is the
  engine's, from opening the trajectory to the results file on disk. Goal: under 2 ms per unit.
- against joblib: the same singular values of the same files by `--workers 2` and by `joblib.Parallel(2)`. Goal: at most
  1.1.
- two processes against one, on work that the processor bounds. Goal: at most 0.58.
- Dask: a cluster of two processes against `--workers 2`. Goal: within 15 %.

Each side's processes are started within its time, but for the cluster's, which runs before, as clusters do; joblib's
are new ones each time, like ours. `bare` is the function itself in one process: what joblib makes of it says how well
two cores of this machine do the work of one. Idle cores are needed: `load` says what else was running.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
from safetensors.numpy import load_file, save_file

from ckpt_tools import Analyzer, Out, analyze

UNIT, JOBLIB, WORKERS, DASK = 2.0, 1.1, 0.58, 1.15


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


def compared(folder: Path, checkpoints: int, width: int, rounds: int) -> dict[str, list[harness.Cost]]:
    """Return the costs of one process, two, joblib on two, and Dask on two."""
    # Imported here, so that no side's processes import what another needs.
    import joblib
    from joblib.externals.loky import get_reusable_executor

    from ckpt_tools.engine.cluster import Cluster

    source = write(folder / "work", checkpoints, width, 4)
    files = sorted(source.glob("*/model.safetensors"))

    def engine(**how: Any) -> harness.Side:
        return harness.clocked(lambda: analyze(source, [Values], output=folder / "work.h5", force=True, **how))

    def bare() -> None:
        for file in files:
            values_of(file)

    def other() -> None:
        joblib.Parallel(n_jobs=2)(joblib.delayed(values_of)(file) for file in files)
        get_reusable_executor().shutdown()

    with Cluster(kind="local", workers=2).client() as client:
        client.wait_for_workers(2)
        analyze(source, [Values], output=folder / "warm.h5", steps="first", cluster=client)
        sides = {"one": engine(), "two": engine(workers=2), "dask": engine(cluster=client)}
        return harness.turns({**sides, "bare": harness.clocked(bare), "joblib": harness.clocked(other)}, rounds)


def judge(report: harness.Report, costs: Mapping[str, Sequence[harness.Cost]]) -> None:
    """Add the goals about two processes, in seconds on the clock: that is what more processes are for."""
    floor = harness.ratio(costs["joblib"], costs["bare"], "seconds")
    report.found["the function in two processes against one"] = floor
    print(f"the function alone, in two processes against one: {floor:.3g}")
    for what, ours, other, goal in (
        ("two processes against joblib on two", "two", "joblib", JOBLIB),
        ("two processes against one", "two", "one", WORKERS),
        ("Dask on two processes against two processes", "dask", "two", DASK),
    ):
        report.goal(what, harness.ratio(costs[ours], costs[other], "seconds"), goal)


def main() -> None:
    """Measure, print, write JSON."""
    given = harness.parser(__doc__, rounds=3, units=10_000, checkpoints=300, width=512).parse_args()
    report = harness.Report("overhead", harness.machine(("joblib", "distributed")))
    with tempfile.TemporaryDirectory(dir=given.dir, prefix="overhead-") as name:
        folder = Path(name)
        tiny = write(folder / "tiny", given.units, 8, 1)
        units = harness.clocked(lambda: analyze(tiny, [Nothing], output=folder / "tiny.h5"))()
        costs = compared(folder, given.checkpoints, given.width, given.rounds)
    report.costs({"units": [units], **costs})
    report.goal("the engine's time per unit", 1e3 * units.seconds / given.units, UNIT, unit=" ms")
    judge(report, costs)
    report.write(given.json)


if __name__ == "__main__":
    main()
