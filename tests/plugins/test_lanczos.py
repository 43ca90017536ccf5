"""Lanczos, quadrature and trace estimates against dense matrices of known spectrum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.integrate import trapezoid

from ckpt_plugins.lanczos import deflated_trace, density, hutch_plus_plus, hutchinson, lanczos, slq

Matrix = NDArray[np.float64]


def symmetric(values: list[float] | Matrix, seed: int = 0) -> Matrix:
    """Return a matrix of the given eigenvalues in a random basis."""
    n = len(values)
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    return (q * values) @ q.T


def outliers(n: int = 120, seed: int = 0) -> tuple[Matrix, Matrix]:
    """Return a matrix with a bulk near zero, five large and one negative outlier, and its eigenvalues descending."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([[40.0, 25.0, 12.0, 11.0, 6.0, -9.0], 0.3 * rng.standard_normal(n - 6)])
    return symmetric(values, seed), np.sort(values)[::-1]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 24), st.integers(0, 10_000))
def test_full_krylov_space_gives_every_eigenvalue(n: int, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal(n)
    h = symmetric(values, seed)
    ritz = lanczos(h.__matmul__, n, np.random.default_rng(seed + 1), k=n, tol=1e-12)
    np.testing.assert_allclose(ritz.values, np.sort(values)[::-1], atol=1e-9)


def test_residual_is_the_residual_and_bounds_the_error() -> None:
    h, exact = outliers()
    ritz = lanczos(h.__matmul__, len(h), np.random.default_rng(3), k=5, tol=1e-2)
    assert ritz.converged and ritz.products < 60
    vectors = ritz.vectors(5)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(5), atol=1e-10)
    residual = np.linalg.norm(vectors @ h - ritz.values[:5, None] * vectors, axis=1)
    np.testing.assert_allclose(residual, ritz.residuals[:5], atol=1e-9)
    assert np.all(np.abs(ritz.values[:5] - exact[:5]) <= ritz.residuals[:5])
    assert np.all(ritz.residuals[:5] <= 1e-2 * exact[:5])


def test_basis_stays_orthonormal_long_after_convergence() -> None:
    h, exact = outliers()
    ritz = lanczos(h.__matmul__, len(h), np.random.default_rng(0), k=len(h), tol=0.0, max_products=len(h))
    np.testing.assert_allclose(ritz.basis @ ritz.basis.T, np.eye(len(h)), atol=1e-12)
    np.testing.assert_allclose(ritz.values, exact, atol=1e-9)


def test_lowest_eigenvalue_comes_from_the_same_space() -> None:
    h, exact = outliers()
    ritz = lanczos(h.__matmul__, len(h), np.random.default_rng(1), k=5, tol=1e-3)
    assert abs(ritz.values[-1] - exact[-1]) <= ritz.residuals[-1] < 0.1


def test_budget_ends_unconverged() -> None:
    h, _ = outliers()
    ritz = lanczos(h.__matmul__, len(h), np.random.default_rng(1), k=5, tol=1e-6, max_products=4)
    assert not ritz.converged and ritz.products == 4


@pytest.mark.parametrize("values", [[3.0, 3.0, 3.0, 1.0], [0.0] * 5, [2.0], [-1.0, -1.0]])
def test_repeated_zero_and_negative_eigenvalues(values: list[float]) -> None:
    h = symmetric(values)
    ritz = lanczos(h.__matmul__, len(h), np.random.default_rng(2), k=len(values), tol=1e-8)
    np.testing.assert_allclose(ritz.values, np.sort(values)[::-1], atol=1e-12)


def test_zero_operator_stops_at_once() -> None:
    ritz = lanczos(np.zeros_like, 500, np.random.default_rng(2), k=1)
    assert ritz.converged and ritz.products == 2 and ritz.values[0] == 0


def test_quadrature_has_the_moments_of_the_spectrum() -> None:
    # With as many steps as dimensions and probes along every axis the quadrature is exact; one probe is exact in
    # z^T H^j z, and its mean over signs is the trace.
    h = symmetric([4.0, 1.0, -2.0, 0.5, 0.1, 3.0])
    nodes, weights = slq(h.__matmul__, 6, np.random.default_rng(0), probes=400, steps=6)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
    for power in (1, 2, 3):
        moments = np.nansum(weights * nodes**power, axis=1)
        exact = np.trace(np.linalg.matrix_power(h, power)) / 6
        assert abs(moments.mean() - exact) < 4 * moments.std(ddof=1) / 20


