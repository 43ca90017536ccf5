"""Mamba: equal to the library's models on the same weights, and every switch does what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.nn import functional as F

from ckpt_tools import open_trajectory
from ckpt_tools.errors import OptionError
from ckpt_tools.roles import assign
from ckpt_tools.run import read_metrics, read_run
from ckpt_trainers.mamba import Config, Convolution, Mamba, RMSNorm

pytestmark = pytest.mark.slow

transformers = pytest.importorskip("transformers")

SHAPE: dict[str, Any] = {"layers": 3, "d_model": 12, "d_state": 5, "vocabulary": 11, "context": 9}
KINDS: dict[str, dict[str, Any]] = {
    "mamba1": {"block": 1, "dt_rank": 3},
    "mamba1-bias-tied": {"block": 1, "bias": True, "tied": True, "conv_width": 2},
    "mamba2": {"block": 2, "heads": 4, "groups": 2},
    "mamba2-bias": {"block": 2, "heads": 1, "bias": True, "conv_bias": False},
    "mamba2-tied": {"block": 2, "heads": 6, "groups": 1, "tied": True, "expand": 3},
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
every_dtype = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["float32", "float64"]
)


def model(seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any) -> nn.Module:
    config = {**SHAPE, **settings}
    module = Mamba.build(config)
    Mamba.init(module, config, torch.Generator().manual_seed(seed))
    return module.to(dtype)


def tokens(length: int = 9) -> Tensor:
    return torch.randint(SHAPE["vocabulary"], (4, length), generator=torch.Generator().manual_seed(1))


def library_model(**settings: Any) -> nn.Module:
    """The library's model of the same shape."""
    c = Config(**{**SHAPE, **settings})
    inner, head = c.widths()
    shape = {
        "hidden_size": c.d_model,
        "num_hidden_layers": c.layers,
        "vocab_size": c.vocabulary,
        "state_size": c.d_state,
        "expand": c.expand,
        "conv_kernel": c.conv_width,
        "use_bias": c.bias,
        "use_conv_bias": c.conv_bias,
        "tie_word_embeddings": c.tied,
        "use_cache": False,
    }
    if c.block == 1:
        rank = c.dt_rank or "auto"
        kind = transformers.MambaConfig(intermediate_size=inner, time_step_rank=rank, **shape)
        return transformers.MambaForCausalLM(kind).eval()
    kind = transformers.Mamba2Config(num_heads=c.heads, head_dim=head, n_groups=c.groups, chunk_size=4, **shape)
    return transformers.Mamba2ForCausalLM(kind).eval()


def library_weights(module: nn.Module, settings: dict[str, Any]) -> dict[str, Tensor]:
    """Our weights under the library's names, the parts of the map into a block fused in its order."""
    ours = module.state_dict()
    theirs = {
        "backbone.embeddings.weight": ours["embed.weight"],
        "backbone.norm_f.weight": ours["norm.weight"],
        "lm_head.weight": ours["unembed.weight"],
    }
    parts = ("x", "z") if settings["block"] == 1 else ("z", "x", "B", "C", "dt")
    for i in range(SHAPE["layers"]):
        w = {k.removeprefix(f"layers.{i}.ssm."): v for k, v in ours.items() if k.startswith(f"layers.{i}.")}
        there = f"backbone.layers.{i}"
        theirs[f"{there}.norm.weight"] = w["norm.weight"]
        for end in ("weight", "bias") if settings.get("bias") else ("weight",):
            theirs[f"{there}.mixer.in_proj.{end}"] = torch.cat([w[f"in_{part}.{end}"] for part in parts])
        theirs[f"{there}.mixer.conv1d.weight"] = w["conv.weight"][:, None]
        same = {"conv.bias": "conv1d.bias", "x.weight": "x_proj.weight", "dt.weight": "dt_proj.weight"}
        same |= {"dt.bias": "dt_proj.bias", "out_norm.weight": "norm.weight", "out.weight": "out_proj.weight"}
        same |= {"out.bias": "out_proj.bias"} | {name: name for name in ("A_log", "D", "dt_bias")}
        theirs |= {f"{there}.mixer.{other}": w[name] for name, other in same.items() if name in w}
    return theirs


