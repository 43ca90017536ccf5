"""Oracles: straight and circular ways in closed form, scipy's Wasserstein distance, all weights as one vector."""

import doctest
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.stats import wasserstein_distance

import ckpt_plugins.drift as drift
from ckpt_plugins import drift_motion
from ckpt_plugins.drift import Drift, amplitudes, wasserstein
from ckpt_plugins.drift_motion import Places, motion
from ckpt_tools import Analyzer, BatchView, Out, analyze
from ckpt_tools.analyzer import declaration_faults, reference_kinds
from ckpt_tools.errors import PluginError
from ckpt_tools.testing import analyzer_checks
from ckpt_tools.weights import Lazy

RNG = np.random.default_rng(0)
W, V = RNG.standard_normal((2, 6, 5))
UPDATES = ("update_norm", "relative_update", "speed", "update_cos", "way_cos", "amplitude_update", "amplitude_speed")


def seen(look: Any, now: Any, past: Any, steps: tuple[int, ...] = (9, 0, 7, 4), **options: Any) -> dict[str, Any]:
    """Return the measures of tensors `now` at step 9, after `past`: first (0), before_previous (4), previous (7)."""
    analyzer = Drift(**options)
    first, earlier, previous = past
    references = {
        kind: look(analyzer, tensors, step=step)
        for kind, tensors, step in zip(
            ("first", "previous", "before_previous"), (first, previous, earlier), steps[1:], strict=True
        )
    }
    return measured(analyzer, look(analyzer, now, step=steps[0], references=references))


def measured(analyzer: Drift, view: Any) -> dict[str, Any]:
    """Return what the analyzer gives for one step."""
    found = analyzer.analyze(BatchView([view]))
    return {key: value if key == "matrix" else value[0] for key, value in found.items()}


def test_the_declaration_is_sound() -> None:
    assert declaration_faults(Drift) == []
    assert reference_kinds(Drift) == ("first", "previous", "before_previous")
    assert all(out.long_name and out.unit for out in Drift.outputs.values())


def test_a_straight_way(look: Any) -> None:
    found = seen(look, {"w": W + 9 * V}, [{"w": W}, {"w": W + 4 * V}, {"w": W + 7 * V}])
    start, slope = np.linalg.norm(W), np.linalg.norm(V)
    expected = {
        "norm": np.linalg.norm(W + 9 * V),
        "distance": 9 * slope / start,
        "norm_change": np.linalg.norm(W + 9 * V) / start - 1,
        "first_cos": ((W + 9 * V) * W).sum() / np.linalg.norm(W + 9 * V) / start,
        "update_norm": 2 * slope,
        "relative_update": 2 * slope / np.linalg.norm(W + 7 * V),
        "speed": slope,
        "update_cos": 1,
        "way_cos": 1,
        "active": 1,
    }
    for name, value in expected.items():
        assert found[name][0] == pytest.approx(value, rel=1e-12), name
        if name != "active":
            assert found[f"total_{name}"] == pytest.approx(value, rel=1e-12), name


def test_a_turning_way(look: Any) -> None:
    def at(angle: float) -> dict[str, np.ndarray]:
        return {"w": np.array([[math.cos(angle), math.sin(angle)]])}

    found = seen(look, at(0.9), [at(0), at(0.3), at(0.6)])
    assert found["update_cos"][0] == pytest.approx(math.cos(0.3))  # chords turn by as much as the radius
    assert found["way_cos"][0] == pytest.approx(math.cos(0.45))
    assert found["first_cos"][0] == pytest.approx(math.cos(0.9))
    assert found["distance"][0] == pytest.approx(2 * math.sin(0.45)) and found["norm_change"][0] == pytest.approx(0)


def test_the_start_of_a_trajectory_has_no_updates(look: Any) -> None:
    first = seen(look, {"w": W}, [{"w": W}] * 3, steps=(3, 3, 3, 3))
    assert all(np.isnan(first[name]).all() for name in UPDATES)
    assert (first["distance"][0], first["first_cos"][0], first["active"][0]) == (0, pytest.approx(1), 0)
    second = seen(look, {"w": W + V}, [{"w": W}] * 3, steps=(5, 3, 3, 3))
    assert np.isnan(second["update_cos"]) and second["speed"][0] == pytest.approx(np.linalg.norm(V) / 2)
    assert np.isnan(second["way_cos"])  # there is no way yet


