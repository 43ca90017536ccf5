from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from ckpt_tools.analyzer import Analyzer, Out
from ckpt_tools.options import option
from ckpt_tools.results import Group, Trajectory, check, write_results

MATRICES = ["embed", "layers.0.attn.q", "модель/слой"]
STEPS = [0, 10, 20, 40]


class Rank(Analyzer):
    """Effective rank of every weight
    matrix."""

    name = "rank"
    version = "3"
    outputs: ClassVar = {
        "effective_rank": Out(("matrix",), long_name="exponential of the spectral entropy"),
        "effective_rank_error": Out(("matrix",), error_of="effective_rank"),
        "singular_values": Out(("matrix", "k"), dtype="f4"),
        "iterations": Out(("matrix",), dtype="i4"),
        "stored_dtype": Out(("matrix",), dtype="str"),
        "norm": Out(unit="nat"),
    }
    k: int = option(8, help="How many singular values.")


class Loss(Analyzer):
    """Loss at fewer steps than the ranks."""

    name = "probe"
    needs = "loss"
    outputs: ClassVar = {"loss": Out(unit="nat")}


def rank_record(step):
    values = np.arange(3.0) + step
    return check(
        Rank(),
        {
            "matrix": MATRICES,
            "effective_rank": [*values[:2], np.nan],
            "effective_rank_error": values * 1e-9,
            "singular_values": [[3.0, 2.0, 1.0], [2.0], []],
            "iterations": [1, 2, 3],
            "stored_dtype": ["bfloat16", "float32", "bfloat16"],
            "norm": step / 7,
        },
        "here",
        step=step,
    )


@pytest.fixture
def groups():
    """Two analyzers with different steps."""
    ranks = Group.of(
        Rank(k=2),
        [rank_record(step) for step in STEPS],
        distribution="ckpt-tools",
        distribution_version="0.1",
        summary={"onset": 20, "ratio": float("nan")},
        skipped=[("rotary.inv_freq", "buffer")],
    )
    return [ranks, Group.of(Loss(), [check(Loss(), {"loss": 2.5}, "here", step=s) for s in (0, 40)])]


@pytest.fixture
def trajectory():
    """The checkpoints of the groups, with a metric whose name holds a slash."""
    hashes, paths = [f"{s:064x}" for s in STEPS], [f"run/step_{s}" for s in STEPS]
    return Trajectory(STEPS, hashes, paths, {"eval/loss": [3, 2, 1, 0]})


@pytest.fixture
def results_file(tmp_path, groups, trajectory):
    """A results file as `ckpt analyze` writes it."""
    attrs = {"source": "runs/markov", "seed": "0", "history": "ckpt analyze runs/markov"}
    attrs |= {"storage_dtypes": ["bfloat16"]}
    return write_results(tmp_path / "results.h5", groups, attrs, trajectory=trajectory)
