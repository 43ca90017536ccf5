"""Alignment measures against definitions and invariances; the logit lens against the models' own logits."""

from __future__ import annotations

import json
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

from ckpt_plugins.alignment import (
    Alignment,
    cka,
    cka_debiased,
    logit_lens_rank,
    mean_cosine,
    mismatched_cosine,
    procrustes,
)
from ckpt_plugins.alignment_groups import groups_of_facts
from ckpt_plugins.alignment_measures import hsic_unbiased
from ckpt_tools import CkptError, ModelHost, OptionError, SourceError, View, analyze, open_checkpoint
from ckpt_tools.registry import load_registry
from ckpt_tools.results import check
from ckpt_tools.roles import assign
from ckpt_tools.testing import analyzer_checks
from ckpt_tools.weights import Weights

RNG = np.random.default_rng


class Given:
    identity = "given"

    def __init__(self, **batch: torch.Tensor) -> None:
        self._batch = batch

    def batch(self, config: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        return self._batch


def view_of(folder: Path, source: Any, analyzer: Any) -> View:
    checkpoint = open_checkpoint(folder)
    family = load_registry().recognise(checkpoint.config, checkpoint.tensors)
    assert family is not None
    layout = assign(checkpoint.tensors, checkpoint.aliases, family.table, checkpoint.config)
    host = ModelHost(family, checkpoint.config, source)
    weights = Weights(checkpoint, layout, list(layout.matrices))
    return View(weights, analyzer, step=0, config={}, seed="0", host=host)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pretrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A tiny model of transformers with random weights (GPT-2's embedding is tied), and its folder."""
    transformers = pytest.importorskip("transformers")
    if request.param == "llama":
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = transformers.LlamaConfig(vocab_size=40, initializer_range=0.5, **sizes)
        kind = transformers.LlamaForCausalLM
    else:
        config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, initializer_range=0.5)
        kind = transformers.GPT2LMHeadModel
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = kind(config).eval()
        for p in module.parameters():
            if p.ndim == 1:
                p.data = torch.rand(p.shape) + 0.5
    folder = tmp_path_factory.mktemp(request.param)
    module.save_pretrained(folder)
    return module, folder


def turned(n: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.linalg.qr(RNG(seed).standard_normal((n, n)))[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(5, 20), st.integers(1, 8), st.integers(0, 999), st.floats(0.01, 100))
def test_blind_to_rotation_shift_and_scale(n: int, d: int, seed: int, scale: float) -> None:
    x, y = RNG(seed).standard_normal((2, n, d))
    moved = scale * y @ turned(d, seed) + RNG(seed + 1).standard_normal(d)
    for measure in (cka, cka_debiased, procrustes):
        assert measure(x, moved) == pytest.approx(measure(x, y), abs=1e-7), measure.__name__
        assert measure(x, y) == pytest.approx(measure(y, x), abs=1e-9)
    assert cka(y, moved) == pytest.approx(1) and cka_debiased(y, moved) == pytest.approx(1)
    assert procrustes(y, moved) == pytest.approx(0, abs=1e-6)


def test_cka_equals_its_definition_by_kernels() -> None:
    x, y = RNG(0).standard_normal((7, 3)), RNG(1).standard_normal((7, 5))
    h = np.eye(7) - 1 / 7

    def hsic(a: Any, b: Any) -> float:
        return float(np.trace(a @ a.T @ h @ b @ b.T @ h))

    assert cka(x, y) == pytest.approx(hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y)))


def test_unbiased_hsic_is_the_u_statistic() -> None:
    # Song et al. 2012, equation 5: sums over tuples of different indices.
    from itertools import permutations

    k, m = (a @ a.T for a in RNG(2).standard_normal((2, 6, 3)))
    two = [k[i, j] * m[i, j] for i, j in permutations(range(6), 2)]
    four = [k[i, j] * m[q, r] for i, j, q, r in permutations(range(6), 4)]
    three = [k[i, j] * m[i, q] for i, j, q in permutations(range(6), 3)]
    expected = np.mean(two) + np.mean(four) - 2 * np.mean(three)
    assert hsic_unbiased(k, m) == pytest.approx(expected)


