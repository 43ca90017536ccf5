"""Oracles: closed forms, float64 SVD of the same matrices, dense per-head products, symmetries."""

import doctest
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import ckpt_plugins.rank as rank
from ckpt_plugins import rank_measures, rank_products
from ckpt_plugins.rank import Rank
from ckpt_plugins.rank_limits import MEASURES
from ckpt_plugins.rank_measures import (
    effective_rank,
    energy_entropy_rank,
    frobenius_norm,
    nuclear_norm,
    numerical_rank,
    participation_ratio,
    spectral_norm,
    stable_rank,
)
from ckpt_tools import OptionError, Series
from ckpt_tools.analyzer import declaration_faults
from ckpt_tools.results import Record
from ckpt_tools.spectra import Spectrum, singular_values

RANKS = [effective_rank, energy_entropy_rank, stable_rank, participation_ratio]
NORMS = [nuclear_norm, frobenius_norm, spectral_norm]
METRICS = ["effective_rank", "energy_entropy_rank", "stable_rank", "participation_ratio", "nuclear_norm",
           "frobenius_norm", "spectral_norm"]  # fmt: skip

positive = arrays(np.float64, st.integers(1, 20), elements=st.floats(1e-6, 1e6))


# ---- the measures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", RANKS)
def test_flat_spectra_have_full_rank_and_single_directions_rank_one(measure):
    for n in (1, 2, 17):
        assert measure(np.full(n, 0.3)) == pytest.approx(n, rel=1e-12)
        assert measure(np.eye(n)[0] * 5) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("n", [3, 40])
def test_geometric_spectra_have_closed_forms(q, n):
    s = 7 * q ** np.arange(n)

    def total(x):  # sum of x^i, i < n
        return (1 - x**n) / (1 - x)

    def entropy(x):  # of p_i = x^i / total(x), from the derivative of the geometric sum
        mean = x / (1 - x) - n * x**n / (1 - x**n)
        return np.log(total(x)) - mean * np.log(x)

    assert effective_rank(s) == pytest.approx(np.exp(entropy(q)), rel=1e-9)
    assert energy_entropy_rank(s) == pytest.approx(np.exp(entropy(q * q)), rel=1e-9)
    assert stable_rank(s) == pytest.approx(total(q**2), rel=1e-9)
    assert participation_ratio(s) == pytest.approx(total(q**2) ** 2 / total(q**4), rel=1e-9)
    assert nuclear_norm(s) == pytest.approx(7 * total(q), rel=1e-9)
    assert frobenius_norm(s) == pytest.approx(7 * total(q**2) ** 0.5, rel=1e-9)
    assert spectral_norm(s) == 7
    assert numerical_rank(s, 0.3) == sum(q**i > 0.3 for i in range(n))


def test_gaussian_matrices_have_their_known_ranks():
    d = 384
    s = singular_values(np.random.default_rng(0).standard_normal((d, d))).values
    assert effective_rank(s) / d == pytest.approx(0.82, abs=0.02)  # "about 0.8 d"
    assert participation_ratio(s) / d == pytest.approx(1 / 2, abs=0.02)  # Marchenko-Pastur: E[x^2] = 2 E[x]^2
    assert stable_rank(s) / d == pytest.approx(1 / 4, abs=0.02)  # largest eigenvalue 4, mean 1


@given(s=positive)
def test_measures_are_ordered_and_bounded(s):
    loose = 1 + 1e-9
    assert stable_rank(s) * loose >= 1
    assert stable_rank(s) <= energy_entropy_rank(s) * loose <= effective_rank(s) * loose**2 <= len(s) * loose**3
    assert participation_ratio(s) <= energy_entropy_rank(s) * loose
    assert spectral_norm(s) <= frobenius_norm(s) * loose <= nuclear_norm(s) * loose**2
    assert 1 <= numerical_rank(s, 1e-3) <= len(s)


