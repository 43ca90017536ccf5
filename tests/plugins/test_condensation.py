"""Oracles: closed forms for planted directions and Gaussian vectors, dense cosines, trajectories with a known onset."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ckpt_plugins.condensation import Condensation
from ckpt_plugins.neurons.directions import leading_direction
from ckpt_tools import BatchView, OptionError, analyze
from ckpt_tools.analyzer import declaration_faults
from ckpt_tools.testing import analyzer_checks

RNG = np.random.default_rng(0)
LLAMA = {"model_type": "llama", "num_attention_heads": 2, "hidden_size": 8, "num_hidden_layers": 1}


def lines(n: int, d: int, k: int = 2, noise: float = 0.0) -> np.ndarray:
    """Return n vectors on k orthogonal lines, in turn, of either sign and various lengths."""
    rng = np.random.default_rng(n * d + k)
    axes = np.linalg.qr(rng.standard_normal((d, k)))[0].T
    length = rng.uniform(0.5, 2, (n, 1)) * rng.choice([-1, 1], (n, 1))
    return (axes[np.arange(n) % k] * length + noise * rng.standard_normal((n, d))).astype("f4")


def measured(look: Any, tensors: dict[str, Any], **options: Any) -> dict[str, Any]:
    analyzer = Condensation(**options)
    return first(analyzer.analyze(BatchView([look(analyzer, tensors)])))


def first(found: Any) -> dict[str, Any]:
    """Return what a block of one step gave for it."""
    return {key: found[key][0] if key in Condensation.outputs else found[key] for key in found}


def test_the_declaration_is_sound() -> None:
    assert declaration_faults(Condensation) == []
    assert all(out.long_name and out.unit for out in Condensation.outputs.values())


@pytest.mark.parametrize("n", [12, 100, 600])  # a stack, and more neurons than a stack takes
def test_neurons_on_two_lines(look: Any, n: int) -> None:
    found = measured(look, {"w": lines(n, 9)}, min_norm=0.0, labels_max=n)
    half = n // 2
    same = half * (half - 1) / (n * (n - 1) / 2)
    at = {key: found[key][0, 0] for key, out in Condensation.outputs.items() if out.dims[0] == "matrix"}
    assert at["mean_abs_cos"] == pytest.approx(same, rel=1e-5)
    assert at["share_above"] == pytest.approx(same, rel=1e-12)
    assert at["effective_directions"] == pytest.approx(2, rel=1e-5)
    assert (at["clusters"], at["single"], at["used"], at["tiny"]) == (2, 0, n, 0)
    assert at["largest_share"] == 0.5 and at["size_entropy"] == pytest.approx(math.log(2))
    assert at["within_cos"] == pytest.approx(1, abs=1e-6)
    assert at["cluster_size"].tolist() == [half, half, -1, -1, -1, -1, -1, -1]
    assert at["label"].tolist() == [i % 2 for i in range(n)]
    assert at["mean_abs_cos_error"] == 0


def test_gaussian_neurons_have_the_cosine_of_their_dimension(look: Any) -> None:
    d = 7
    found = measured(look, {"w": RNG.standard_normal((2000, d)).astype("f4")}, min_norm=0.0)
    expected = math.gamma(d / 2) / (math.sqrt(math.pi) * math.gamma((d + 1) / 2))
    assert found["mean_abs_cos"][0, 0] == pytest.approx(expected, abs=2e-3)
    assert found["mean_cos"][0, 0] == pytest.approx(0, abs=2e-3)
    assert found["effective_directions"][0, 0] == pytest.approx(d, rel=0.01)


def test_the_output_side_is_the_input_side_of_the_transpose(look: Any) -> None:
    w = lines(30, 20, 5, noise=0.1)
    one, other = measured(look, {"w": w}), measured(look, {"w": w.T})
    for key in ("mean_abs_cos", "clusters", "effective_directions", "within_cos", "neurons", "size_entropy"):
        assert one[key][0].tolist() == pytest.approx(other[key][0, ::-1].tolist(), rel=1e-5), key


def test_the_bias_is_part_of_a_neuron(look: Any) -> None:
    w, b = np.ones((6, 4), "f4"), np.array([0, 0, 0, 9, 9, 9], "f4")
    assert measured(look, {"fc.weight": w})["clusters"][0, 0] == 1
    joined = measured(look, {"fc.weight": w, "fc.bias": b}, labels_max=6)
    assert joined["clusters"][0].tolist() == [2, 1]
    assert joined["label"][0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert joined["label"][0, 1].tolist() == [0, 0, 0, 0, -1, -1]


def test_opposite_neurons_differ_only_when_signed(look: Any) -> None:
    w = np.array([[1, 2], [-1, -2], [2, 4], [-3, -6]], "f4")
    assert measured(look, {"w": w})["clusters"][0, 0] == 1
    signed = measured(look, {"w": w}, signed=True)
    assert signed["clusters"][0, 0] == 2 and signed["share_above"][0, 0] == pytest.approx(2 / 6)
    assert signed["mean_abs_cos"][0, 0] == pytest.approx(1) and signed["mean_cos"][0, 0] == pytest.approx(-1 / 3)


def test_tiny_neurons_are_left_out_and_counted(look: Any) -> None:
    w = np.concatenate([lines(10, 6), 1e-3 * lines(4, 6, 4)])
    found = measured(look, {"w": w}, labels_max=20)
    assert (found["tiny"][0, 0], found["used"][0, 0], found["neurons"][0, 0]) == (4, 10, 14)
    assert found["label"][0, 0].tolist()[10:] == [-1] * 4
    assert measured(look, {"w": w}, min_norm=0.0)["used"][0, 0] == 14
    many = np.concatenate([1e-3 * lines(4, 6, 4), lines(600, 6)])  # too many for a stack
    found = measured(look, {"w": many}, labels_max=604)
    assert found["label"][0, 0].tolist() == [-1] * 4 + [0, 1] * 300


def test_scale_and_sign_do_not_matter_and_permutation_only_to_labels(look: Any) -> None:
    w = lines(40, 30, 6, noise=0.02)
    plain = measured(look, {"w": w})
    order = np.random.default_rng(0).permutation(40)
    for other in (3e-9 * w, -w, w[order]):
        found = measured(look, {"w": other})
        for key, out in Condensation.outputs.items():
            if out.dims == ("matrix", "side"):
                assert np.allclose(found[key], plain[key], rtol=1e-4, atol=1e-6, equal_nan=True), key
    assert measured(look, {"w": w[order]})["label"][0, 0].tolist() != plain["label"][0, 0].tolist()


def test_nan_zero_and_single_neurons(look: Any) -> None:
    broken = np.ones((3, 4), "f4")
    broken[1, 2] = np.nan
    found = measured(look, {"a": broken, "b": np.zeros((3, 4), "f4"), "c": np.ones((1, 4), "f4")})
    assert found["matrix"] == ["a", "b", "c"]
    assert np.isnan(found["mean_abs_cos"][:, 0]).all() and np.isnan(found["effective_directions"][:2, 0]).all()
    assert found["clusters"][:, 0].tolist() == [-1, 0, 1]
    assert found["tiny"][:, 0].tolist() == [-1, 3, 0]
    assert np.isnan(found["size_entropy"][:2, 0]).all() and found["size_entropy"][2, 0] == 0
    assert np.isnan(found["within_cos"][:2, 0]).all() and found["within_cos"][2, 0] == 1


def test_a_sample_states_its_error(look: Any) -> None:
    w = (lines(400, 6, 3, noise=0.4)).astype("f4")
    whole = measured(look, {"w": w}, min_norm=0.0)
    some = measured(look, {"w": w}, min_norm=0.0, max_neurons=100)
    assert (whole["used"][0, 0], some["used"][0, 0], some["neurons"][0, 0]) == (400, 100, 400)
    error = some["mean_abs_cos_error"][0, 0]
    assert 0 < error < 0.02 and abs(some["mean_abs_cos"][0, 0] - whole["mean_abs_cos"][0, 0]) < 4 * error
    assert whole["mean_abs_cos_error"][0, 0] == 0


def test_the_error_of_a_sample_is_that_of_many_samples() -> None:
    w = RNG.standard_normal((300, 3)) * [3, 1, 1]
    u = w / np.linalg.norm(w, axis=1, keepdims=True)
    cosine = np.abs(u @ u.T)
    analyzer, n = Condensation(max_neurons=60), 60

    class Draws:
        step, references, config = 0, {}, {}

        def __init__(self, seed: int) -> None:
            self.rng = np.random.default_rng(seed)

        def matrix_names(self) -> list[str]:
            return ["w"]

        def matrices(self) -> dict[str, np.ndarray]:
            return {"w": u}

        def bias(self, name: str) -> None:
            return None

        def info(self, name: str) -> Any:
            return type("Info", (), {"shape": u.shape})

    found = [first(analyzer.analyze(BatchView([Draws(seed)]))) for seed in range(200)]  # type: ignore[list-item]
    means = np.array([f["mean_abs_cos"][0, 0] for f in found])
    errors = np.array([f["mean_abs_cos_error"][0, 0] for f in found])
    assert means.mean() == pytest.approx((cosine.sum() - 300) / (300 * 299), abs=4 * means.std() / math.sqrt(200))
    assert errors.mean() == pytest.approx(means.std(), rel=0.25) and n < 300


def test_labels_are_stored_up_to_a_size(look: Any) -> None:
    tensors = {"small": lines(10, 4), "large": lines(30, 4)}
    found = measured(look, tensors, labels_max=10)
    assert found["label"].shape == (2, 2, 10)
    assert (found["label"][found["matrix"].index("large"), 0] == -1).all()
    assert measured(look, tensors, labels_max=0)["label"].shape == (2, 2, 0)


def test_directions(look: Any) -> None:
    e = np.array([0.6, 0.8, 0], "f4")
    w = np.outer(RNG.uniform(1, 2, 9), e).astype("f4")
    found = measured(look, {"w": w}, leading=True, direction=(0.6, 0.8, 0.0), labels_max=0)
    assert found["leading_cos"][0].tolist() == pytest.approx([1, 1], abs=1e-6)
    assert found["direction_cos"][0, 0] == pytest.approx(1, abs=1e-6) and np.isnan(found["direction_cos"][0, 1])
    assert found["leading_direction_cos"][0, 0] == pytest.approx(1, abs=1e-6)
    across = measured(look, {"w": w}, direction=(-0.8, 0.6, 0.0))
    assert across["direction_cos"][0, 0] == pytest.approx(0, abs=1e-6) and np.isnan(across["leading_cos"]).all()


def test_a_direction_may_leave_the_bias_out(look: Any) -> None:
    tensors = {"fc.weight": np.tile(np.array([3, 4], "f4"), (5, 1)), "fc.bias": np.full(5, 7, "f4")}
    found = measured(look, tensors, direction=(3.0, 4.0))
    assert found["direction_cos"][0, 0] == pytest.approx(1, abs=1e-6)
    with_bias = measured(look, tensors, direction=(3.0, 4.0, 0.0))["direction_cos"][0, 0]
    assert with_bias == pytest.approx(5 / math.hypot(5, 7), abs=1e-6)


def test_a_direction_that_fits_nothing_is_refused(look: Any) -> None:
    with pytest.raises(OptionError, match="has 6 numbers, but no selected matrix has as many"):
        measured(look, {"w": np.ones((4, 3), "f4")}, direction=(1.0,) * 6)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1300, 1200)])
def test_the_leading_direction_is_that_of_the_svd(shape: tuple[int, int]) -> None:
    w = RNG.standard_normal(shape) + np.outer(RNG.standard_normal(shape[0]), np.ones(shape[1]))
    expected = np.linalg.svd(w)[2][0]
    assert abs(leading_direction(w.astype("f4")) @ expected) == pytest.approx(1, abs=1e-5)


def test_the_heat_map_order_gathers_clusters(look: Any) -> None:
    w = np.abs(lines(20, 5, 2))  # two directions without sign
    w[3] *= 1e-4
    found = measured(look, {"w": w}, order_max=20, labels_max=20)
    order, label = found["order"][0, 0], found["label"][0, 0]
    assert sorted(order) == [i for i in range(20) if i != 3]  # the tiny one is left out
    assert np.count_nonzero(np.diff(label[order])) == 1
    unit = w[order] / np.linalg.norm(w[order], axis=1, keepdims=True)
    np.testing.assert_allclose(found["cosine"][0, 0, : len(order), : len(order)], unit @ unit.T, atol=1e-6)
    assert measured(look, {"w": w})["order"].shape == (1, 2, 0)


def test_orientation_and_amplitude_of_one_dimensional_inputs(look: Any) -> None:
    angle, size = np.array([0.3, 2.0, -1.2, np.pi]), np.array([1.0, 2.0, 0.5, 3.0])
    a = np.array([[2.0, -1.0, 4.0, -3.0]])
    w, b = size * np.cos(angle), size * np.sin(angle) * (angle != np.pi)
    tensors = {"0.weight": w[:, None], "0.bias": b, "2.weight": a, "2.bias": np.ones(1)}
    found = measured(look, {name: x.astype("f4") for name, x in tensors.items()})
    assert found["line"] == ["layers.0.linear"]
    assert found["orientation"][0].tolist() == pytest.approx(angle.tolist(), abs=1e-6)
    assert found["amplitude"][0].tolist() == pytest.approx((np.abs(a[0]) * size).tolist(), rel=1e-6)
    alone = measured(look, {"0.weight": w[:, None].astype("f4")})
    assert alone["orientation"].shape == (1, 4) and np.isnan(alone["amplitude"]).all()


@pytest.mark.parametrize("method", ["average", "complete", "hdbscan"])
def test_other_methods_agree_on_clear_clusters(look: Any, method: str) -> None:
    w = lines(60, 12, 3, noise=0.01)
    plain = measured(look, {"w": w}, labels_max=60)
    found = measured(look, {"w": w}, labels_max=60, method=method)
    assert found["label"][0, 0].tolist() == plain["label"][0, 0].tolist()
    assert found["mean_abs_cos"][0, 0] == pytest.approx(plain["mean_abs_cos"][0, 0], rel=1e-5)
    with pytest.raises(OptionError, match=r"The input side of matrix 'w' has 60 neurons.*raise condensation.max_dense"):
        measured(look, {"w": w}, method=method, max_dense=50)


def test_roles_and_experts_are_taken_one_by_one(look: Any) -> None:
    tensors = {f"model.layers.0.self_attn.{p}_proj.weight": lines(8, 8) for p in "qkvo"}
    tensors |= {f"model.layers.0.mlp.{p}_proj.weight": lines(12, 8) for p in ("gate", "up")}
    analyzer = Condensation()
    found = first(analyzer.analyze(BatchView([look(analyzer, tensors, config=LLAMA)])))
    assert "layers.0.attn.q" in found["matrix"] and "layers.0.mlp.up" in found["matrix"]
    stack = {"experts": np.stack([lines(8, 6, k) for k in (1, 2, 3)])}
    assert measured(look, stack)["clusters"][:, 0].tolist() == [1, 2, 3]


def test_onsets_are_found_along_a_trajectory(trajectory: Callable[..., Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    start = {name: rng.standard_normal((40, 30)).astype("f4") for name in ("layers.0.q", "layers.1.q", "layers.0.v")}
    target = {name: np.outer(np.ones(40), rng.standard_normal(30)).astype("f4") for name in start}
    when = {"layers.0.q": 20, "layers.1.q": 30, "layers.0.v": 10}

    def at(step: int) -> dict[str, np.ndarray]:
        moved = {n: target[n] if step >= when[n] else start[n] for n in start}
        return {**moved, "still": start["layers.0.q"] + 1e-3, "line": np.ones((5, 1), "f4")}

    source = trajectory({step: at(step) for step in (0, 10, 20, 30)})
    analyze(source, [Condensation()], output=tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5") as file:
        summary = json.loads(file["condensation"].attrs["summary"])
    onset = summary["onset_step"]["input"]
    assert onset == {**when, "still": None, "line": None}  # parallel from the start: nothing to condense
    steps = {entry["group"]: entry["step"] for entry in summary["onset_order"]["input"]}
    assert steps == {"v": 10, "q": 20, "still": None, "line": None}
    assert [entry["group"] for entry in summary["onset_order"]["input"]][:2] == ["v", "q"]
    assert "0.5 (1 - m0)" in summary["onset_rule"]


def test_a_trained_model_condenses(shared_data: Path, tmp_path: Path) -> None:
    analyze(shared_data / "trajectories/hf-layouts/gpt2", [Condensation()], output=tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5") as file:
        group = file["condensation"]
        names = [name.decode() for name in group["matrix"][()]]
        embed = group["mean_abs_cos"][:, names.index("embed"), 0]
    assert embed[0] < 0.12 and embed[-1] > 0.6


@pytest.mark.parametrize("module", ["condensation", "drift", "heavytail"])
def test_importing_the_analyzer_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, ckpt_plugins.{module}; print([m for m in ('torch', 'scipy', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "check",
    [*analyzer_checks(Condensation), *analyzer_checks(Condensation, leading=True, order_max=100)],
    ids=str,
)
def test_it_conforms(check: Callable[[], None]) -> None:
    check()


def test_a_block_gives_the_digits_of_single_steps(
    trajectory: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    steps = {
        s: {"w": lines(30, 9, noise=s / 10), "huge": 1e20 * rng.random((12, 7)), "b": rng.random((12, 7))}
        for s in range(9)
    }
    source, analyzer, found = trajectory(steps), Condensation(max_neurons=20), []
    for size in (16, 1):
        monkeypatch.setattr("ckpt_tools.engine.run.MAX_BLOCK", size)
        analyze(source, [analyzer], output=tmp_path / f"{size}.h5")
        with h5py.File(tmp_path / f"{size}.h5") as file:
            found.append({name: file["condensation"][name][()] for name in Condensation.outputs})
    for name in Condensation.outputs:
        assert np.array_equal(found[0][name], found[1][name], equal_nan=True), name