@every_kind
@every_dtype
def test_equal_to_the_library(
    kind: dict[str, Any], dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = model(dtype=dtype, **kind), library_model(**kind).to(dtype)
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(0.1 * torch.randn(p.shape, dtype=dtype, generator=torch.Generator().manual_seed(p.numel())))
    theirs.load_state_dict(library_weights(ours, kind), strict=True)
    ids = tokens()
    shown = Mamba.forward(ours, {"tokens": ids}, record=True)
    if dtype == torch.float64:
        # The library rounds states and norms to float32 whatever its weights are.
        monkeypatch.setattr(Tensor, "float", Tensor.double)
        monkeypatch.setattr(torch, "float32", torch.float64)
    expected = theirs(ids, output_hidden_states=True)
    scale = expected.logits.abs().max()
    assert (shown.logits - expected.logits).abs().max() <= tolerance * scale
    # What the library calls hidden states begins behind the first block.
    for ours_after, theirs_after in zip(shown.hidden[1:], expected.hidden_states[:-1], strict=True):
        assert (ours_after - theirs_after).abs().max() <= tolerance * theirs_after.abs().max()


@every_kind
def test_causal(kind: dict[str, Any]) -> None:
    """A token changes nothing before it."""
    module, ids = model(**kind), tokens()
    before = Mamba.forward(module, {"tokens": ids}).logits
    ids[:, 5] = (ids[:, 5] + 1) % SHAPE["vocabulary"]
    after = Mamba.forward(module, {"tokens": ids}).logits
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax((0, 2)).min() > 0


@every_kind
def test_last_position_alone(kind: dict[str, Any]) -> None:
    module = model(**kind)
    batch = {"tokens": tokens(), "targets": torch.tensor([1, 2, 3, 4])}
    torch.testing.assert_close(Mamba.scored(module, batch), Mamba.forward(module, batch).logits[:, -1:])


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, **settings: Any) -> Tensor:
    c = Config(conv_width=weight.shape[1], conv_bias=bias is not None, **settings)
    module = Convolution(c, weight.shape[0])
    with torch.no_grad():
        if module.weight is not None:
            module.weight.copy_(weight)
        if module.bias is not None and bias is not None:
            module.bias.copy_(bias)
    return module(x)


def test_convolution_is_the_librarys() -> None:
    x, weight, bias = (torch.randn(s, generator=torch.Generator().manual_seed(0)) for s in ((2, 7, 3), (3, 4), (3,)))
    full = F.conv1d(F.pad(x.mT, (3, 0)), weight[:, None], bias, groups=3).mT
    torch.testing.assert_close(convolution(x, weight, bias, conv_activation=False), full)
    torch.testing.assert_close(convolution(x, weight, bias), F.silu(full))
    torch.testing.assert_close(convolution(x, weight, bias, conv_residual=True), x + F.silu(full))
    torch.testing.assert_close(convolution(x, weight, conv_activation=False), full - bias)


def test_kernel_of_ones_adds_up_and_ignores_order() -> None:
    x = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    summed = convolution(x, torch.zeros(3, 3), conv="ones", conv_activation=False)
    torch.testing.assert_close(summed[:, 4], x[:, 2:5].sum(1))
    turned = convolution(x.flip(1), torch.zeros(3, 3), conv="ones", conv_activation=False)
    torch.testing.assert_close(summed[:, 4], turned[:, 3])


def test_no_convolution_mixes_nothing() -> None:
    x = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(convolution(x, torch.zeros(3, 4), conv="none", conv_activation=False), x)
    assert torch.equal(convolution(x, torch.zeros(3, 4), torch.ones(3), conv="none"), F.silu(x))
    names = dict(model(conv="none").named_parameters())
    assert not [name for name in names if ".conv." in name]


@pytest.mark.parametrize("block", [1, 2])
def test_without_gate_the_output_is_not_scaled(block: int) -> None:
    """A gate of SiLU(z) = 1 is no gate."""
    gated, plain = model(block=block, bias=True), model(block=block, bias=True, gate=False)
    own = plain.state_dict()
    assert not [name for name in own if "in_z" in name]
    one = 1.2784645427610738  # SiLU(1.278...) = 1
    with torch.no_grad():
        for name, p in gated.named_parameters():
            p.copy_(own[name] if name in own else torch.full_like(p, one if name.endswith("bias") else 0.0))
    found, expected = (Mamba.forward(m, {"tokens": tokens()}).logits for m in (gated, plain))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("block", [1, 2])
def test_learned_positions(block: int) -> None:
    """They are added to the embedding, row t at position t."""
    module, ids = model(block=block, positions="learned"), tokens(5)
    first = Mamba.forward(module, {"tokens": ids}, record=True).hidden[0]
    weights = module.state_dict()
    torch.testing.assert_close(first, weights["embed.weight"][ids] + weights["position.weight"][:5])
    assert "position.weight" not in model(block=block).state_dict()