@given(s=positive, factor=st.floats(1e-3, 1e3), zeros=st.integers(0, 5), seed=st.integers(0, 99))
def test_scale_order_and_zeros_do_not_change_ranks(s, factor, zeros, seed):
    other = np.random.default_rng(seed).permutation(np.append(s * factor, np.zeros(zeros)))
    for measure in RANKS:
        assert measure(other) == pytest.approx(float(measure(s)), rel=1e-9)
    for measure in NORMS:
        assert measure(other) == pytest.approx(float(measure(s)) * factor, rel=1e-9)
    assert numerical_rank(other, 0.5) in [numerical_rank(s, 0.5 * (1 + e)) for e in (-1e-12, 1e-12)]


@pytest.mark.parametrize("power", [1e-300, 1e-170, 1e170, 1e300])
def test_measures_neither_overflow_nor_vanish(power):
    s = np.array([4.0, 2.0, 1.0])
    for measure in RANKS:
        assert measure(s * power) == pytest.approx(float(measure(s)), rel=1e-12)
    assert frobenius_norm(s * power) / power == pytest.approx(21**0.5, rel=1e-12)


def test_zero_and_empty_spectra_are_zero_and_nan_stays_nan():
    for s in (np.zeros(4), np.zeros(0)):
        assert all(measure(s) == 0 for measure in RANKS + NORMS)
        assert numerical_rank(s, 1e-3) == 0
    mixed = np.array([[1.0, 1.0], [0.0, 0.0], [np.nan, 1.0]])
    for measure in RANKS:
        np.testing.assert_allclose(measure(mixed), [measure(mixed[0]), 0, np.nan], rtol=1e-15)
    assert numerical_rank(mixed, 1e-3).tolist() == [2, 0, -1]


def test_leading_axes_are_batches():
    s = np.random.default_rng(1).random((2, 3, 5))
    for measure in RANKS + NORMS:
        np.testing.assert_allclose(measure(s), [[float(measure(row)) for row in block] for block in s], rtol=1e-14)
    assert numerical_rank(s, 0.5).shape == (2, 3)


def test_docstring_examples_hold():
    found = doctest.testmod(rank_measures)
    assert found.failed == 0 and found.attempted >= 8


# ---- the analyzer -----------------------------------------------------------------------------------------------


@dataclass
class Attention:
    layer: int
    q: Any
    k: Any
    v: Any = None
    o: Any = None


@dataclass
class Info:
    dtype: str = "float32"


@dataclass
class View:
    """What `rank` asks of a block of one step, over plain arrays; layers are given by their heads."""

    weights: dict[str, Any]
    layers: list[Attention] = field(default_factory=list)
    dtypes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.weights = dict(self.weights)
        for layer in self.layers:
            for part in "qkvo":
                heads = getattr(layer, part)
                if heads is not None:
                    flat = np.concatenate(list(heads), axis=1 if part == "o" else 0)
                    self.weights[f"layers.{layer.layer}.attn.{part}"] = flat

    def matrix_names(self):
        return list(self.weights)

    def info(self, name):
        return Info(self.dtypes.get(name, "float32"))

    def spectrum(self, name):
        one = singular_values(self.weights[name])
        return Spectrum(one.values[None], one.error[None], one.route)

    def attention(self):
        return [[layer] for layer in self.layers]

    def __len__(self):
        return 1


def seen(analyzer, block):
    """Return what the analyzer gives for a block of one step."""
    found = analyzer.analyze(block)
    return {key: found[key][0] if key in Rank.outputs else found[key] for key in found}


def heads(rng, layer=0, n=4, shared=2, size=5, d=12):
    q, k, v = (rng.standard_normal((h, size, d)) for h in (n, shared, shared))
    return Attention(layer, q, k, v, rng.standard_normal((n, d, size)))


