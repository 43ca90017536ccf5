"""Oracles: a plain double loop, quantiles of a Pareto law, WeightWatcher's own numbers on the same matrices."""

import doctest
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ckpt_plugins.heavytail as heavytail
from ckpt_plugins.heavytail import HeavyTail, fit_power_law
from ckpt_tools import analyze
from ckpt_tools.analyzer import declaration_faults
from ckpt_tools.testing import analyzer_checks


def brute_force(values: np.ndarray) -> tuple[float, float, float]:
    """Return alpha, D and xmin by trying every xmin and every point of its tail."""
    x = sorted(float(v) for v in values)
    found = []
    for i, xmin in enumerate(x[:-1]):
        tail = x[i:]
        n, total = len(tail), math.fsum(math.log(v / xmin) for v in tail)
        small = len(x) < 20
        if total < 1e-9 or (small and n < 8 and i > 0) or (small and n < 8 and len(x) >= 8):
            continue
        alpha = 1 + (n - small) / total
        d = max(abs(k / n - (1 - (v / xmin) ** (1 - alpha))) for k, v in enumerate(tail))
        found.append((d, i, alpha, xmin))
    d, _, alpha, xmin = min(found)
    return alpha, d, xmin


@settings(deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=60, unique_by=lambda v: round(v, 6)))
@example([1.0, 2.0])
@example([float(i) for i in range(1, 20)])
@example([2.0**i for i in range(25)])
def test_the_fit_is_that_of_the_double_loop(values: list[float]) -> None:
    alpha, d, xmin = brute_force(np.array(values))
    law = fit_power_law(np.array(values))
    assert law.distance == pytest.approx(d, abs=1e-9)
    if law.xmin == xmin:  # two candidates may tie to the last bit
        assert law.alpha == pytest.approx(alpha, rel=1e-6)


@pytest.mark.parametrize("alpha", [1.5, 2.5, 4.0])
def test_quantiles_of_a_power_law_give_its_exponent(alpha: float) -> None:
    x = 3.0 * (1 - (np.arange(4000) + 0.5) / 4000) ** (-1 / (alpha - 1))
    law = fit_power_law(x)
    assert law.alpha == pytest.approx(alpha, rel=0.01) and law.distance < 2e-3
    assert law.sigma == pytest.approx((law.alpha - 1) / math.sqrt(law.tail))
    assert law.tail > 3900 and law.xmin == pytest.approx(3, rel=0.05) and law.xmax == x.max()


def test_a_tail_is_told_from_the_bulk_below_it() -> None:
    tail = 10.0 * (1 - (np.arange(1000) + 0.5) / 1000) ** (-1 / 2)  # alpha 3 from 10 on
    bulk = np.linspace(1, 10, 1500)
    law = fit_power_law(np.concatenate([tail, bulk]))
    assert law.alpha == pytest.approx(3, rel=0.02) and law.xmin == pytest.approx(10, rel=0.05)


def test_the_standard_error_is_the_spread_over_samples() -> None:
    rng = np.random.default_rng(0)
    alphas, sigmas = [], []
    for _ in range(200):
        logs = np.sort(rng.exponential(1 / 1.5, size=400))
        slopes, counts = heavytail._slopes(logs, small=False)
        alphas.append(1 + slopes[0])
        sigmas.append(slopes[0] / math.sqrt(counts[0]))
    assert np.mean(sigmas) == pytest.approx(np.std(alphas), rel=0.15)


@settings(deadline=None)
@given(st.integers(2, 300), st.integers(0, 2**32 - 1))
def test_bounds_lie_below_the_distances_they_bound(n: int, seed: int) -> None:
    logs = np.sort(np.random.default_rng(seed).standard_normal(n))
    slopes, counts = heavytail._slopes(logs, small=False)
    bounds = heavytail._lower_bounds(logs, slopes, counts, np.arange(n - 1))
    assert all(bound <= heavytail._distance(logs[i:], slopes[i]) for i, bound in enumerate(bounds))


def wave(rows: int, columns: int, power: float) -> np.ndarray:
    """Return a matrix any program can rebuild, with a steep spectrum for a large power."""
    i, j = np.meshgrid(np.arange(1, rows + 1), np.arange(1, columns + 1), indexing="ij")
    return (np.sin(0.7 * i * i + 1.3 * j * j + 0.1 * i * j) * (i + j) ** -power).astype("f4")


# Made with WeightWatcher 0.7.7 (svd_method="accurate", everything else default) on torch.nn.Linear layers.
WEIGHTWATCHER = json.loads((Path(__file__).parent / "weightwatcher.json").read_text())