def test_norms() -> None:
    x = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rms = RMSNorm(12, groups=3).double()(x)
    parts = rms.unflatten(-1, (3, 4)).square().mean(-1)
    torch.testing.assert_close(parts, torch.ones_like(parts), rtol=1e-3, atol=0)
    kinds = {kind: model(norm=kind, out_norm=False) for kind in ("rms", "layer", "none")}
    names = {kind: {n for n, _ in m.named_parameters() if "norm" in n} for kind, m in kinds.items()}
    assert {kind: len(found) for kind, found in names.items()} == {"rms": 4, "layer": 8, "none": 0}
    plain = kinds["none"].layers[0]
    torch.testing.assert_close(plain(x.float()), x.float() + plain.ssm(x.float()))


SWITCHES: dict[str, dict[str, Any]] = {
    **KINDS,
    "mamba1-bare": {"block": 1, "conv": "none", "conv_activation": False, "gate": False, "norm": "none"},
    "mamba2-bare": {"conv": "ones", "conv_bias": False, "gate": False, "norm": "none", "out_norm": False},
    "mamba2-fixed": {"conv_residual": True, "positions": "learned", "norm": "layer", "bias": True},
    "mamba1-fixed": {"block": 1, "conv_residual": True, "positions": "learned", "bias": True},
}
every_switch = pytest.mark.parametrize("settings", SWITCHES.values(), ids=SWITCHES.keys())


@every_switch
def test_every_parameter_has_one_role(settings: dict[str, Any]) -> None:
    stored = model(**settings).state_dict()
    found = {name: Mamba.table.find(name) for name in stored}
    roles = [rule[1].roles[0].replace("{i}", rule[2].get("i", "")) for rule in found.values() if rule]
    assert len(set(roles)) == len(stored)
    if settings.get("block") == 1:
        assert {"layers.2.ssm.in.x", "layers.2.ssm.x", "layers.2.ssm.dt", "layers.2.ssm.A_log"} <= set(roles)
    else:
        assert {"layers.2.ssm.in.B", "layers.2.ssm.in.dt", "layers.2.ssm.dt.bias", "layers.2.ssm.D"} <= set(roles)


@every_switch
def test_rebuilt_model_is_the_same_to_the_bit(settings: dict[str, Any]) -> None:
    module, batch = model(3, **settings), {"tokens": tokens()}
    shown = Mamba.forward(module, batch, record=True)
    again = Mamba.build({**SHAPE, **settings})
    again.load_state_dict(module.state_dict())
    assert torch.equal(Mamba.forward(again, batch).logits, shown.logits)
    weights = dict(module.named_parameters())
    called = functional_call(Mamba.build({**SHAPE, **settings}), weights, (batch["tokens"],))
    assert torch.equal(called.logits, shown.logits)
    assert [tuple(h.shape) for h in shown.hidden] == [(4, 9, 12)] * 4
    assert shown.attention == ()


def test_building_leaves_the_global_random_state() -> None:
    before = torch.get_rng_state()
    Mamba.build(SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


@every_switch
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_hessian_products_agree(settings: dict[str, Any]) -> None:
    """Through the model: forward over reverse, reverse over reverse, and a central difference of gradients."""
    module = model(dtype=torch.float64, **settings)
    weights = {name: p.detach() for name, p in module.named_parameters()}
    along = {name: torch.randn_like(p, generator=torch.Generator().manual_seed(5)) for name, p in weights.items()}
    batch = {"tokens": tokens(6), "targets": torch.tensor([1, 2, 3, 4])}

    def loss(w: dict[str, Tensor]) -> Tensor:
        return Mamba.loss(lambda *args, **how: functional_call(module, w, args, how), batch)

    _, forward = jvp(grad(loss), (weights,), (along,))
    marked = {name: p.clone().requires_grad_() for name, p in weights.items()}
    slope = torch.autograd.grad(loss(marked), list(marked.values()), create_graph=True)
    dot = sum((g * v).sum() for g, v in zip(slope, along.values(), strict=True))
    reverse = torch.autograd.grad(dot, list(marked.values()))
    step = 1e-6
    up, down = (grad(loss)({n: w + s * along[n] for n, w in weights.items()}) for s in (step, -step))
    for (name, found), other in zip(forward.items(), reverse, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-9, atol=1e-12, msg=name)
        error = (found - (up[name] - down[name]) / (2 * step)).norm()
        assert error <= 1e-5 * (found.norm() + 1e-2), name


def draws(**settings: Any) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model(d_model=64, d_state=32, dt_rank=16, **settings).named_parameters()}