def dense_products(layer):
    group = len(layer.q) // len(layer.k)
    yield "qk", [q.T @ layer.k[h // group] for h, q in enumerate(layer.q)]
    yield "vo", [o @ layer.v[h // group] for h, o in enumerate(layer.o)]


def reference(matrix, tau=1e-3):
    """All measures by textbook formulas from a float64 SVD."""
    s = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    p, q = s / s.sum(), s**2 / (s**2).sum()
    p, q = p[p > 0], q[q > 0]
    return {
        "effective_rank": np.exp(-(p * np.log(p)).sum()),
        "energy_entropy_rank": np.exp(-(q * np.log(q)).sum()),
        "stable_rank": (s**2).sum() / s[0] ** 2,
        "participation_ratio": (s**2).sum() ** 2 / (s**4).sum(),
        "nuclear_norm": s.sum(),
        "frobenius_norm": np.linalg.norm(matrix.astype(np.float64)),
        "spectral_norm": s[0],
        "numerical_rank": np.linalg.matrix_rank(matrix.astype(np.float64), tol=tau * s[0]),
    }


def test_declaration_is_sound_and_every_output_is_returned():
    assert declaration_faults(Rank) == []
    assert rank.ckpt_analyzers() == [Rank]
    rng = np.random.default_rng(0)
    for view in (View({"a": rng.standard_normal((3, 4))}, [heads(rng)]), View({"a": np.eye(3)}), View({})):
        for products in (True, False):
            found = seen(Rank(products=products), view)
            assert set(found) == {*Rank.outputs, "matrix", "product"}
            for key, out in Rank.outputs.items():
                assert len(found[key]) == len(found[out.dims[0]]), key
                width = 0 if key == "spectrum" else 8
                assert out.dims[1:] == () or np.shape(found[key])[1] == width


def test_every_value_equals_a_float64_svd_to_1e_9():
    rng = np.random.default_rng(1)
    low = rng.standard_normal((40, 6)) @ rng.standard_normal((6, 30))
    steep = np.linalg.qr(rng.standard_normal((40, 40)))[0] * np.arange(1.0, 41) ** -4
    matrices = {
        "gaussian": rng.standard_normal((40, 30)).astype(np.float32),
        "wide": rng.standard_normal((10, 300)).astype(np.float16),
        "low rank": low,
        "low rank in float32": low.astype(np.float32),
        "steep": steep,
        "condensed": np.outer(np.ones(30), np.arange(40.0)) + 1e-4 * rng.standard_normal((30, 40)),
        "row": rng.standard_normal((1, 9)),
    }
    found = seen(Rank(k=5), View(matrices))
    for i, (name, matrix) in enumerate(matrices.items()):
        truth = reference(matrix)
        for key in METRICS:
            assert found[key][i] == pytest.approx(truth[key], rel=1e-9), (name, key)
        assert found["numerical_rank"][i] == truth["numerical_rank"], name
        assert found["full_rank"][i] == min(matrix.shape)
        assert found["nuclear_error"][i] <= 1e-10 * found["nuclear_norm"][i]
        s = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)[:5]
        error = found["singular_values_error"][i, : len(s)]
        assert (abs(found["singular_values"][i, : len(s)] - s) <= error + 1e-14 * s[0]).all()


def test_short_spectra_are_padded_with_nan():
    found = seen(Rank(k=3), View({"row": np.array([[3.0, 4.0]]), "square": np.diag([3.0, 2.0, 1.0, 0.5])}))
    np.testing.assert_allclose(found["singular_values"], [[5, np.nan, np.nan], [3, 2, 1]], rtol=1e-12)
    np.testing.assert_array_equal(np.isnan(found["singular_values_error"]), np.isnan(found["singular_values"]))
    wide = seen(Rank(k=9), View({"row": np.array([[3.0, 4.0]])}))
    assert wide["singular_values"].shape == (1, 9) and np.isnan(wide["singular_values"][0, 1:]).all()


def test_zero_and_nan_matrices_keep_to_their_rows():
    found = seen(Rank(), View({"zero": np.zeros((3, 4)), "nan": np.full((2, 2), np.nan), "one": np.eye(2)}))
    assert found["numerical_rank"].tolist() == [0, -1, 2]
    for key in (*METRICS, "nuclear_error"):
        assert found[key][0] == 0 and np.isnan(found[key][1]) and np.isfinite(found[key][2]), key


def test_products_equal_the_dense_ones_for_grouped_queries():
    rng = np.random.default_rng(2)
    for n, shared in ((4, 4), (4, 2), (6, 1)):
        layers = [heads(rng, layer, n, shared) for layer in (0, 3)]
        found = seen(Rank(), View({}, layers))
        expected = {
            f"layers.{a.layer}.attn.{pair}.{h}": dense for a in layers for pair, all_heads in dense_products(a)
            for h, dense in enumerate(all_heads)
        }  # fmt: skip
        assert found["product"] == list(expected)
        for i, dense in enumerate(expected.values()):
            for key in METRICS:
                assert found[f"product_{key}"][i] == pytest.approx(reference(dense)[key], rel=1e-9)
            s = np.linalg.svd(dense, compute_uv=False)[:5]
            np.testing.assert_allclose(found["product_singular_values"][i, :5], s, rtol=1e-10)
            assert found["product_full_rank"][i] == 5


def test_layers_of_different_shapes_keep_their_order(monkeypatch):
    rng = np.random.default_rng(5)
    layers = [heads(rng, 0), heads(rng, 1), heads(rng, 2, n=2, size=3), heads(rng, 3, n=2, shared=1, size=3)]
    layers[1].q = layers[1].q[:2]
    layers[1].o = layers[1].o[:2]
    dense = [matrix for layer in layers for _, matrices in dense_products(layer) for matrix in matrices]
    for limit in (0, 1 << 30):
        monkeypatch.setattr(rank_products, "BATCH_BYTES", limit)
        found = seen(Rank(k=5), View({}, layers))
        assert len(found["product"]) == len(dense)
        for row, matrix in zip(found["product_singular_values"], dense, strict=True):
            s = row[~np.isnan(row)]
            np.testing.assert_allclose(s, np.linalg.svd(matrix, compute_uv=False)[: len(s)], rtol=1e-9)
        np.testing.assert_array_equal(found["product_full_rank"], [5] * 12 + [3] * 8)


def test_products_need_both_factors_and_can_be_turned_off():
    rng = np.random.default_rng(3)
    layers = [heads(rng, layer) for layer in range(3)]
    layers[1].v = None
    layers[2].o = None
    found = seen(Rank(), View({}, layers))
    pairs = [label.rpartition(".")[0] for label in found["product"]]
    assert list(dict.fromkeys(pairs)) == [
        "layers.0.attn.qk", "layers.0.attn.vo", "layers.1.attn.qk", "layers.2.attn.qk",
    ]  # fmt: skip
    assert seen(Rank(products=False), View({}, layers))["product"] == []


def test_every_value_carries_the_stored_dtype():
    layer = heads(np.random.default_rng(4), n=1, shared=1)
    dtypes = {"a": "bfloat16", "layers.0.attn.q": "float16", "layers.0.attn.k": "bfloat16"}
    found = seen(Rank(), View({"a": np.eye(2)}, [layer], dtypes))
    assert found["stored_dtype"].tolist() == ["bfloat16", "float16", "bfloat16", "float32", "float32"]
    assert found["product_stored_dtype"].tolist() == ["float16+bfloat16", "float32"]


def test_tau_moves_the_numerical_rank_and_options_are_checked():
    view = View({"a": np.diag([1.0, 1e-1, 1e-5, 1e-9])})
    assert [seen(Rank(tau=t), view)["numerical_rank"][0] for t in (0.5, 1e-2, 1e-6, 1e-12)] == [1, 2, 3, 4]
    for bad in ({"k": 0}, {"tau": 2.0}, {"tau": float("nan")}, {"top": 3}):
        with pytest.raises(OptionError):
            Rank(**bad)


# ---- symmetries -------------------------------------------------------------------------------------------------


def orthogonal(rng, n):
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def assert_same(found, other, rel=1e-9):
    for prefix in ("", "product_"):
        for key in METRICS:
            np.testing.assert_allclose(other[prefix + key], found[prefix + key], rtol=rel, err_msg=prefix + key)
        np.testing.assert_array_equal(other[f"{prefix}numerical_rank"], found[f"{prefix}numerical_rank"])


@given(seed=st.integers(0, 2**32 - 1), shape=st.tuples(st.integers(1, 12), st.integers(1, 12)))
@settings(max_examples=40, deadline=None)
def test_matrices_rotate_flip_permute_and_transpose_without_effect(seed, shape):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape) * 0.5 ** np.arange(shape[1])
    found = seen(Rank(tau=0.0), View({"a": a}))
    others = [
        orthogonal(rng, shape[0]) @ a, a @ orthogonal(rng, shape[1]), -a, a.T,
        a * rng.choice([-1, 1], shape[1]), a[rng.permutation(shape[0])], a[:, rng.permutation(shape[1])],
    ]  # fmt: skip
    for other in others:
        assert_same(found, seen(Rank(tau=0.0), View({"a": other})))
    scaled = seen(Rank(tau=0.0), View({"a": 3 * a}))
    for key in METRICS:
        np.testing.assert_allclose(scaled[key], found[key] * (3 if "norm" in key else 1), rtol=1e-9)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_products_follow_the_symmetries_of_the_network(seed):
    rng = np.random.default_rng(seed)
    layer = heads(rng)
    found = seen(Rank(), View({}, [layer]))
    base, inner = orthogonal(rng, 12), orthogonal(rng, 5)
    turned = Attention(0, layer.q @ base, layer.k @ base, layer.v @ base, base.T @ layer.o)
    inside = Attention(0, inner @ layer.q, inner @ layer.k, inner @ layer.v, layer.o @ inner.T)
    flipped = Attention(0, -layer.q, -layer.k, layer.v, -layer.o)
    for other in (turned, inside, flipped):
        assert_same(found, seen(Rank(), View({}, [other])))


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([8.0, 1.2, 1.0, 2.0], (1.0, 10, 30)),
        ([8.0, 5.0, 6.0, 7.0], (5.0, None, None)),
        ([8.0, np.nan, 1.0, 1.4], (1.0, 20, None)),
        ([np.nan] * 4, (None, None, None)),
        ([3.0, 0.0, 0.0, 0.0], (0.0, 10, None)),
    ],
)
def test_a_collapse_and_a_new_direction_have_their_steps(ranks, expected):
    assert rank_measures.turns([0, 10, 20, 30], np.array(ranks)) == expected


def test_the_summary_tells_each_matrix_when_it_collapses():
    ranks, labels = {0: [9, 9], 5: [1, 9], 9: [2, 9]}, {"matrix": ["q", "k"]}
    flat = {step: [np.sqrt(np.arange(10) < rank) for rank in row] for step, row in ranks.items()}
    names = ("singular_values", *MEASURES)
    measured = {
        step: {name: getattr(rank, name, np.asarray)(np.array(s)) for name in names} for step, s in flat.items()
    }
    records = [Record(step, values, dict(labels)) for step, values in measured.items()]
    outputs = {name: Rank.outputs[name] for name in names}
    facts = Rank().summarize(Series(outputs, records))
    assert facts["lowest_rank"] == pytest.approx({"q": 1.0, "k": 9.0})
    assert facts["collapse_step"] == {"q": 5, "k": None} and facts["regrowth_step"] == {"q": 9, "k": None}
    assert facts["limit_rank"] == {"q": 2, "k": 9}
    assert Rank().summarize(Series(outputs, records[:1])) == {}
