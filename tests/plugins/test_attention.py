"""Attention measures against their definitions, the population form and the maps that transformers records."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_plugins.attention import Attention
from ckpt_plugins.attention_cycles import cycles
from ckpt_plugins.attention_maps import effective_rank, entropy, population_attention
from ckpt_tools import ModelHost, Series, SourceError, View, open_checkpoint, open_trajectory
from ckpt_tools.registry import load_registry
from ckpt_tools.results import check
from ckpt_tools.roles import assign
from ckpt_tools.testing import analyzer_checks
from ckpt_tools.weights import Weights
from ckpt_trainers.transformer import Transformer

PI = np.array([0.75, 0.19, 0.05, 0.01])


class Given:
    identity = "given"

    def __init__(self, **batch: torch.Tensor) -> None:
        self._batch = batch

    def batch(self, config: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        return self._batch


def view_of(checkpoint: Any, source: Any, analyzer: Any) -> View:
    family = load_registry().recognise(checkpoint.config, checkpoint.tensors)
    assert family is not None
    layout = assign(checkpoint.tensors, checkpoint.aliases, family.table, checkpoint.config)
    host = ModelHost(family, checkpoint.config, source)
    return View(Weights(checkpoint, layout, []), analyzer, step=checkpoint.step, config={}, seed="0", host=host)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short markov run with large initial weights, so that attention is far from uniform."""
    path = tmp_path_factory.mktemp("markov") / "run"
    Transformer.train("markov", {"steps": 20, "save": "every:10", "std": 0.3, "d_model": 8}, path)
    return path


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pretrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A tiny model of transformers with random weights, and the folder it was saved in."""
    transformers = pytest.importorskip("transformers")
    if request.param == "llama":
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = transformers.LlamaConfig(vocab_size=40, num_key_value_heads=2, initializer_range=0.5, **sizes)
        kind = transformers.LlamaForCausalLM
    else:
        config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, initializer_range=0.5)
        kind = transformers.GPT2LMHeadModel
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config._attn_implementation = "eager"
        module = kind(config).eval()
    folder = tmp_path_factory.mktemp(request.param)
    module.save_pretrained(folder)
    return module, folder


def by_definition(maps: np.ndarray[Any, Any], tokens: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return some measures of one layer's maps `[B, H, T, T]`, by loops over examples, queries and keys."""
    count, heads, length, _ = maps.shape
    ids = sorted(set(tokens.flatten().tolist()))
    mass = np.zeros((heads, len(ids), len(ids)))
    seen = np.zeros(len(ids))
    found: dict[str, Any] = {name: np.zeros(heads) for name in ("entropy", "first", "diagonal", "previous", "far")}
    for b in range(count):
        for q in range(length):
            u = ids.index(tokens[b, q])
            seen[u] += 1
            for h in range(heads):
                row = maps[b, h, q]
                found["entropy"][h] -= sum(a * np.log(a) for a in row if a > 0) / count / length
                found["first"][h] += row[0] / count / length
                found["diagonal"][h] += row[q] / count / length
                found["previous"][h] += (row[q - 1] if q else 0) / count / length
                found["far"][h] += sum(row[k] for k in range(length) if 4 <= abs(q - k) < 8) / count / length
                for k in range(length):
                    mass[h, u, ids.index(tokens[b, k])] += row[k]
    return found | {"mass": mass / seen[:, None], "tokens": ids, "frequency": seen / tokens.size}


def test_equals_definitions_on_the_maps_of_transformers(pretrained: tuple[Any, Path]) -> None:
    module, folder = pretrained
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 12, (5, 9)))
    analyzer = Attention(rows=2)
    found = check(analyzer, analyzer.analyze(view_of(open_checkpoint(folder), Given(tokens=tokens), analyzer)), "here")
    with torch.no_grad():
        recorded = module(input_ids=tokens, output_attentions=True).attentions
    names = {"entropy": "entropy", "first": "first_mass", "diagonal": "diagonal_mass", "previous": "previous_mass"}
    for layer, maps in enumerate(recorded):
        expected = by_definition(maps.double().numpy(), tokens.numpy())
        for short, name in names.items():
            np.testing.assert_allclose(found.values[name][layer], expected[short], atol=1e-6)
        np.testing.assert_allclose(found.values["mass"][layer], expected["mass"], atol=1e-6)
        np.testing.assert_allclose(found.values["distance_mass"][layer, :, 3], expected["far"], atol=1e-6)
        np.testing.assert_allclose(found.values["token_frequency"], expected["frequency"], atol=1e-12)
        assert found.labels["key_token"].tolist() == expected["tokens"]
    assert found.values["position_entropy"][:, :, 0] == pytest.approx(0, abs=1e-6)
    assert found.values["ahead_mass"] == pytest.approx(0)


def test_masses_add_up(pretrained: tuple[Any, Path]) -> None:
    _, folder = pretrained
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, 40, (4, 16)))
    analyzer = Attention(frequency=(0.0, 0.02, 0.05), vocabulary=8, top=5)
    found = analyzer.analyze(view_of(open_checkpoint(folder), Given(tokens=tokens), analyzer))
    record = check(analyzer, found, "here").values
    for name in ("distance_mass", "frequency_mass"):
        np.testing.assert_allclose(record[name].sum(-1), 1, atol=1e-6)
    assert record["mass"].shape == (2, 4, 0, 5) and (record["token_mass"].sum(-1) < 1).all()
    assert (np.diff(record["token_frequency"]) <= 0).all()
    assert (record["effective_keys"] >= 1).all() and (record["effective_keys"] <= 16).all()


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_parts_of_a_batch_add_up(pretrained: tuple[Any, Path], rows: int) -> None:
    _, folder = pretrained
    tokens = torch.from_numpy(np.random.default_rng(2).integers(0, 40, (4, 6)))
    whole, parts = (
        a.analyze(view_of(open_checkpoint(folder), Given(tokens=tokens), a))
        for a in (Attention(rows=0, rank_examples=2), Attention(rows=rows, rank_examples=2))
    )
    for name in Attention.outputs:
        np.testing.assert_allclose(parts[name], whole[name], atol=1e-6, err_msg=name)


