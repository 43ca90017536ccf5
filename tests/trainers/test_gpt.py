"""GPT against the Transformer of this package, which is held to numpy, and what its initialization promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import functional_call

from ckpt_tools.errors import OptionError
from ckpt_tools.run import read_metrics, read_run
from ckpt_trainers.gpt import GPT, Config
from ckpt_trainers.transformer import Transformer

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"layers": 2, "heads": 2, "d_model": 8, "d_ff": 12, "vocabulary": 7, "context": 6, "gamma": 0.3}
SAME = {"activation": "gelu", "norm": "pre", "positions": "learned", "causal": True}


def pair(**switches: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    config = Config(**{**SMALL, "bias": True, **switches}).as_dict()
    module = GPT.build(config).double()
    GPT.init(module, config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype))
    other = Transformer.build({**SMALL, **SAME, **switches, "bias": True, "tied": config["tied"]}).double()
    missing = other.load_state_dict(module.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith("bias") for name in missing.missing_keys)
    with torch.no_grad():
        for name, p in other.named_parameters():
            if name in missing.missing_keys:
                p.zero_()
    return module, other


def batch() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {name: torch.randint(7, (3, 5), generator=draw) for name in ("tokens", "targets")}


@pytest.mark.parametrize("switches", [{}, {"bias": False}, {"tied": False}, {"layers": 1, "heads": 1}])
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_transformer(switches: dict[str, Any], training: bool) -> None:
    module, other = pair(**switches)
    module.train(training)
    data = batch()
    assert torch.allclose(GPT.forward(module, data).logits, Transformer.forward(other, data).logits, rtol=0, atol=1e-13)
    for extra in ({}, {"weights": torch.full((3, 5), 1 / 15).double()}, {"targets": data["targets"][:, -1]}):
        mine, theirs = GPT.loss(module, {**data, **extra}), Transformer.loss(other, {**data, **extra})
        torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=0)
    mine, theirs = GPT.forward(module, data, record=True), Transformer.forward(other, data, record=True)
    for a, b in zip((*mine.hidden, *mine.attention), (*theirs.hidden, *theirs.attention), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_double_backward_in_evaluation_mode() -> None:
    module, other = pair()
    module.eval()
    products = []
    for model, family in ((module, GPT), (other, Transformer)):
        tensors = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
        loss = family.loss(lambda *a, _m=model, _t=tensors, **k: functional_call(_m, _t, a, k), batch())
        slopes = torch.autograd.grad(loss, list(tensors.values()), create_graph=True)
        squares = sum((g.square().sum() for g in slopes), torch.zeros(()))
        products.append(torch.autograd.grad(squares, [tensors["layers.0.attn.q.weight"], tensors["embed.weight"]]))
    for mine, theirs in zip(*products, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-14)


def test_rates_and_residual_scale() -> None:
    config = Config(
        layers=8, heads=1, d_model=100, vocabulary=300, context=300, gamma=0.5, gamma_qk=1.0, scale_residual=True
    ).as_dict()
    module = GPT.build(config)
    GPT.init(module, config, torch.Generator().manual_seed(0))
    found = {
        name.removeprefix("layers.0.").removesuffix(".weight"): p.std().item()
        for name, p in module.named_parameters()
        if p.dim() == 2 and not name.startswith(tuple(f"layers.{i}" for i in range(1, 8)))
    }
    expected = {
        **dict.fromkeys(("embed", "position", "attn.v", "mlp.up"), 0.1),
        "attn.q": 0.01,
        "attn.k": 0.01,
        "attn.o": 0.1 / 4,
        "mlp.down": 0.05 / 4,
    }
    assert found == pytest.approx(expected, rel=0.03)


def test_refusals() -> None:
    with pytest.raises(OptionError, match="d_model 9 is not a multiple of heads 2"):
        Config(**{**SMALL, "d_model": 9})
    with pytest.raises(OptionError, match="vocabulary and context must be set"):
        GPT.build({})
    module, _ = pair()
    with pytest.raises(OptionError, match="gpt has no weights of keys"):
        GPT.loss(module, {**batch(), "key_log_weight": torch.zeros(5)})


def test_learns_a_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abcdefgh\n" * 200)
    values = {"data": str(tmp_path / "text.txt"), "length": 12, "layers": 1, "d_model": 16, "heads": 2, "steps": 120}
    counted: list[float] = []
    GPT.train(
        "text",
        {**values, "lr": 0.01, "warmup": 10, "save": "at:0,120"},
        tmp_path / "run",
        on_step=lambda step, last, metrics: counted.append(metrics["tokens"]),
    )
    metrics = read_metrics(tmp_path / "run")
    assert metrics["validation"][-1] < 0.1 < 1.5 < metrics["validation"][0]
    assert metrics["accuracy"][-1] > 0.95
    assert set(counted) == {32 * 12}
    info = read_run(tmp_path / "run")
    assert info.config["characters"] == "\nabcdefgh"
    assert (info.config["vocabulary"], info.config["context"]) == (9, 12)
    assert info.tied == {"unembed.weight": "embed.weight"}
