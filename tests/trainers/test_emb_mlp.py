"""The MLP over a sum of embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_tools.errors import OptionError
from ckpt_trainers.emb_mlp import Config, EmbMLP
from ckpt_trainers.settings import plan

SMALL: dict[str, Any] = {"d_model": 5, "d_ff": 6, "vocabulary": 9, "padding": 0, "gamma": 0.3}


def model(**switches: Any) -> torch.nn.Module:
    config = Config(**{**SMALL, **switches}).as_dict()
    module = EmbMLP.build(config).double()
    EmbMLP.init(module, config, torch.Generator().manual_seed(0))
    return module


def batch() -> dict[str, torch.Tensor]:
    return {"tokens": torch.tensor([[0, 3, 8], [1, 2, 8], [0, 0, 4]]), "targets": torch.tensor([3, 1, 4])}


@pytest.mark.parametrize(("activation", "apply"), [("linear", lambda x: x), ("tanh", np.tanh)])
def test_forward_equals_numpy(activation: str, apply: Any) -> None:
    module, data = model(activation=activation), batch()
    w = {name: p.numpy() for name, p in module.state_dict().items()}
    e = w["embed.weight"]
    x = np.array([e[3] + e[8], e[1] + e[2] + e[8], e[4]])
    h = apply(x @ w["mlp.up.weight"].T)
    z = h @ w["unembed.weight"].T
    shown = EmbMLP.forward(module, data, record=True)
    np.testing.assert_allclose(shown.logits[:, 0].detach(), z, atol=1e-14)
    for mine, expected in zip(shown.hidden, (x, h), strict=True):
        np.testing.assert_allclose(mine[:, 0].detach(), expected, atol=1e-14)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    assert EmbMLP.loss(module, data).item() == pytest.approx(-np.log(p[range(3), [3, 1, 4]]).mean(), rel=1e-13)


def test_order_does_not_count_and_padding_is_not_trained() -> None:
    module, data = model(activation="gelu"), batch()
    swapped = {**data, "tokens": data["tokens"].flip(1)}
    torch.testing.assert_close(EmbMLP.forward(module, data).logits, EmbMLP.forward(module, swapped).logits)
    EmbMLP.loss(module, data).backward()
    slope = module.get_parameter("embed.weight").grad
    assert slope is not None
    assert slope[0].abs().max() == 0 < slope[8].abs().max()


def test_without_padding_every_token_counts() -> None:
    module, data = model(padding=None), batch()
    EmbMLP.loss(module, data).backward()
    slope = module.get_parameter("embed.weight").grad
    assert slope is not None
    assert slope[0].abs().max() > 0


def test_initial_spread_of_each_group() -> None:
    module = model(d_model=300, d_ff=400, vocabulary=500, gamma=0.5, gamma_mlp=1.0, gamma_unembed=0.0)
    found = {name: p.std().item() for name, p in module.named_parameters()}
    expected = {"embed.weight": 300**-0.5, "mlp.up.weight": 1 / 300, "unembed.weight": 1.0}
    assert found == pytest.approx(expected, rel=0.02)


def test_states_need_no_targets() -> None:
    shown = EmbMLP.forward(model(), {"tokens": batch()["tokens"]}, record=True)
    assert [h.shape[:2] for h in shown.hidden] == [(3, 1), (3, 1)]


def test_refuses_an_answer_for_every_token() -> None:
    data = {**batch(), "targets": torch.zeros(3, 3, dtype=torch.int64)}
    with pytest.raises(OptionError, match="one answer per sequence"):
        EmbMLP.loss(model(), data)
    with pytest.raises(OptionError, match="vocabulary must be set"):
        EmbMLP.build({})
    assert plan(EmbMLP, "two_hop", {"entities": 10}).flat()["padding"] == 0


def test_a_task_it_cannot_do_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a sentence of several letters, " * 20)
    with pytest.raises(OptionError, match="one answer per sequence"):
        EmbMLP.train("text", {"data": str(tmp_path / "text"), "length": 8}, tmp_path / "run")
    assert not (tmp_path / "run").exists()
