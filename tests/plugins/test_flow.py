"""Cut edges against closed forms, masks given by hand, and models that transformers builds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ckpt_plugins.flow import Flow
from ckpt_plugins.flow_cuts import accuracy, attention_modules, between, classes, contrast, cut, visible_edges
from ckpt_tools import ModelHost, ProbeSource, RunWriter, SourceError, View, open_trajectory
from ckpt_tools.registry import load_registry
from ckpt_tools.results import check
from ckpt_tools.roles import assign
from ckpt_tools.testing import analyzer_checks
from ckpt_tools.weights import Weights
from ckpt_trainers.transformer import Transformer

pytestmark = pytest.mark.slow

PI = torch.tensor([0.75, 0.19, 0.05, 0.01], dtype=torch.float64)


class Given:
    identity = "given"

    def __init__(self, **batch: Tensor) -> None:
        self._batch = batch

    def batch(self, config: Mapping[str, Any]) -> Mapping[str, Tensor]:
        return self._batch


def view_of(folder: Path, source: Any, analyzer: Any) -> View:
    checkpoint = open_trajectory(folder).checkpoint(0)
    family = load_registry().recognise(checkpoint.config, checkpoint.tensors)
    assert family is not None
    layout = assign(checkpoint.tensors, checkpoint.aliases, family.table, checkpoint.config)
    host = ModelHost(family, checkpoint.config, source)
    return View(Weights(checkpoint, layout, []), analyzer, step=0, config={}, seed="0", host=host)


@pytest.fixture(scope="module")
def markov(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("markov") / "run"
    Transformer.train("markov", {"steps": 1, "save": "every:1", "std": 0.3, "d_model": 8}, path)
    return path


def own(folder: Path, **config: Any) -> Path:
    """Return a run of our transformer with random weights."""
    config = {"layers": 2, "heads": 2, "d_model": 8, "d_ff": 12, "vocabulary": 9, "context": 5, "std": 0.7, **config}
    full = Transformer.Config.parse(config).as_dict()
    module = Transformer.build(full).double()
    Transformer.init(module, full, torch.Generator().manual_seed(1))
    with RunWriter(folder / "run", family="transformer", family_version=1, config=full) as run:
        run.save(0, module.state_dict())
    return folder / "run"


@pytest.fixture(scope="module", params=["llama", "gpt2", "gpt_neox"])
def pretrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model of one layer of transformers with random weights, so that a mask by hand is the mask of that layer."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    made = {
        "llama": lambda: transformers.LlamaConfig(vocab_size=20, initializer_range=0.5, **sizes),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=4, initializer_range=0.5),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(vocab_size=20, initializer_range=0.5, **sizes),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = transformers.AutoModelForCausalLM.from_config(made[request.param](), attn_implementation="eager")
    folder = tmp_path_factory.mktemp(request.param)
    module.eval().save_pretrained(folder)
    return module, folder


def test_edges_behind_padding_are_those_of_the_bare_sequence(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(3)
    bare, targets = torch.randint(8, (4, 3), generator=draw), torch.randint(8, (4,), generator=draw)
    padded = torch.cat([torch.full((4, 2), 8), bare], dim=1)
    folder, analyzer = own(tmp_path, padding=8), Flow(heads=True)
    without, behind = (
        analyzer.analyze(view_of(folder, Given(tokens=tokens, targets=targets), analyzer)) for tokens in (bare, padded)
    )
    for name in ("loss_effect", "head_loss_effect"):
        expected, found = np.stack(without[name]), np.stack(behind[name])
        assert np.isfinite(expected).any()
        np.testing.assert_allclose(found[..., 2:, 2:], expected, rtol=0, atol=1e-9)
        np.testing.assert_allclose(np.nan_to_num(found[..., 2:, :2]), 0, atol=1e-9)


def test_population_loses_a_key_as_if_it_were_not_there(markov: Path) -> None:
    checkpoint = open_trajectory(markov).checkpoint(0)
    w = {name: torch.from_numpy(checkpoint.read(name).copy()) for name in checkpoint.tensors}
    analyzer = Flow()
    found = check(analyzer, analyzer.analyze(view_of(markov, ProbeSource(markov), analyzer)), "here").values
    p = 0.5 * torch.eye(4, dtype=torch.float64) + 0.5 * PI
    embed = w["embed.weight"]
    scores = embed @ w["layers.0.attn.q.weight"].T @ w["layers.0.attn.k.weight"] @ embed.T + PI.log()

    def loss(scores: Tensor) -> float:
        logits = scores.softmax(-1) @ embed @ w["unembed.weight"].T
        return float(-(PI[:, None] * p * logits.log_softmax(-1)).sum())

    assert found["loss"] == pytest.approx(loss(scores), rel=1e-12)
    for q in range(4):
        for k in range(4):
            without = scores.clone()
            without[q, k] = -torch.inf
            assert found["loss_effect"][0, q, k] == pytest.approx(loss(without) - loss(scores), abs=1e-12)
    assert np.abs(found["loss_effect"]).max() > 1e-4 and np.isnan(found["accuracy"]) and np.isnan(found["contrast"])


def test_equals_a_mask_by_hand_on_models_of_transformers(pretrained: tuple[Any, Path]) -> None:
    module, folder = pretrained
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 20, (6, 4)))
    analyzer = Flow(heads=True, span=3)
    found = check(analyzer, analyzer.analyze(view_of(folder, Given(tokens=tokens), analyzer)), "here")
    assert found.labels["query_position"].tolist() == [1, 2, 3]
    causal = torch.zeros(1, 1, 4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)

    def loss(mask: Tensor) -> float:
        with torch.no_grad():
            logits = module(input_ids=tokens, attention_mask=mask).logits
        return float(functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))

    for q in range(1, 4):
        for k in range(1, 4):
            effect = found.values["loss_effect"][0, q - 1, k - 1]
            if k > q:
                assert np.isnan(effect)
                continue
            mask = causal.clone()
            mask[..., q, k] = -torch.inf
            assert effect == pytest.approx(loss(mask) - loss(causal), abs=2e-6)
            one = causal.repeat(1, 4, 1, 1)
            one[0, 2, q, k] = -torch.inf
            assert found.values["head_loss_effect"][0, 2, q - 1, k - 1] == pytest.approx(
                loss(one) - loss(causal), abs=2e-6
            )
    assert np.nanmax(np.abs(found.values["loss_effect"])) > 1e-3


@pytest.mark.parametrize("attention", ["softmax", "linear"])
def test_last_position_alone_feels_the_same_cuts(tmp_path: Path, attention: str) -> None:
    run = own(tmp_path, attention=attention)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, 9, (7, 5)))
    last, whole = tokens[:, 0].clone(), tokens.roll(1, 1)
    weights = torch.zeros(7, 5).double()
    weights[:, -1] = 1 / 7
    whole[:, -1] = last
    one, other = (
        check(a, a.analyze(view_of(run, Given(tokens=tokens, **batch), a)), "here").values
        for a, batch in ((Flow(), {"targets": last}), (Flow(), {"targets": whole, "weights": weights}))
    )
    for name in ("loss", "loss_effect", "accuracy", "accuracy_effect"):
        np.testing.assert_allclose(one[name], other[name], atol=1e-12, err_msg=name)
    # What reaches the last position in the last layer must come from its own row.
    assert np.nanmax(np.abs(one["loss_effect"][1, :-1])) == 0 < np.nanmax(np.abs(one["loss_effect"][1, -1]))
    assert np.isnan(one["loss_effect"][:, 0, 0]).all(), "the first position has no other key"


def test_first_position_sees_itself_only_and_the_future_is_no_edge() -> None:
    maps = torch.ones(1, 1, 3, 3).tril()
    assert visible_edges(maps / maps.sum(-1, keepdim=True)).tolist() == [
        [False, False, False], [True, True, False], [True, True, True]
    ]  # fmt: skip


def test_classes_follow_the_key(tmp_path: Path) -> None:
    tokens = torch.from_numpy(np.random.default_rng(2).integers(0, 9, (4, 5)))
    found = classes({"tokens": tokens, "place": torch.tensor([0, 1, 2, 1])})
    assert list(found) == ["key", "anchors", "last", "other"]
    assert found["anchors"].tolist()[2] == [False, False, False, True, True]
    assert found["other"].tolist()[1] == [True, False, False, False, False]
    edges = between(found["anchors"], found["key"])
    assert edges.shape == (4, 1, 5, 5) and edges[0, 0].nonzero().tolist() == [[1, 0], [2, 0]]
    assert not between(found["last"], found["last"]).any()
    numbered = classes({"tokens": tokens, "classes": torch.tensor([[0, 0, 3, 3, 0]]).expand(4, 5)})
    assert list(numbered) == ["0", "3"] and numbered["3"].sum() == 8


def test_class_cuts_equal_cuts_one_by_one(tmp_path: Path) -> None:
    run = own(tmp_path)
    tokens = torch.from_numpy(np.random.default_rng(3).integers(0, 9, (6, 5)))
    place = torch.full((6,), 1)
    batch = {"tokens": tokens, "targets": tokens[:, 0].clone(), "place": place}
    batch |= {"inferential": tokens[:, 0].clone(), "symmetric": (tokens[:, 0] + 1) % 9}
    analyzer = Flow()
    view = view_of(run, Given(**batch), analyzer)
    found = check(analyzer, analyzer.analyze(view), "here")
    names = found.labels["query_class"]
    assert isinstance(names, list)
    effect = found.values["class_loss_effect"][0, names.index("last"), names.index("key")]
    # With the key at one place the class is one edge.
    assert effect == pytest.approx(found.values["loss_effect"][0, 4, 1], abs=1e-12)
    model = view.model()
    logits = model.forward(batch).logits[:, -1].log_softmax(-1)
    by_hand = [float(logits[i, tokens[i, 0]] - logits[i, (tokens[i, 0] + 1) % 9]) for i in range(6)]
    assert found.values["contrast"] == pytest.approx(np.mean(by_hand))
    assert np.isfinite(found.values["class_contrast_effect"]).all()


def test_cuts_end_with_their_context(tmp_path: Path) -> None:
    run = own(tmp_path)
    view = view_of(run, Given(tokens=torch.tensor([[1, 2, 3]])), Flow())
    model = view.model()
    modules = attention_modules(model)
    batch = view.batch()
    before = model.forward(batch).logits
    edges = torch.zeros(3, 3, dtype=torch.bool)
    edges[2, 0] = True
    with cut(modules, {0: edges, 1: edges}):
        maps = model.forward(batch, record=True).attention
    assert all((m[..., 2, 0] == 0).all() and torch.allclose(m.sum(-1), torch.ones(()).double()) for m in maps)
    assert torch.equal(model.forward(batch).logits, before)


def test_accuracy_and_contrast_of_known_logits() -> None:
    logits = torch.tensor([[[0.0, 2.0]], [[3.0, 1.0]], [[0.0, 5.0]]])
    targets = torch.tensor([1, 1, 1])
    assert accuracy(logits, {"targets": targets}) == pytest.approx(2 / 3)
    assert accuracy(logits, {"targets": targets, "weights": torch.tensor([0.5, 0.5, 0.0])}) == pytest.approx(0.5)
    assert np.isnan(accuracy(logits, {"targets": torch.rand(3, 1, 2)}))
    answers = {"inferential": torch.tensor([1, 1, 1]), "symmetric": torch.tensor([0, 1, 0])}
    assert contrast(logits, answers) == pytest.approx((2 + 5) / 2)
    assert contrast(logits, {**answers, "targets": torch.tensor([1, 1, 0])}) == pytest.approx(2)
    assert np.isnan(contrast(logits, {}))


def test_models_without_attention_are_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 20, "hidden_size": 8, "state_size": 4, "num_hidden_layers": 1, "use_mambapy": False}
    with torch.random.fork_rng():
        transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)).save_pretrained(tmp_path)
    analyzer = Flow()
    with pytest.raises(SourceError, match="no attention"):
        analyzer.analyze(view_of(tmp_path, Given(tokens=torch.tensor([[1, 2, 3]])), analyzer))


@pytest.mark.parametrize("check_", analyzer_checks(Flow, span=3), ids=str)
def test_conforms(check_: Any) -> None:
    check_()


def test_importing_the_plugin_is_cheap() -> None:
    code = "import sys, ckpt_plugins.flow; sys.exit(any(m in sys.modules for m in ('torch', 'scipy', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
