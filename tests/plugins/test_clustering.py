"""Oracles: single linkage of scipy and scikit-learn, planted clusters, dense float64 cosines, graphs in closed form."""

import doctest
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from sklearn.cluster import AgglomerativeClustering

import ckpt_plugins.neurons.clustering as clustering
import ckpt_plugins.neurons.cosines as cosines
import ckpt_plugins.neurons.directions as directions
import ckpt_plugins.neurons.stacks as stacks
import ckpt_plugins.neurons.vectors as vectors
from ckpt_plugins.neurons.clustering import (
    cluster_sizes,
    component_roots,
    density_clusters,
    linkage_clusters,
    numbered,
    partition,
    scan,
    size_entropy,
    threshold_clusters,
    within_cosine,
)
from ckpt_plugins.neurons.cosines import Pairs, exactly, unit_rows
from ckpt_plugins.neurons.stacks import scan_stack
from ckpt_plugins.neurons.vectors import norms
from ckpt_tools import OptionError


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 64 rows, so that modest problems span many."""
    monkeypatch.setattr(cosines, "TILE", 64)


def noisy(n: int, d: int, k: int, noise: float, seed: int = 0) -> np.ndarray:
    """Return n float32 vectors around k random directions of either sign, of various lengths."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((k, d))[rng.integers(k, size=n)]
    sign, length = rng.choice([-1, 1], (n, 1)), rng.uniform(0.5, 2, (n, 1))
    return ((centre + noise * rng.standard_normal((n, d))) * sign * length).astype("f4")


def true_cosines(x: np.ndarray) -> np.ndarray:
    y = x.astype("f8") / np.linalg.norm(x.astype("f8"), axis=1, keepdims=True)
    return y @ y.T


def roots_of(labels: np.ndarray) -> list[int]:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return first[inverse].tolist()


def distances(x: np.ndarray, signed: bool) -> np.ndarray:
    c = true_cosines(x)
    d = np.maximum(0, 1 - (c if signed else np.abs(c)))
    np.fill_diagonal(d, 0)
    return d


def scanned(x: np.ndarray, t: float, signed: bool) -> tuple[Pairs, np.ndarray]:
    return scan(unit_rows(x, norms(x)), t, exactly(x, np.arange(len(x)), t, signed), signed=signed)


CASES = [(50, 6, 5, 0.05), (300, 8, 10, 0.1), (700, 5, 10, 0.2), (500, 40, 7, 0.05), (260, 3, 1, 0.3)]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("t", [0.7, 0.95, 0.99])
@pytest.mark.usefixtures("small_tiles")
def test_components_are_single_linkage(case: Any, t: float, signed: bool) -> None:
    x = noisy(*case)
    d = distances(x, signed)
    by_scipy = roots_of(fcluster(linkage(squareform(d, checks=False), "single"), 1 - t, "distance"))
    how = AgglomerativeClustering(None, metric="precomputed", linkage="single", distance_threshold=1 - t)
    assert by_scipy == roots_of(how.fit(d).labels_)
    assert threshold_clusters(x, t, signed=signed).tolist() == by_scipy
    assert scanned(x, t, signed)[1].tolist() == by_scipy


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("small_tiles")
def test_pair_statistics_are_those_of_the_dense_matrix(case: Any, signed: bool) -> None:
    x, t = noisy(*case), 0.9
    c, n = true_cosines(x), len(x)
    off = ~np.eye(n, dtype=bool)
    pairs = scanned(x, t, signed)[0]
    per_neuron = (np.abs(c) - np.eye(n)).sum(axis=1) / (n - 1)
    assert pairs.mean_abs[0] == pytest.approx(np.abs(c)[off].mean(), rel=1e-5)
    assert pairs.spread[0] == pytest.approx(per_neuron.std(ddof=1), rel=1e-4)
    assert pairs.mean[0] == pytest.approx(c[off].mean(), abs=1e-6)
    assert pairs.share[0] == ((c if signed else np.abs(c))[off] > t).mean()
    assert pairs.directions[0] == pytest.approx(n**2 / (c**2).sum(), rel=1e-5)


