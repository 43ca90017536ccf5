"""Mamba: equal to the library's models on the same weights, and every switch does what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from ckpt_tools.errors import OptionError
from ckpt_trainers.mamba import Config, Mamba

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
    assert (shown.hidden[1] - expected.hidden_states[1]).abs().max() <= tolerance * scale