def test_density_matches_the_dense_one() -> None:
    h, exact = outliers(200)
    nodes, weights = slq(h.__matmul__, 200, np.random.default_rng(0), probes=60, steps=40)
    grid, width = np.linspace(-12, 45, 400), 0.8
    dense = np.mean(stats.norm.pdf(grid[:, None], exact[None, :], width), axis=1)
    found = density(nodes, weights, grid, width)
    assert trapezoid(np.abs(found - dense), grid) < 0.03
    assert trapezoid(found, grid) == pytest.approx(1, abs=1e-3)


def test_probe_that_exhausts_its_space_is_padded() -> None:
    nodes, weights = slq(lambda v: 2 * v, 10, np.random.default_rng(0), probes=2, steps=4)
    assert nodes[:, 0] == pytest.approx([2, 2]) and weights[:, 0] == pytest.approx([1, 1])
    assert np.isnan(nodes[:, 1:]).all() and not weights[:, 1:].any()
    peak = density(nodes, weights, np.array([2.0]), 1.0)[0]
    assert peak == pytest.approx(1 / np.sqrt(2 * np.pi))


def kinds() -> list[str]:
    return ["hutchinson", "hutch_plus_plus", "lanczos basis"]


def estimate(kind: str, h: Matrix, rng: np.random.Generator):  # type: ignore[no-untyped-def]
    if kind == "hutchinson":
        return hutchinson(h.__matmul__, len(h), rng, probes=12)
    if kind == "hutch_plus_plus":
        return hutch_plus_plus(h.__matmul__, len(h), rng, products=36)
    ritz = lanczos(h.__matmul__, len(h), rng, k=1, tol=0.0, max_products=12)
    return deflated_trace(h.__matmul__, ritz.basis, float(ritz.values.sum()), rng, probes=12)


@pytest.mark.parametrize("kind", kinds())
def test_trace_is_unbiased_and_its_error_is_honest(kind: str) -> None:
    h, exact = outliers(80)
    runs = [estimate(kind, h, np.random.default_rng(seed)) for seed in range(600)]
    values, errors = np.array([r.value for r in runs]), np.array([r.error for r in runs])
    spread = values.std(ddof=1)
    assert abs(values.mean() - exact.sum()) < 4 * spread / np.sqrt(len(runs))
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(spread, rel=0.1)
    t = stats.t.ppf(0.975, 11)
    covered = np.mean(np.abs(values - exact.sum()) <= t * errors)
    assert 0.92 < covered < 0.98


def test_deflation_beats_plain_sampling_at_equal_cost() -> None:
    values = 50.0 / np.arange(1, 101) ** 2
    h = symmetric(values)
    plain = [hutchinson(h.__matmul__, 100, np.random.default_rng(s), probes=36).value for s in range(60)]
    better = [hutch_plus_plus(h.__matmul__, 100, np.random.default_rng(s), products=36).value for s in range(60)]
    assert np.std(better) < 0.2 * np.std(plain)


def test_trace_within_the_whole_space_is_exact() -> None:
    h, exact = outliers(20)
    found = hutch_plus_plus(h.__matmul__, 20, np.random.default_rng(0), products=60)
    assert found.value == pytest.approx(exact.sum(), abs=1e-9) and found.error == 0


def test_single_probe_has_no_error_estimate() -> None:
    assert np.isnan(hutchinson(np.array, 5, np.random.default_rng(0), probes=1).error)


def test_float32_vectors_stay_float32() -> None:
    h, exact = outliers()
    seen: set[str] = set()

    def product(v: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.add(v.dtype.name)
        return (h @ v).astype(np.float32)

    ritz = lanczos(product, len(h), np.random.default_rng(0), k=3, tol=1e-3, dtype=np.float32)
    assert seen == {"float32"} and ritz.basis.dtype == np.float32
    np.testing.assert_allclose(ritz.values[:3], exact[:3], rtol=1e-4)