@pytest.mark.parametrize("case", WEIGHTWATCHER, ids=lambda case: f"{case['rows']}x{case['columns']}")
def test_numbers_are_those_of_weightwatcher(look: Any, case: dict[str, Any]) -> None:
    analyzer = HeavyTail()
    found = analyzer.analyze(look(analyzer, {"w": wave(case["rows"], case["columns"], case["power"])}))
    for name, value in case["expected"].items():
        assert found[name][0] == pytest.approx(value, rel=1e-5), name


def test_the_exponent_does_not_depend_on_basis_sign_or_scale(look: Any) -> None:
    rng, w = np.random.default_rng(0), wave(40, 60, 0.5).astype("f8")
    rotation = np.linalg.qr(rng.standard_normal((60, 60)))[0]
    analyzer = HeavyTail(relative=True)
    plain, *others = [
        analyzer.analyze(look(analyzer, {"w": x}))
        for x in (w, w @ rotation, -w, w[rng.permutation(40)], w.T, 1e-6 * w, 1e6 * w)
    ]
    for other in others:
        for name in ("alpha", "sigma", "D", "stable_rank", "num_pl_spikes"):
            assert other[name] == pytest.approx(plain[name], rel=1e-6), name
    for name in HeavyTail.outputs:
        assert others[0][name] == pytest.approx(plain[name], rel=1e-6), name


def test_no_matrix_is_left_out_for_its_shape(look: Any) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "embed": rng.standard_normal((50_100, 8)).astype("f4"),  # WeightWatcher leaves out a side beyond 50,000
        "experts": rng.standard_normal((3, 12, 20)).astype("f4"),  # and every three-dimensional tensor
        "few": rng.standard_normal((2, 30)).astype("f4"),
    }
    analyzer = HeavyTail()
    found = analyzer.analyze(look(analyzer, tensors))
    assert found["matrix"] == ["embed", "experts.0", "experts.1", "experts.2", "few"]
    assert found["num_evals"] == [8, 12, 12, 12, 2] and np.isfinite(found["alpha"]).all()


def test_zero_nan_and_one_value(look: Any) -> None:
    broken = np.ones((9, 9), "f4")
    broken[0, 0] = np.inf
    tensors = {"a": np.zeros((9, 9), "f4"), "b": broken, "c": np.full((1, 9), 2, "f4")}
    analyzer = HeavyTail()
    found = {key: np.array(value) for key, value in analyzer.analyze(look(analyzer, tensors)).items()}
    assert np.isnan(found["alpha"]).all() and found["num_pl_spikes"].tolist() == [0, 0, 0]
    assert found["num_excluded"].tolist() == [9, 9, 0]
    assert found["log_norm"][0] == -np.inf and np.isnan(found["log_norm"][1])
    assert found["log_norm"][2] == pytest.approx(math.log10(36)) and found["stable_rank"][2] == pytest.approx(1)
    assert found["stable_rank"][0] == 0 and np.isnan(found["stable_rank"][1])


def test_the_floor_leaves_small_eigenvalues_out(look: Any) -> None:
    tensors = {"w": np.diag(np.geomspace(1e-4, 10, 30))}
    for analyzer, below in ((HeavyTail(), 1e-5), (HeavyTail(floor=1e-3), 1e-3), (HeavyTail(relative=True), 1e-3)):
        found = analyzer.analyze(look(analyzer, tensors))
        assert found["num_excluded"] == [int((np.geomspace(1e-4, 10, 30) ** 2 <= below * (1 + 1e-9)).sum())]


def test_the_summary_compares_the_ends(trajectory: Callable[..., Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    # Singular values are the roots of the eigenvalues whose law is fitted.
    steep = np.diag((1 - (np.arange(60) + 0.5) / 60) ** (-1 / 1.2))
    source = trajectory({0: {"w": rng.standard_normal((60, 600))}, 5: {"w": np.pad(steep, ((0, 0), (0, 540)))}})
    analyze(source, [HeavyTail()], output=tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5") as file:
        group = file["heavytail"]
        alpha, summary = group["alpha"][:, 0], json.loads(group.attrs["summary"])
        assert group["sigma"].attrs["error_of"] == "alpha"
    assert alpha[0] > 6 and alpha[1] == pytest.approx(1.6, abs=0.1)
    assert summary["mean_alpha"] == pytest.approx({"first": alpha[0], "last": alpha[1]})
    assert (summary["over_trained"], summary["under_trained"]) == (["w"], [])


def test_declaration_and_doctests() -> None:
    assert declaration_faults(HeavyTail) == []
    assert doctest.testmod(heavytail).failed == 0


@pytest.mark.parametrize("check", [*analyzer_checks(HeavyTail), *analyzer_checks(HeavyTail, relative=True)], ids=str)
def test_it_conforms(check: Callable[[], None]) -> None:
    check()