def test_debiasing_takes_away_what_width_adds() -> None:
    pairs = [RNG(i).standard_normal((2, 20, 100)) for i in range(40)]
    assert np.mean([cka(x, y) for x, y in pairs]) > 0.7
    assert abs(np.mean([cka_debiased(x, y) for x, y in pairs])) < 0.02


def test_procrustes_finds_the_best_rotation() -> None:
    scipy = pytest.importorskip("scipy.linalg")
    x, y = RNG(3).standard_normal((2, 9, 4))
    a, b = (z - z.mean(0) for z in (x, y))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    rotation, _ = scipy.orthogonal_procrustes(a, b)
    assert procrustes(x, y) == pytest.approx(np.linalg.norm(a @ rotation - b))
    left, right = np.zeros((4, 4)), np.zeros((4, 4))
    left[:2, :2], right[:2, 2:] = np.array([[1, 0], [-1, 0]]), np.array([[1, 0], [1, 0]])
    right[2:, 2:] = np.array([[-1, 0], [-1, 0]])
    assert procrustes(left, right) == pytest.approx(np.sqrt(2))


def test_cosines_equal_loops() -> None:
    x, y = RNG(4).standard_normal((2, 6, 3))

    def cosine(i: int, j: int) -> float:
        return float(x[i] @ y[j] / np.linalg.norm(x[i]) / np.linalg.norm(y[j]))

    assert mean_cosine(x, y) == pytest.approx(np.mean([cosine(i, i) for i in range(6)]))
    others = [cosine(i, j) for i in range(6) for j in range(6) if i != j]
    assert mismatched_cosine(x, y) == pytest.approx(np.mean(others))


def test_undefined_is_nan() -> None:
    x, flat = RNG(5).standard_normal((6, 3)), np.ones((6, 3))
    for measure in (cka, cka_debiased, procrustes):
        assert np.isnan(measure(x, flat)) and np.isnan(measure(x, 0.1 * flat)), measure.__name__
        assert np.isnan(measure(x, np.full((6, 3), np.nan)))
    assert np.isnan(cka_debiased(x[:3], x[:3])) and np.isnan(mean_cosine(x, 0 * flat))
    assert np.isnan(logit_lens_rank(np.array([[np.nan, 0.0]]), np.array([1]))).all()


def write(folder: Path, facts: list[dict[str, Any]]) -> Path:
    path = folder / "facts.jsonl"
    path.write_text("\n".join(json.dumps(fact) for fact in facts) + "\n")
    return path


FACTS = [
    {"head": [1 + i], "relation1": [30], "bridge": [10 + i], "relation2": [31, 32], "tail": [20 + i, 3]}
    for i in range(6)
]


@pytest.mark.parametrize("rows", [2, 64])
def test_facts_on_models_of_transformers(pretrained: tuple[Any, Path], tmp_path: Path, rows: int) -> None:
    module, folder = pretrained
    analyzer = Alignment(facts=str(write(tmp_path, FACTS)), rows=rows)
    source = Given(tokens=torch.zeros(1, 2, dtype=torch.int64))
    found = check(analyzer, analyzer.analyze(view_of(folder, source, analyzer)), "here").values
    with torch.no_grad():
        one = module(torch.tensor([[1 + i, 30] for i in range(6)]), output_hidden_states=True).hidden_states
        two = module(torch.tensor([[10 + i] for i in range(6)]), output_hidden_states=True).hidden_states
        logits = module(torch.tensor([[1 + i, 30, 31, 32] for i in range(6)])).logits[:, -1].double().numpy()
    assert np.isnan(found["cka"][0]) and np.isnan(found["procrustes"][0])  # all states of one token are the same
    for layer in (0, 1):
        x, y = one[layer][:, -1].double().numpy(), two[layer][:, -1].double().numpy()
        assert found["cka"][layer, 0] == pytest.approx(cka_debiased(x, y), abs=1e-5, nan_ok=True)
        assert found["procrustes"][layer, 0] == pytest.approx(procrustes(x, y), abs=1e-5, nan_ok=True)
        assert found["cosine"][layer, 0] == pytest.approx(mean_cosine(x, y), abs=1e-5)
        assert found["mismatched_cosine"][layer, 0] == pytest.approx(mismatched_cosine(x, y), abs=1e-5)
    # After the last layer the lens is the model's own output.
    ranks = [int((row > row[20 + i]).sum()) for i, row in enumerate(logits)]
    assert found["answer_rank"][-1] == np.median(ranks) and found["answer_top"][-1] == np.mean(np.array(ranks) == 0)
    assert found["pairs"] == 6 and np.isfinite(found["bridge_rank"]).all()
    state = module.state_dict()
    embed = next(t for name, t in state.items() if "embed_tokens" in name or "wte" in name).double().numpy()
    product = state["lm_head.weight"].double().numpy() @ embed.T
    assert found["nuclear_norm"] == pytest.approx(np.linalg.svd(product, compute_uv=False).sum(), rel=1e-6)


