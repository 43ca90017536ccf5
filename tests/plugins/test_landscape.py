"""Loss increases and slices against closed forms on quadratics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ckpt_plugins.landscape import (
    SCALINGS,
    filter_normalised,
    landscape,
    loss_increase,
    magnitudes,
    principal_directions,
    sharpness_aware,
)

PARAMS = {"a": torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, -1.0]]).double(), "b": torch.tensor([2.0, -2.0]).double()}
CURVE = {"a": torch.tensor([[1.0, 2.0], [5.0, 7.0], [3.0, 1.0]]).double(), "b": torch.tensor([4.0, 0.5]).double()}


def quadratic(p: dict[str, Tensor]) -> float:
    """Return half the sum of curvature times squares."""
    return float(sum((CURVE[n] * p[n].square()).sum() / 2 for n in PARAMS))


def expected(sigma: float, scaling: str) -> float:
    """Return E[L(theta + sigma e)] - L(theta) = sigma^2 / 2 sum_i H_ii m_i^2."""
    m = magnitudes(PARAMS, scaling)  # type: ignore[arg-type]
    return sigma**2 / 2 * float(sum((CURVE[n] * m[n].square()).sum() for n in PARAMS))


def test_magnitudes_are_root_mean_squares_of_tensors_and_filters() -> None:
    assert float(magnitudes(PARAMS, "absolute")["a"]) == 1
    assert float(magnitudes(PARAMS, "tensor")["a"]) == pytest.approx(np.sqrt(27 / 6))
    assert magnitudes(PARAMS, "filter")["a"].flatten().tolist() == pytest.approx([np.sqrt(12.5), 0, 1])
    columns = magnitudes(PARAMS, "filter", transposed={"a"})["a"]
    assert columns.shape == (1, 2) and columns[0].tolist() == pytest.approx([np.sqrt(10 / 3), np.sqrt(17 / 3)])
    assert float(magnitudes(PARAMS, "filter")["b"]) == 2


def test_increase_of_a_quadratic_is_half_its_scaled_trace_within_honest_errors() -> None:
    sigmas = (0.1, 1.0)
    hits, total = 0, 0
    for seed in range(60):
        mean, error = loss_increase(quadratic, PARAMS, np.random.default_rng(seed), sigmas=sigmas, draws=32)
        assert mean.shape == error.shape == (3, 2)
        for i, scaling in enumerate(SCALINGS):
            for j, sigma in enumerate(sigmas):
                # 2.04 is the 97.5 % point of Student's t with 31 degrees of freedom.
                hits += abs(mean[i, j] - expected(sigma, scaling)) <= 2.04 * error[i, j]
                total += 1
    assert 0.88 < hits / total < 0.99


def test_relative_increase_ignores_rescaling_that_leaves_the_function_alone() -> None:
    def product(p: dict[str, Tensor]) -> float:
        return float((p["u"] * p["v"]).square().sum())

    base = {"u": torch.tensor([[1.0, 2.0]]), "v": torch.tensor([[3.0, 1.0]])}
    other = {"u": base["u"] * 64, "v": base["v"] / 64}
    one, two = (
        loss_increase(product, p, np.random.default_rng(0), sigmas=(0.1,), draws=8)[0][:, 0] for p in (base, other)
    )
    assert one[1:] == pytest.approx(two[1:], rel=1e-5) and abs(one[0] - two[0]) > one[0]


def test_step_along_the_gradient() -> None:
    gradient = np.concatenate([(CURVE[n] * PARAMS[n]).flatten().numpy() for n in PARAMS])
    h, g = np.concatenate([CURVE[n].flatten().numpy() for n in PARAMS]), gradient / np.linalg.norm(gradient)
    found = sharpness_aware(quadratic, PARAMS, gradient, (0.0, 0.5))
    assert found == pytest.approx([0, 0.5 * np.linalg.norm(gradient) + 0.125 * (h * g * g).sum()])
    assert sharpness_aware(quadratic, PARAMS, 0 * gradient, (0.5,)).tolist() == [0]


def test_filter_normalised_direction_has_the_lengths_of_the_filters() -> None:
    d = filter_normalised(PARAMS, np.random.default_rng(0))
    assert d["a"].norm(dim=1).tolist() == pytest.approx([5, 0, np.sqrt(2)])
    assert float(d["b"].norm()) == pytest.approx(np.sqrt(8))
    columns = filter_normalised(PARAMS, np.random.default_rng(0), transposed={"a"})["a"]
    assert columns.norm(dim=0).tolist() == pytest.approx([np.sqrt(10), np.sqrt(17)])


def test_slice_along_two_axes() -> None:
    x, y = ({n: torch.zeros_like(p) for n, p in PARAMS.items()} for _ in range(2))
    x["a"][0, 0], y["b"][1] = 1, 1
    grid = [np.array([-1.0, 0, 2]), np.array([0.0, 3])]
    found = landscape(quadratic, PARAMS, [x, y], grid)
    base = quadratic(PARAMS)
    change = [[((3 + i) ** 2 - 9) / 2 + 0.25 * ((-2 + j) ** 2 - 4) for j in grid[1]] for i in grid[0]]
    assert found - base == pytest.approx(np.array(change))


def test_principal_directions_span_a_planted_plane() -> None:
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.standard_normal((50, 2)))[0].T
    steps = np.linspace(1, 0, 9)
    coordinates = np.stack([5 * steps, np.sin(6 * steps)], axis=1)
    offsets = (coordinates @ plane).astype(np.float32)
    directions, found, shares = principal_directions(offsets)
    np.testing.assert_allclose(directions @ directions.T, np.eye(2), atol=1e-5)
    np.testing.assert_allclose(found @ directions, offsets, atol=1e-5)
    assert shares.sum() == pytest.approx(1) and shares[0] > 0.9
    assert found[-1] == pytest.approx([0, 0], abs=1e-6)


def test_trajectory_that_does_not_move_has_no_directions() -> None:
    directions, found, shares = principal_directions(np.zeros((4, 6)))
    assert not directions.any() and not found.any() and not shares.any()