@pytest.mark.parametrize(("n", "d", "k"), [(3000, 64, 12), (1200, 300, 3), (2048, 20, 1)])
def test_planted_clusters_are_found_exactly(n: int, d: int, k: int) -> None:
    rng = np.random.default_rng(n)
    centre = np.linalg.qr(rng.standard_normal((d, k)))[0].T
    of = rng.integers(k, size=n)
    x = centre[of] * rng.choice([-1, 1], (n, 1)) + 0.05 / np.sqrt(d) * rng.standard_normal((n, d))
    assert threshold_clusters(x.astype("f4"), 0.95).tolist() == roots_of(of)
    with_sign = of * 2 + (np.einsum("ij,ij->i", x, centre[of]) < 0)
    assert threshold_clusters(x.astype("f4"), 0.95, signed=True).tolist() == roots_of(with_sign)


def test_pairs_at_the_threshold_are_decided_in_float64() -> None:
    t, gap = 0.95, 1e-9  # 60 times below the resolution of float32
    angles = np.arccos(t + gap * np.array([1, -1, 3, -3]))
    base = np.eye(8)[::2]  # four planes of eight dimensions, one pair in each
    other = np.cos(angles)[:, None] * base + np.sin(angles)[:, None] * np.eye(8)[1::2]
    x = np.concatenate([base, other])
    assert threshold_clusters(x, t).tolist() == [0, 1, 2, 3, 0, 5, 2, 7]
    pairs, roots, _ = scan_stack(x[None], norms(x)[None], np.ones((1, 8), bool), t)
    assert roots[0].tolist() == [0, 1, 2, 3, 0, 5, 2, 7] and pairs.share[0] == 2 / 28


@pytest.mark.usefixtures("small_tiles")
def test_tiles_inside_one_component_are_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    tiles = clustering.tiles

    def counted(*args: Any) -> Any:
        for tile in tiles(*args):
            made.append(tile)
            yield tile

    monkeypatch.setattr(clustering, "tiles", counted)
    assert set(threshold_clusters(noisy(640, 50, 1, 0.01), 0.9)) == {0}
    assert len(made) < 25  # of 55: the first row of ten tiles joins all, the diagonal blocks among them
    made.clear()
    assert len(set(threshold_clusters(np.eye(640), 0.9))) == 640
    assert len(made) == 55