def test_positions_count_back_from_the_end(pretrained: tuple[Any, Path], tmp_path: Path) -> None:
    module, folder = pretrained
    facts = [fact | {"prompts": {"b": [5, 6, *fact["bridge"]]}} for fact in FACTS]
    analyzer = Alignment(facts=str(write(tmp_path, facts)), positions=2)
    found = analyzer.analyze(view_of(folder, Given(tokens=torch.zeros(1, 2, dtype=torch.int64)), analyzer))
    record = check(analyzer, found, "here")
    with torch.no_grad():
        one = module(torch.tensor([[1 + i, 30] for i in range(6)]), output_hidden_states=True).hidden_states[1]
        two = module(torch.tensor([[5, 6, 10 + i] for i in range(6)]), output_hidden_states=True).hidden_states[1]
    assert record.labels["position"].tolist() == [-1, 0]
    for place, (i, j) in enumerate([(0, 1), (1, 2)]):
        expected = mean_cosine(one[:, i].double().numpy(), two[:, j].double().numpy())
        assert record.values["cosine"][1, place] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(OptionError, match="prompt 0 has only 2"):
        three = Alignment(facts=analyzer.facts, positions=3)
        three.analyze(view_of(folder, Given(tokens=torch.zeros(1, 2, dtype=torch.int64)), three))


def test_groups_by_arrays_selection_and_default(pretrained: tuple[Any, Path]) -> None:
    _, folder = pretrained
    tokens = torch.from_numpy(RNG(6).integers(0, 40, (8, 3)))
    split, bridge = torch.tensor([0, 0, 0, 0, 3, 3, 3, 3]), torch.tensor([7, 5, 6, 4, 4, 5, 6, 7])
    a, b = torch.arange(4), torch.tensor([7, 5, 6, 4])
    chosen = Alignment(a="split=0", b="split=3", pair="bridge")
    selected = chosen.analyze(view_of(folder, Given(tokens=tokens, split=split, bridge=bridge), chosen))
    arrays = Alignment()
    last = torch.full((4,), 2)
    for group_b in (b, torch.stack([b, last], 1)):
        source = Given(tokens=tokens, group_a=a, group_b=group_b, bridge=bridge[:4])
        found = arrays.analyze(view_of(folder, source, arrays))
        for name in ("cka", "cosine", "procrustes", "bridge_rank"):
            np.testing.assert_array_equal(found[name], selected[name], err_msg=name)
    assert np.isnan(selected["answer_rank"]).all()
    plain = arrays.analyze(view_of(folder, Given(tokens=tokens), arrays))
    assert plain["pairs"] == 16 and np.isnan(plain["bridge_rank"]).all()
    assert Alignment(most=5).analyze(view_of(folder, Given(tokens=tokens), Alignment(most=5)))["pairs"] == 5


