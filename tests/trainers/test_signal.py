"""The family `attn_mlp` and its task `signal`, and task `next_item`, against formulas written out here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ckpt_tools.errors import OptionError
from ckpt_trainers.attn_mlp import AttnMLP, Config
from ckpt_trainers.settings import plan
from ckpt_trainers.tasks.next_item import NextItem
from ckpt_trainers.tasks.signal import Signal


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_model_equals_numpy() -> None:
    config = Config(inputs=6, d_ff=5, gamma=0.2).as_dict()
    module = AttnMLP.build(config).double()
    AttnMLP.init(module, config, draw())
    batch = Signal(dimension=6, length=4, samples=7).examples(draw(1))
    w = {name.split(".")[-2]: p.detach().numpy().T for name, p in module.named_parameters()}
    outputs = []
    for x in batch["inputs"].numpy():
        scores = x[-1] @ w["q"] @ w["k"].T @ x.T / np.sqrt(6)
        a = np.exp(scores) / np.exp(scores).sum()
        outputs.append((np.tanh(a @ x @ w["v"] @ w["up"]) @ w["down"]).item())
    shown = AttnMLP.forward(module, batch, record=True)
    np.testing.assert_allclose(shown.logits[:, 0, 0].detach(), outputs, atol=1e-14)
    assert shown.attention[0].shape == (7, 1, 1, 4)
    y = batch["targets"].numpy()
    assert AttnMLP.loss(module, batch).item() == pytest.approx(np.exp(-y * outputs).mean(), rel=1e-13)
    weights = torch.arange(1.0, 8.0, dtype=torch.float64) / 28
    weighted = AttnMLP.loss(module, {**batch, "weights": weights}).item()
    assert weighted == pytest.approx((weights.numpy() * np.exp(-y * outputs)).sum(), rel=1e-13)


def test_weights_start_at_their_rate() -> None:
    config = Config(inputs=400, gamma=0.8).as_dict()
    module = AttnMLP.build(config).double()
    AttnMLP.init(module, config, draw())
    assert module.get_parameter("attn.q.weight").std().item() == pytest.approx(400**-0.8, rel=0.01)


def test_sequences_give_their_label_away_once() -> None:
    batch = Signal(noise=0.0).draw(2000, draw())
    x, y = batch["inputs"].numpy(), batch["targets"].numpy()
    assert set(y) == {-1.0, 1.0} and abs(y.mean()) < 0.1
    np.testing.assert_array_equal(x[:, -1], np.eye(32)[2][None].repeat(2000, 0))
    assert set(np.unique(x[:, :-1, 0])) == {-2.0, 2.0}
    np.testing.assert_array_equal(x[:, :, 1].sum(1), np.ones(2000))
    np.testing.assert_array_equal((x[:, :, 1] * x[:, :, 0]).sum(1), 2 * y)
    assert set(x[:, :, 1].argmax(1)) == set(range(7))
    others = (x[:, :-1, 0].sum(1) - 2 * y) / 6
    assert abs(np.corrcoef(others, y)[0, 1]) < 0.08, "the other vectors know nothing of the label"


def test_noise_has_its_size() -> None:
    noisy, plain = (Signal(noise=n).draw(500, draw())["inputs"].numpy() for n in (0.2, 0.0))
    assert (noisy - plain).std() == pytest.approx(0.2 / np.sqrt(32), rel=0.02)


def test_probe_batch_is_all_examples() -> None:
    task = Signal(samples=300)
    examples = task.examples(draw())
    torch.testing.assert_close(task.probe(examples, draw(1))["inputs"], examples["inputs"], rtol=0, atol=0)


def test_accuracy() -> None:
    batch = {"targets": torch.tensor([1.0, -1.0, -1.0, 1.0])}
    assert Signal().metrics(torch.tensor([2.0, -0.1, 0.3, 1.0]).view(4, 1, 1), batch) == {"accuracy": 0.75}


def test_sequences_are_for_families_that_read_them() -> None:
    from ckpt_trainers.mlp import MLP

    with pytest.raises(OptionError, match="Task signal gives sequences, but family mlp reads vectors"):
        plan(MLP, "signal", {})


def test_next_item() -> None:
    batch = NextItem().draw(3000, draw())
    places = set()
    for row, target in zip(batch["tokens"].tolist(), batch["targets"].tolist(), strict=True):
        (place,) = (i for i, token in enumerate(row) if token <= 4)
        places.add(place)
        assert target == row[place + 1] + row[place] % 2
        assert all(5 <= token <= 100 for i, token in enumerate(row) if i != place)
    assert places == set(range(8))


def test_next_item_trains_no_embedding() -> None:
    from ckpt_trainers.training import Training
    from ckpt_trainers.transformer import Transformer

    training = Training(Transformer, "next_item", plan(Transformer, "next_item", {"batch": 8, "d_model": 8}))
    trained = {name for name, p in training.module.named_parameters() if p.requires_grad}
    parts = ("attn.q", "attn.k", "attn.v", "mlp.up", "mlp.down")
    assert trained == {f"layers.0.{part}.weight" for part in parts}
    logits = torch.zeros(2, 10, 201)
    logits[0, -1, 7] = 1.0
    assert NextItem().metrics(logits, {"targets": torch.tensor([7, 7])}) == {"accuracy": 0.5}