def test_memory_is_that_of_the_vectors_and_a_few_tiles() -> None:
    x = noisy(6000, 64, 40, 0.3)
    threshold_clusters(x[:10], 0.9)  # scipy is imported here, not below
    tracemalloc.start()
    threshold_clusters(x, 0.9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes + 24e6 < 6000**2


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_stack_gives_what_each_gives_alone(case: Any, signed: bool) -> None:
    n, d, k, noise = case
    x = np.stack([noisy(n, d, k, noise, seed) for seed in range(3)])
    keep = np.random.default_rng(1).random((3, n)) < 0.8
    pairs, roots, within = scan_stack(x, norms(x), keep, 0.95, signed=signed)
    for i in range(3):
        chosen = np.flatnonzero(keep[i])
        u = unit_rows(x[i][chosen], norms(x[i])[chosen])
        one, own = scan(u, 0.95, exactly(x[i], chosen, 0.95, signed), signed=signed)
        assert roots[i][chosen].tolist() == chosen[own].tolist() and (roots[i][~keep[i]] == -1).all()
        assert within[i] == pytest.approx(within_cosine(u, own, signed=signed), abs=1e-5)
        for field in ("used", "mean_abs", "spread", "mean", "share", "directions"):
            assert getattr(pairs, field)[i] == pytest.approx(getattr(one, field)[0], rel=2e-5, abs=1e-6), field


@settings(deadline=None)
@given(st.integers(1, 40), st.floats(0, 0.2), st.integers(0, 2**32 - 1))
def test_component_roots_are_those_of_scipy(n: int, density: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((3, n, n)) < density
    mask |= mask.swapaxes(1, 2) | np.eye(n, dtype=bool)
    for one, roots in zip(mask, component_roots(mask), strict=True):
        assert roots.tolist() == roots_of(connected_components(one, directed=False)[1])


def test_a_shuffled_path_is_one_component() -> None:
    order = np.random.default_rng(0).permutation(300)
    mask = np.eye(300, dtype=bool)
    mask[order[1:], order[:-1]] = mask[order[:-1], order[1:]] = True
    assert (component_roots(mask[None]) == 0).all()


@pytest.mark.parametrize("method", ["average", "complete"])
def test_hierarchical_clusters_are_those_of_sklearn(method: str) -> None:
    d = distances(noisy(200, 6, 8, 0.3), signed=False)
    how = AgglomerativeClustering(None, metric="precomputed", linkage=method, distance_threshold=0.1)
    assert linkage_clusters(d, method, 0.1).tolist() == roots_of(how.fit(d).labels_)


def test_hdbscan_finds_dense_groups_and_leaves_noise_single() -> None:
    x = np.concatenate([noisy(40, 20, 1, 0.02, seed=s) for s in (1, 2)] + [noisy(5, 20, 5, 0.0, seed=3)])
    roots = density_clusters(distances(x, signed=False), smallest=10)
    assert roots.tolist() == [0] * 40 + [40] * 40 + [80, 81, 82, 83, 84]
    assert density_clusters(np.zeros((3, 3)), smallest=5).tolist() == [0, 1, 2]


def test_methods_that_need_all_distances_refuse_many_neurons() -> None:
    u = unit_rows(np.eye(30), np.ones(30))
    expected = r"The input side of 'w' has 30 neurons, but method 'average' needs .* limited to 20\. Use method 'comp"
    with pytest.raises(OptionError, match=expected):
        partition(u, "average", 0.9, signed=False, smallest=5, largest=20, what="The input side of 'w'")


def test_sizes_numbers_and_entropy() -> None:
    roots = np.array([[0, 1, 1, 3, 1, 3], [0, 0, 0, 0, 0, 0], [-1, 1, -1, 3, 4, -1]])
    assert cluster_sizes(roots).tolist() == [[1, 3, 0, 2, 0, 0], [6, 0, 0, 0, 0, 0], [0, 1, 0, 1, 1, 0]]
    assert numbered(roots).tolist() == [[2, 0, 0, 1, 0, 1], [0] * 6, [-1, 0, -1, 1, 2, -1]]
    expected = [-sum(p * np.log(p) for p in (1 / 6, 1 / 2, 1 / 3)), 0.0, np.log(3)]
    assert size_entropy(cluster_sizes(roots)).tolist() == pytest.approx(expected)


def test_chains_show_in_the_cosine_to_the_mean() -> None:
    angle = np.linspace(0, np.pi / 2, 40)
    fan = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    roots = threshold_clusters(fan, 0.99)
    assert set(roots) == {0}  # neighbours are 2.3 degrees apart
    assert within_cosine(unit_rows(fan, norms(fan)), roots) == pytest.approx(np.cos(np.pi / 4), abs=1e-6)
    tight = noisy(40, 20, 2, 0.01)
    assert within_cosine(unit_rows(tight, norms(tight)), threshold_clusters(tight, 0.99)) > 0.999


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-5, 1e15])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_norms_and_clusters_do_not_depend_on_the_scale(scale: float, dtype: str) -> None:
    x = noisy(60, 7, 4, 0.05).astype(dtype)
    scaled = x * np.dtype(dtype).type(scale)
    assert norms(scaled) / scale == pytest.approx(np.linalg.norm(x.astype("f8"), axis=1), rel=1e-6)
    assert threshold_clusters(scaled, 0.99).tolist() == threshold_clusters(x, 0.99).tolist()


@pytest.mark.parametrize("module", [clustering, cosines, directions, stacks, vectors])
def test_doctests(module: Any) -> None:
    assert doctest.testmod(module).failed == 0