ONE = Places(np.array([3]), 0, np.array([2]), np.array([1]))
BLOCK = Places(np.arange(2, 6), 0, np.arange(1, 5), np.arange(4))
GAPS = Places(np.array([1, 4]), 2, np.array([0, 3]), np.array([0, 1]))


def test_small_changes_keep_their_digits() -> None:
    step = 1e-7 * V
    found = motion([W, W + step], Places(np.array([1]), 0, np.array([0]), np.array([0])))
    assert math.sqrt(found[drift_motion.MOVED, 0]) == pytest.approx(np.linalg.norm(step), rel=1e-8)


@pytest.mark.parametrize("at", [ONE, BLOCK, GAPS], ids=str)
def test_long_weights_are_summed_in_blocks(at: Places) -> None:
    rows = RNG.standard_normal((6, 3 * drift_motion.CHUNK + 17)).astype("f4")
    found = motion(rows, at)
    for number, (now, before, earlier) in enumerate(zip(at.now, at.before, at.earlier, strict=True)):
        t, o, p, q = rows[[now, at.first, before, earlier]].astype("f8")
        left = [t, o, p, t - o, t - p, p - q, p - o, t, t - p, t - p]
        right = [*left[:7], o, p - q, p - o]
        assert found[:, number] == pytest.approx([a @ b for a, b in zip(left, right, strict=True)], rel=1e-9, abs=1e-7)


