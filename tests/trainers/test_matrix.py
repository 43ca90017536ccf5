"""The matrix, its entries, and the loss over what is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ckpt_tools.errors import OptionError
from ckpt_trainers.mlp import MLP
from ckpt_trainers.settings import plan
from ckpt_trainers.tasks.matrix import Matrix
from ckpt_trainers.training import Training


def begin(**values: Any) -> Training:
    return Training(MLP, "matrix", plan(MLP, "matrix", values))


def test_spectrum_is_that_of_the_target() -> None:
    m = Matrix(rows=7, columns=9, spectrum=(3.0, 0.5)).target().numpy()
    np.testing.assert_allclose(np.linalg.svd(m, compute_uv=False), [3, 0.5, 0, 0, 0, 0, 0], atol=1e-13)


@pytest.mark.parametrize("observed", [1.0, 0.3])
def test_loss_is_half_the_squares_over_given_entries(observed: float) -> None:
    training = begin(rows=5, columns=8, hidden=(4,), observed=observed, std=0.5)
    task = training.plan.task
    assert isinstance(task, Matrix)
    w = training.module.get_parameter("layers.1.weight") @ training.module.get_parameter("layers.0.weight")
    gap, given = (w - task.target()).detach(), task.given()
    assert given.sum() == round(40 * observed)
    expected = 0.5 * gap[given].square().sum().item()
    assert training.loss(training.batch()).item() == pytest.approx(expected, rel=1e-12)
    found = training.metrics(training.batch())
    assert found["error"] == pytest.approx((gap.norm() / task.target().norm()).item())
    assert ("hidden_error" in found) == (observed < 1)


def test_mean_of_squares() -> None:
    half, mean = (begin(squares=s, observed=0.5) for s in ("half-sum", "mean"))
    assert half.loss(half.batch()).item() == pytest.approx(100 * mean.loss(mean.batch()).item())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"spectrum": ()}, "spectrum must hold 1 to 20 values. Got 0"),
        ({"rows": 2, "spectrum": (1.0, 1.0, 1.0)}, "spectrum must hold 1 to 2 values. Got 3"),
        ({"observed": 0.0}, "observed 0.0 gives no entry at all"),
    ],
)
def test_bad_matrices(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Matrix(**values)


def test_seed_of_the_target() -> None:
    assert torch.equal(Matrix().target(), Matrix().target())
    assert not torch.equal(Matrix().target(), Matrix(target_seed=1).target())