@pytest.mark.parametrize("block", [1, 2])
def test_initial_spread_follows_the_rates(block: int) -> None:
    rates = {"gamma_embed": 0.1, "gamma_in": 0.7, "gamma_conv": 1.0, "gamma_out": 0.9, "gamma_unembed": 0.3}
    found = draws(block=block, positions="learned", **rates)
    expected = {
        "embed.weight": 64**-0.1,
        "position.weight": 64**-0.1,
        "layers.1.ssm.in_x.weight": 64**-0.7,
        "layers.1.ssm.conv.weight": 4**-1.0,
        "layers.1.ssm.out.weight": 128**-0.9,
        "unembed.weight": 64**-0.3,
    }
    expected |= {"layers.1.ssm.x.weight": 128**-0.7, "layers.1.ssm.dt.weight": 16**-0.7} if block == 1 else {}
    for name, std in expected.items():
        error = 4 / (2 * found[name].numel()) ** 0.5
        assert found[name].std().item() == pytest.approx(std, rel=error), name
    assert draws(block=block, gamma=0.8)["embed.weight"].std().item() == pytest.approx(64**-0.8, rel=0.15)
    assert draws(block=block, std=0.02)["embed.weight"].std().item() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize("block", [1, 2])
def test_initial_vectors(block: int) -> None:
    found = draws(block=block, heads=4, bias=True, norm="layer")
    ones = [n for n in found if n.endswith((".D", "norm.weight")) and not found[n].eq(1).all()]
    zeros = [n for n in found if n.endswith(("conv.bias", "out.bias", "in_dt.bias", "in_x.bias")) and found[n].any()]
    assert not ones + zeros
    rates = found["layers.0.ssm.A_log"].exp()
    torch.testing.assert_close(rates[..., :4], torch.tensor([1.0, 2, 3, 4]).expand_as(rates[..., :4]))
    dt = F.softplus(found["layers.0.ssm.dt.bias" if block == 1 else "layers.0.ssm.dt_bias"])
    assert dt.min() >= 1e-3 * 0.999 and dt.max() <= 0.1 * 1.001
    assert len(set(dt.tolist())) == len(dt)


def test_either_precision_starts_alike() -> None:
    config = {**SHAPE, "block": 1}
    modules = [Mamba.build(config), Mamba.build(config).double()]
    for module in modules:
        Mamba.init(module, config, torch.Generator().manual_seed(2))
    for one, other in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        assert torch.equal(one, other.float())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 5}, "mamba: heads 5 does not divide expand * d_model. Choose another number."),
        ({"heads": 4, "groups": 3}, "mamba: groups 3 does not divide heads. Choose another number."),
        ({"vocabulary": None}, "mamba: vocabulary and context must be set to build the model."),
        ({"block": 3}, "Option 'block' of mamba must be one of 1, 2. Got 3 instead."),
        ({"dt_min": 0.2}, "mamba: dt_min 0.2 exceeds dt_max 0.1."),
    ],
)
def test_bad_shapes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Mamba.build({**SHAPE, **settings})
    assert message in str(caught.value)


@pytest.mark.parametrize("block", [1, 2])
def test_trains_and_is_read_back(block: int, tmp_path: Path) -> None:
    values = {"block": block, "d_model": 16, "d_state": 8, "batch": 32, "steps": 60, "save": "every:30", "warmup": 5}
    values |= {"lr": 1e-2, "no_decay": "embeddings"}
    assert Mamba.train("anchor", values, tmp_path / "run") == "finished"
    metrics = read_metrics(tmp_path / "run")
    assert metrics["loss"][-10:].mean() < metrics["loss"][:10].mean() - 0.15
    assert {"seen", "shown", "inferential", "symmetric"} < set(metrics)
    with open_trajectory(tmp_path / "run").checkpoint(60) as checkpoint:
        layout = assign(checkpoint.tensors, checkpoint.aliases, Mamba.table, read_run(tmp_path / "run").config)
    assert all(w.role for w in [*layout.matrices.values(), *layout.vectors.values()])
    assert not layout.skipped
    assert layout.matrices["layers.1.ssm.conv"].shape == (48 if block == 2 else 32, 4)