def test_a_block_gives_the_digits_of_single_steps(
    trajectory: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    tensors = {step: {"w": rng.standard_normal((50, 70)).astype("f4"), "b": rng.random(5)} for step in range(20)}
    source = trajectory(tensors)
    together = run(source, tmp_path / "together.h5", Drift())
    monkeypatch.setattr("ckpt_tools.engine.run.MAX_BLOCK", 1)
    alone = run(source, tmp_path / "alone.h5", Drift())
    for name in Drift.outputs:
        assert np.array_equal(together[name], alone[name], equal_nan=True), name


def test_totals_are_those_of_all_weights_as_one_vector(look: Any) -> None:
    def at(seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {"a.weight": rng.random((4, 3)), "b.weight": rng.random((2, 7)), "a.bias": rng.random(4)}

    weights = [at(seed) for seed in range(4)]
    for vectors in (True, False):
        now, *past = [
            {"w": np.concatenate([x.ravel() for n, x in w.items() if vectors or n != "a.bias"])[None]} for w in weights
        ]
        found, whole = seen(look, weights[0], weights[1:], vectors=vectors), seen(look, now, past)
        for name in ("norm", "distance", "norm_change", "first_cos", "update_norm", "speed", "update_cos", "way_cos"):
            assert found[f"total_{name}"] == pytest.approx(whole[name][0], rel=1e-12), name


def test_weights_that_references_lack_are_nan_and_not_in_the_totals(look: Any) -> None:
    old = {"w": W, "grown": np.ones((3, 2))}
    found = seen(look, {"w": W + V, "grown": np.ones((4, 2)), "new": V}, [old] * 3)
    assert found["matrix"] == ["grown", "new", "w"]
    assert np.isnan(found["distance"]).tolist() == [True, True, False] and found["active"].tolist() == [-1, -1, 1]
    assert np.isnan(found["amplitude_distance"]).tolist() == [True, True, False]
    assert found["total_distance"] == pytest.approx(found["distance"][2])
    assert not np.isnan(found["amplitude"]).any()


def test_weights_that_start_at_zero(look: Any) -> None:
    zero = {"w": np.zeros((3, 2))}
    moved = seen(look, {"w": np.ones((3, 2))}, [zero] * 3)
    assert moved["distance"][0] == np.inf and moved["active"][0] == 1 and np.isnan(moved["first_cos"][0])
    still = seen(look, zero, [zero] * 3)
    assert (still["distance"][0], still["norm_change"][0], still["active"][0]) == (0, 0, 0)
    broken = seen(look, {"w": np.full((3, 2), np.nan)}, [zero] * 3)
    assert np.isnan(broken["distance"][0]) and np.isnan(broken["total_norm"]) and broken["active"][0] == -1


def test_wasserstein_is_that_of_scipy() -> None:
    a, b = RNG.exponential(size=(2, 100))
    assert wasserstein(a, b) == pytest.approx(wasserstein_distance(a, b), rel=1e-12)
    assert wasserstein(a, a[::-1]) == 0 and np.isnan(wasserstein(a[:0], b[:0]))


def test_amplitudes_are_shared_with_the_outgoing_weights(look: Any) -> None:
    rng = np.random.default_rng(1)
    w, b, a = rng.standard_normal((6, 3)), rng.standard_normal(6), rng.standard_normal((2, 6))
    net = {"0.weight": w, "0.bias": b, "2.weight": a, "2.bias": rng.standard_normal(2)}
    inner = np.sqrt(np.linalg.norm(a, axis=0) * np.sqrt((w**2).sum(axis=1) + b**2))
    outer = np.sqrt((a**2).sum(axis=1) + net["2.bias"] ** 2)
    view = look(Drift(), net)
    assert amplitudes([view], *view.matrix_names())[0] == pytest.approx(inner)
    moved = {**net, "0.weight": 4 * w, "0.bias": 4 * b}
    found = seen(look, moved, [net] * 3)
    assert found["amplitude"].tolist() == pytest.approx([2 * inner.mean(), outer.mean()])
    assert found["amplitude_distance"].tolist() == pytest.approx([inner.mean(), 0], abs=1e-12)
    assert found["amplitude_speed"].tolist() == pytest.approx([inner.mean() / 2, 0], abs=1e-12)


def test_the_halves_of_an_mlp_meet_by_role(look: Any) -> None:
    up, down = RNG.standard_normal((12, 8)).astype("f4"), RNG.standard_normal((8, 12)).astype("f4")
    q = RNG.standard_normal((8, 8)).astype("f4")
    layer = "model.layers.0."
    tensors = {f"{layer}mlp.{p}_proj.weight": x for p, x in (("gate", up), ("up", up), ("down", down))}
    tensors |= {f"{layer}self_attn.{p}_proj.weight": q for p in "qkvo"}
    config = {"model_type": "llama", "num_attention_heads": 2, "hidden_size": 8, "num_hidden_layers": 1}
    view = look(Drift(), tensors, config=config)
    pairs = drift.outgoing(view)
    assert pairs == {"layers.0.mlp.gate": "layers.0.mlp.down", "layers.0.mlp.up": "layers.0.mlp.down"}
    experts = {f"model.layers.0.mlp.experts.0.{p}_proj.weight": x for p, x in (("up", up), ("down", down))}
    assert drift.outgoing(look(Drift(), experts, config={**config, "model_type": "qwen3_moe"})) == {
        "layers.0.mlp.experts.0.up": "layers.0.mlp.experts.0.down"
    }
    assert drift.outgoing(look(Drift(), {f"h.attn.{p}": q for p in "qkvo"})) == {}
    assert drift.outgoing(look(Drift(), {"0.weight": up, "1.weight": up})) == {}


def test_what_is_not_wanted_is_not_read(look: Any) -> None:
    def refuse(kind: str) -> Any:
        assert kind != "before_previous"
        return look(Drift(), {"w": W}, step=1)

    analyzer = Drift(turning=False)
    view = look(analyzer, {"w": W + V}, step=2, references=Lazy(reference_kinds(Drift), refuse, "reference"))
    found = measured(analyzer, view)
    assert np.isnan(found["update_cos"]).all() and found["speed"][0] == pytest.approx(np.linalg.norm(V))


def run(source: Path, out: Path, *analyzers: Any) -> Mapping[str, Any]:
    analyze(source, list(analyzers), output=out)
    with h5py.File(out) as file:
        return {
            **{name: file["drift"][name][()] for name in (*Drift.outputs, "step")},
            "summary": json.loads(file["drift"].attrs["summary"]),
        }


def test_a_trajectory(trajectory: Callable[..., Path], tmp_path: Path) -> None:
    way = {0: 0.0, 10: 0.01, 20: 0.5, 40: 1.0}  # share of the way of the first group

    def at(step: int) -> dict[str, np.ndarray]:
        late = V * (step == 40)
        return {"layers.0.q": W + way[step] * V, "layers.1.q": W + 0.01 * V, "layers.0.v": W + late, "layers.0.k": W}

    found = run(trajectory({step: at(step) for step in way}), tmp_path / "r.h5", Drift())
    ratio, slope = np.linalg.norm(V) / np.linalg.norm(W), np.linalg.norm(V)
    assert found["distance"][:, 1].tolist() == pytest.approx([0, 0.01 * ratio, 0.5 * ratio, ratio])
    speed = found["speed"][:, 1]
    assert np.isnan(speed[0]) and speed[1:].tolist() == pytest.approx([0.001 * slope, 0.049 * slope, 0.025 * slope])
    assert found["update_cos"][2:, 1].tolist() == pytest.approx([1, 1]) and np.isnan(found["update_cos"][:2, 1]).all()
    summary = found["summary"]
    assert summary["active_since"] == {"layers.0.k": None, "layers.0.q": 20, "layers.0.v": 40, "layers.1.q": None}
    assert summary["active_order"] == [{"group": "q", "step": 20}, {"group": "v", "step": 40}]
    assert summary["frozen"] == ["k"] and summary["fastest_step"] == 40
    assert summary["straightness"]["layers.0.q"] == pytest.approx(1)


def test_the_way_there_and_back_is_not_straight(trajectory: Callable[..., Path], tmp_path: Path) -> None:
    found = run(trajectory({s: {"w": W + x * V} for s, x in ((0, 0), (1, 1), (2, 0.5))}), tmp_path / "r.h5", Drift())
    assert found["update_cos"][2, 0] == pytest.approx(-1)
    assert found["summary"]["straightness"]["w"] == pytest.approx(0.5 / 1.5)


def test_other_reference_kinds_in_one_pass(trajectory: Callable[..., Path], tmp_path: Path) -> None:
    class Steps(Analyzer):
        """Steps of all references."""

        name = "steps"
        reference = ("before_previous", "last", "first", "previous")
        outputs = {"seen": Out(("kind",), dtype="i8")}

        def analyze(self, view: Any) -> dict[str, Any]:
            return {"kind": list(view.references), "seen": [other.step for other in view.references.values()]}

    source = trajectory({step: {"w": W} for step in (0, 1, 2, 5)})
    analyze(source, [Steps], output=tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5") as file:
        assert file["steps"]["seen"][()].tolist() == [[0, 5, 0, 0], [0, 5, 0, 0], [0, 5, 0, 1], [1, 5, 0, 2]]


def test_a_view_has_the_references_declared_and_no_others(look: Any) -> None:
    class Alone(Analyzer):
        """Declares nothing."""

        name = "alone"

    class One(Alone):
        name = "one"
        reference = "last"

    other = look(One(), {"w": W})
    assert look(One(), {"w": W}, references={"last": other}).reference is other
    with pytest.raises(PluginError, match=r"asked for view.reference but declares none; set reference to one of first"):
        _ = look(Alone(), {"w": W}).reference
    with pytest.raises(PluginError, match=r"declares first, previous; .*view\.references\[name\]"):
        _ = look(Drift(), {"w": W}, references={"first": other, "previous": other}).reference
    with pytest.raises(KeyError, match=r"no reference checkpoint 'frist' here. Did you mean 'first'"):
        _ = Lazy(("first",), lambda kind: other, "reference checkpoint")["frist"]


def test_an_unknown_reference_is_a_fault() -> None:
    class Wrong(Drift):
        name = "wrong"
        reference = ("first", "next")

    expected = "reference 'next' is none of first, previous, before_previous, last"
    assert declaration_faults(Wrong) == [expected]


def test_doctests() -> None:
    assert doctest.testmod(drift).failed == doctest.testmod(drift_motion).failed == 0


@pytest.mark.parametrize(
    "check", [*analyzer_checks(Drift), *analyzer_checks(Drift, turning=False, vectors=False)], ids=str
)
def test_it_conforms(check: Callable[[], None]) -> None:
    check()
