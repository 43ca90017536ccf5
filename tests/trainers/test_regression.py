"""The functions of the condensation papers against formulas written out here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_tools.run import read_metrics
from ckpt_trainers.mlp import MLP
from ckpt_trainers.settings import plan
from ckpt_trainers.tasks.regression import Regression


def points(task: Regression, seed: int = 0) -> tuple[Any, Any]:
    found = task.examples(torch.Generator().manual_seed(seed))
    return found["inputs"].numpy(), found["targets"].numpy()


def test_sines() -> None:
    x, y = points(Regression(function="sines"))
    np.testing.assert_allclose(x[:, 0], np.linspace(-np.pi, np.pi, 60), atol=1e-15)
    np.testing.assert_allclose(y, np.sin(x) + np.sin(2 * x), atol=1e-14)


def test_waves() -> None:
    x, y = points(Regression(function="waves", samples=5000))
    assert x.shape == (5000, 5)
    assert -4 <= x.min() < -3.99 < 1.99 < x.max() <= 2
    np.testing.assert_allclose(y[:, 0], sum(3.5 * np.sin(5 * x[:, k] + 1) for k in range(5)), atol=1e-12)


def test_teacher() -> None:
    x, y = points(Regression(samples=20000))
    np.testing.assert_allclose(np.cov(x.T), np.eye(5), atol=0.05)
    rest = np.arctanh((y[:, 0] - np.sin(2 * x[:, 0]) / 2).clip(-1 + 1e-12, 1 - 1e-12)) / 2
    inside = abs(rest) < 3
    w = np.linalg.lstsq(x[inside], rest[inside], rcond=None)[0]
    assert np.linalg.norm(w) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(np.tanh(2 * x @ w) + np.sin(2 * x[:, 0]) / 2, y[:, 0], atol=1e-4)
    assert not np.allclose(points(Regression(target_seed=1))[1], points(Regression())[1])


@pytest.mark.parametrize(("squares", "factor"), [("half", 0.5), ("mean", 1.0)])
def test_loss_of_both_forms(tmp_path: Path, squares: str, factor: float) -> None:
    values = {"squares": squares, "stds": "0,0,0", "steps": 0}
    MLP.train("regression", values, tmp_path / "run")
    task = Regression(squares=squares)
    metrics = read_metrics(tmp_path / "run")
    training = plan(MLP, "regression", values)
    assert training.flat()["inputs"] == 5
    tests = task.evaluation(torch.Generator())
    zero = task.metrics(torch.zeros(1000, 1, 1, dtype=torch.float64), tests)
    assert zero["test_loss"] == pytest.approx(factor * tests["targets"].square().mean().item())
    assert metrics["loss"][0] == pytest.approx(zero["test_loss"], rel=0.5)


def test_defaults_follow_the_function() -> None:
    chosen = plan(MLP, "regression", {"function": "waves"}).flat()
    assert (chosen["hidden"], chosen["std"], chosen["optimizer"], chosen["inputs"]) == ([50], 5e-3, "adamw", 5)
    assert plan(MLP, "regression", {"function": "sines", "dimension": 2}).flat()["inputs"] == 2