@pytest.mark.parametrize(
    ("options", "batch", "says"),
    [
        ({"a": "split=0"}, {}, "a, b and pair together"),
        ({"a": "split=0", "b": "split=1", "pair": "bridge"}, {}, "no 'split'"),
        ({}, {"group_a": torch.tensor([0])}, "only one of group_a and group_b"),
        ({}, {"group_a": torch.tensor([0]), "group_b": torch.tensor([0, 1])}, "in pairs"),
        ({}, {"group_a": torch.tensor([0]), "group_b": torch.tensor([9])}, "group_b must be"),
        ({"facts": "nowhere.jsonl"}, {}, "cannot be read"),
        ({"tokenizer": "nowhere.json", "facts": "x"}, {}, "there is no file"),
    ],
)
def test_what_cannot_be_compared_is_refused(pretrained: tuple[Any, Path], options: Any, batch: Any, says: str) -> None:
    analyzer = Alignment(**options)
    source = Given(tokens=torch.tensor([[1, 2], [3, 4]]), **batch)
    with pytest.raises(CkptError, match=says):
        analyzer.analyze(view_of(pretrained[1], source, analyzer))


def test_facts_as_text_meet_their_vocabulary(tmp_path: Path) -> None:
    words = ["Ada", "wrote", "Notes", "about", "engines"]
    fact = dict(zip(("head", "relation1", "bridge", "relation2", "tail"), words, strict=True))
    path = write(tmp_path, [fact])

    def encode(text: str) -> list[int]:
        return [99, *(words.index(word) for word in text.split())]

    groups = groups_of_facts(path, encode)
    assert groups.a.rows == [[99, 0, 1]] and groups.b.rows == [[99, 2]]
    assert groups.lens is not None and groups.lens.rows == [[99, 0, 1, 3]]
    assert groups.bridge is not None and groups.answer is not None
    assert (groups.bridge.tolist(), groups.answer.tolist()) == ([2], [4])
    with pytest.raises(OptionError, match=r"alignment\.tokenizer"):
        groups_of_facts(path, None)
    for bad in ({"head": "Ada"}, fact | {"tail": [1]}, fact | {"prompts": {"c": "x"}}, [1]):
        with pytest.raises(SourceError, match="line 1"):
            groups_of_facts(write(tmp_path, [bad]), encode)  # type: ignore[list-item]


@pytest.mark.parametrize("check_", analyzer_checks(Alignment), ids=str)
def test_conforms(check_: Any) -> None:
    check_()


def test_importing_the_plugin_is_cheap() -> None:
    code = "import sys, ckpt_plugins.alignment; sys.exit(any(m in sys.modules for m in ('torch', 'scipy', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_facts_need_no_batch_and_tokens_of_another_model_are_refused(
    pretrained: tuple[Any, Path], tmp_path: Path
) -> None:
    from ckpt_tools import analyze, read_results

    _, folder = pretrained
    fact = {"head": [1, 2], "relation1": [3], "bridge": [4], "relation2": [5], "tail": [6]}
    facts = write(tmp_path, [fact] * 4)
    assert analyze(folder, [Alignment(facts=str(facts))], output=tmp_path / "r.h5").failures == []
    with read_results(tmp_path / "r.h5") as results:
        assert results["alignment"]["pairs"].read().tolist() == [4]
    with pytest.raises(SourceError, match="nothing to run the model on"):
        analyze(folder, [Alignment()], output=tmp_path / "r.h5")
    facts = write(tmp_path, [fact | {"tail": [10**6]}])
    with pytest.raises(SourceError, match="token id 1000000 lies outside the model's vocabulary of"):
        analyze(folder, [Alignment(facts=str(facts))], output=tmp_path / "r.h5")


def test_a_model_that_sums_its_tokens_has_one_state(tmp_path: Path) -> None:
    """It counts as that at the last position; others do not exist."""
    from ckpt_trainers.emb_mlp import EmbMLP

    settings = {"entities": 8, "d_model": 8, "d_ff": 8, "steps": 2, "save": "every:2"}
    EmbMLP.train("two_hop", settings, tmp_path / "run")
    groups = Alignment(a="split=0", b="split=3", pair="bridge")
    outcome = analyze(tmp_path / "run", [groups], output=tmp_path / "r.h5")
    assert (outcome.computed, outcome.failures) == (2, [])
    with pytest.raises(OptionError, match="states for the last 1 of 3 positions only"):
        analyze(tmp_path / "run", [Alignment()], output=tmp_path / "near.h5")
