from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from ckpt_tools import Analyzer, Figure, Out
from ckpt_tools.results import Group, Trajectory, check, write_results

STEPS = [0, 1, 10, 100, 1000]
LABELS = ["embed", *(f"layers.{i}.attn.{p}" for i in range(4) for p in "qk"), "unembed"]


class Probe(Analyzer):
    """Outputs of every shape that is drawn."""

    name = "probe"
    outputs: ClassVar = {
        "rank": Out(("matrix",), long_name="effective rank"),
        "rank_error": Out(("matrix",), error_of="rank"),
        "spectrum": Out(("matrix", "index"), long_name="singular values"),
        "few": Out(("head",), unit="nat", long_name="entropy"),
        "many": Out(("position",), long_name="entropy by position"),
        "mass": Out(("query", "key"), long_name="mass"),
        "angle": Out(("unit",), unit="rad", long_name="orientation"),
        "size": Out(("unit",), long_name="amplitude"),
        "total": Out(long_name="total norm"),
        "count": Out(("head",), dtype="i8", long_name="clusters"),
        "never": Out(("head",)),
        "dtype": Out(("matrix",), dtype="str"),
    }


class Declared(Probe):
    """The same with figures of its own."""

    name = "declared"
    figures = (
        Figure("rank", log="y"),
        Figure("few", lines="head"),
        Figure("size", "scatter", against="angle"),
        Figure("never"),
    )


def values(step: int, scale: float = 1.0) -> dict[str, Any]:
    """What an analyzer returns: every number known in closed form."""
    n = len(LABELS)
    return {
        "matrix": LABELS,
        "rank": scale * (np.arange(n) + 1.0) * (step + 1),
        "rank_error": np.full(n, 0.5),
        "spectrum": np.outer(np.arange(n) + 1.0, 10.0 ** -np.arange(5.0)) * (step + 1),
        "few": [1.0, 2.0, float(step)],
        "many": np.arange(20.0) + step,
        "mass": np.array([[0.75, 0.25], [0.5, 0.5]]),
        "angle": np.linspace(-3, 3, 6),
        "size": np.arange(6.0) * step,
        "total": scale * (1.0 + step),
        "count": [3, -1, 1],
        "never": [np.nan] * 3,
        "dtype": ["float32"] * n,
    }


def written(path: Path, kind: type[Probe] = Probe, *, scale: float = 1.0, steps: Any = STEPS, **facts: Any) -> Path:
    """Write results of a made-up run; `facts` become attributes of the root."""
    records = [check(kind(), values(step, scale), "here", step=step) for step in steps]
    loss = [scale / (1 + step) for step in steps]
    trajectory = Trajectory(steps, ["ab"] * len(steps), metrics={"loss": loss})
    return write_results(path, [Group.of(kind(), records)], facts, trajectory=trajectory)


def run_facts(gamma: float, seed: int) -> dict[str, Any]:
    """Return attributes of a run with this initialization rate and seed."""
    return {
        "source": f"runs/gamma={gamma}_seed={seed}",
        "run": {"family": "mlp", "config": {"gamma": gamma, "width": 8}, "train": {"seed": seed}, "seed": seed},
    }


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    """Results of one run that declares no figures."""
    return written(tmp_path / "probe.h5")