def test_population_attention_equals_the_maps_of_a_run(run: Path) -> None:
    trajectory = open_trajectory(run)
    analyzer = Attention()
    from ckpt_tools import ProbeSource

    for step in trajectory.steps:
        checkpoint = trajectory.checkpoint(step)
        w = {name: checkpoint.read(name) for name in checkpoint.tensors}
        seen = w["embed.weight"]
        phi = seen @ w["layers.0.attn.q.weight"].T @ w["layers.0.attn.k.weight"] @ seen.T
        expected = population_attention(phi, PI)
        found = analyzer.analyze(view_of(checkpoint, ProbeSource(run), analyzer))
        assert np.abs(expected - PI).max() > 0.01
        np.testing.assert_allclose(found["mass"][0][0], expected, rtol=0, atol=1e-10)
        np.testing.assert_allclose(found["query_entropy"][0][0], -(expected * np.log(expected)).sum(1), atol=1e-10)
        np.testing.assert_allclose(found["token_mass"][0][0], PI @ expected, atol=1e-10)
        np.testing.assert_allclose(found["entropy"][0], -PI @ (expected * np.log(expected)).sum(1), atol=1e-10)
        np.testing.assert_allclose(found["token_frequency"], PI, atol=1e-12)


def test_population_attention_refuses_frequencies_of_nothing() -> None:
    with pytest.raises(ValueError, match="positive"):
        population_attention(np.zeros((2, 2)), np.array([1.0, 0.0]))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 99))
def test_effective_rank_of_known_maps(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    same = torch.from_numpy(np.tile(rng.dirichlet(np.ones(columns)), (rows, 1)))
    assert float(effective_rank(same)) == pytest.approx(1, abs=1e-6)
    assert float(effective_rank(torch.eye(rows, dtype=torch.float64))) == pytest.approx(rows)


def test_entropy_of_negative_weights_is_unknown() -> None:
    assert torch.isnan(entropy(torch.tensor([1.5, -0.5]))) and entropy(torch.tensor([1.0, 0.0])) == 0
    broken = torch.tensor([[1.0, float("nan")], [0.5, 0.5]])
    assert torch.isnan(effective_rank(broken)) and effective_rank(torch.zeros(2, 2)) == 0


def test_cycles_follow_their_definition() -> None:
    steps = [0, 10, 20, 30, 40, 50, 60, 70]
    mass = np.array([0.5, 0.514, 0.52, 0.6, 0.49, 0.46, 0.4, 0.45])
    entropy_curve = np.array([1.0, 0.9, 0.97, 0.8, 1.2, 1.2, 1.3, 1.0])
    first, second = cycles(steps, mass, entropy_curve)
    # At 20 entropy is too high yet; at 40 mass is not low enough yet; then 60 is the new base.
    assert (first.base, first.focus, first.peak, first.dilution) == (0, 30, 30, 50)
    assert first.mass == pytest.approx((0.5, 0.6, 0.46))
    assert (second.base, second.focus, second.dilution) == (60, 70, -1)
    assert cycles(steps, np.full(8, 0.5), entropy_curve) == []
    assert cycles(steps, np.full(8, np.nan), entropy_curve) == []


def test_summary_names_layer_head_and_token() -> None:
    def record(step: int, mass: float, spread: float) -> Any:
        raw = {name: np.zeros((1,) * len(out.dims)) for name, out in Attention.outputs.items()}
        raw["token_frequency"] = np.array([0.2, 0.8])
        raw["mass"] = np.array([[[[1 - mass, mass], [0.2, 0.8]]]])
        raw["query_entropy"] = np.array([[[spread, 0.5]]])
        raw["token_mass"] = np.zeros((1, 1, 2))
        return check(Attention(), raw | {"query_token": [3, 5], "key_token": [3, 5]}, "here", step=step)

    series = Series(Attention.outputs, [record(0, 0.7, 0.6), record(4, 0.8, 0.5), record(9, 0.5, 0.69)])
    facts = Attention().summarize(series)
    assert facts["focus_on"] == 5 and facts["cycle_query_token"] == [3]
    assert (facts["focus_step"], facts["dilution_step"]) == ([4], [9]) and facts["peak_mass"] == [0.8]
    assert Attention(dilution_drop=0.25).summarize(series)["dilution_step"] == [-1]


def test_models_without_maps_are_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 20, "hidden_size": 8, "state_size": 4, "num_hidden_layers": 1, "use_mambapy": False}
    with torch.random.fork_rng():
        transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)).save_pretrained(tmp_path)
    analyzer = Attention()
    with pytest.raises(SourceError, match="record no attention"):
        analyzer.analyze(view_of(open_checkpoint(tmp_path), Given(tokens=torch.tensor([[1, 2, 3]])), analyzer))


@pytest.mark.parametrize("check_", analyzer_checks(Attention), ids=str)
def test_conforms(check_: Any) -> None:
    check_()


def test_importing_the_plugin_is_cheap() -> None:
    code = "import sys, ckpt_plugins.attention; sys.exit(any(m in sys.modules for m in ('torch', 'scipy', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
