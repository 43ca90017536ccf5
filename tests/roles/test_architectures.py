"""Roles of models saved by `transformers`, against what the modules themselves compute with.

Nothing here goes by tensor names: inputs and outputs of the running modules are recorded, and the canonical weights
must reproduce them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from torch.nn import functional as F

from ckpt_tools.family_file import ckpt_families
from ckpt_tools.roles import assign

from .conftest import CONFIGS, FAMILY, VOCABULARY, Saved, canonical, infos

pytestmark = pytest.mark.slow

Maker = Callable[..., Saved]
Spy = Callable[[Saved], list[Any]]

ATTENDING = [kind for kind in CONFIGS if not kind.startswith("mamba")]
OWN_ATTENTION = {"bloom": "_reshape", "falcon": "_split_heads", "gptj": "_attn", "gpt_neo": "_attn"}
MLP = {
    "bert": ("bert.encoder.layer.1.intermediate", "bert.encoder.layer.1.output.dense"),
    "roberta": ("roberta.encoder.layer.1.intermediate", "roberta.encoder.layer.1.output.dense"),
    "electra": ("electra.encoder.layer.1.intermediate", "electra.encoder.layer.1.output.dense"),
    "distilbert": ("distilbert.transformer.layer.1.ffn",) * 2,
    "opt": ("model.decoder.layers.1.fc1", "model.decoder.layers.1.fc2"),
    "gpt_neox": ("gpt_neox.layers.1.mlp",) * 2,
    **{k: ("transformer.h.1.mlp",) * 2 for k in ("gpt2", "gpt_bigcode", "gpt_neo", "gptj", "falcon")},
}
ROUTED = ("gpt_oss", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe")
ROLE = re.compile(
    r"(embed(\.position|\.type|\.norm|\.project)?|unembed(\.transform|\.norm|\.project)?|norm"
    r"|layers\.\d+\.(attn\.(q|k|v|o|norm|post_norm|q_norm|k_norm|sinks)|mlp\.(gate|up|down|norm|post_norm|router)"
    r"|mlp\.experts\.\d+\.(gate|up|down)|mlp\.shared\.(gate|up|down|router)"
    r"|ssm\.(in\.(z|x|B|C|dt)|conv|x|dt|A_log|D|out|norm|out_norm)))(\.bias)?"
)
TOKENS = torch.arange(2, 2 + 14).reshape(2, 7) % VOCABULARY


@contextmanager
def recorded(module: Any) -> Iterator[dict[str, SimpleNamespace]]:
    """Record the first input and the output of every submodule by name."""
    seen: dict[str, SimpleNamespace] = {}
    hooks = []

    def record(name: str) -> Callable[..., None]:
        def hook(part: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            given = args[0] if args else kwargs.get("hidden_states", kwargs.get("input_ids"))
            first = out[0] if isinstance(out, tuple) else out
            # Some blocks add the residual in place.
            seen[name] = SimpleNamespace(x=given, y=first.clone() if torch.is_tensor(first) else None, part=part)

        return hook

    for name, part in module.named_modules():
        hooks.append(part.register_forward_hook(record(name), with_kwargs=True))
    yield seen
    for handle in hooks:
        handle.remove()


def run(saved: Saved) -> dict[str, SimpleNamespace]:
    with torch.no_grad(), recorded(saved.module) as seen:
        saved.module(input_ids=TOKENS)
    return seen


def linear(w: dict[str, torch.Tensor], role: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, w[role], w.get(f"{role}.bias"))


def assert_proportional(computed: torch.Tensor, seen: torch.Tensor) -> float:
    """Check equality up to one scalar, which some models fold into q or the embedding; return it."""
    computed = computed.detach()
    scale = float((computed * seen).sum() / computed.square().sum())
    torch.testing.assert_close(scale * computed, seen, rtol=1e-4, atol=1e-5)
    return scale


@pytest.fixture
def attention_calls(monkeypatch: pytest.MonkeyPatch) -> Spy:
    """Return a function that runs a model and gives (attention module, q, k, v, mixed values) of each layer.

    q, k and v are `[batch, head, position, head_dim]`, taken where the model hands them to its attention function.
    """

    def through_interface(saved: Saved) -> list[Any]:
        import sys

        code = sys.modules[type(saved.module).__module__]
        eager, calls = code.eager_attention_forward, []

        def spy(part: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
            out = eager(part, q, k, v, *args, **kwargs)
            calls.append((part, q, k, v, out[0].flatten(2)))
            return out

        monkeypatch.setattr(code, "eager_attention_forward", spy)
        return calls

    def through_method(saved: Saved, name: str) -> list[Any]:
        calls: list[Any] = []
        for part in saved.module.modules():
            if hasattr(part, name):
                inner = getattr(part, name)

                def spy(*args: Any, part: Any = part, inner: Any = inner, **kwargs: Any) -> Any:
                    out = inner(*args, **kwargs)
                    q, k, v = args[:3] if name == "_attn" else out
                    if name == "_split_heads":  # [batch, position, head, head_dim], groups broadcast to heads
                        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
                    calls.append((part, q, k, v, None))
                    return out

                monkeypatch.setattr(part, name, spy)
        return calls

    def get(saved: Saved) -> list[Any]:
        name = OWN_ATTENTION.get(saved.kind)
        return through_method(saved, name) if name else through_interface(saved)

    return get


@pytest.mark.parametrize("kind", ATTENDING)
def test_attention_reads_the_canonical_q_k_v(saved: Maker, attention_calls: Spy, kind: str) -> None:
    model = saved(kind)
    check_attention(model, attention_calls(model))


@pytest.mark.parametrize("changes", [{}, {"multi_query": False}, {"parallel_attn": False}])
def test_falcon_of_every_kind(saved: Maker, attention_calls: Spy, changes: dict[str, bool]) -> None:
    model = saved("falcon", **{"new_decoder_architecture": False, "num_kv_heads": None, **changes})
    check_attention(model, attention_calls(model))


def test_bigcode_without_shared_heads(saved: Maker, attention_calls: Spy) -> None:
    model = saved("gpt_bigcode", multi_query=False)
    check_attention(model, attention_calls(model))


def check_attention(model: Saved, calls: list[Any]) -> None:
    """Recompute q, k, v of the second layer; rotation leaves position 0 as it is, so q and k are checked there."""
    seen, w = run(model), model.weights()
    assert len(calls) == 2
    part, q, k, v, _ = calls[1]
    x = next(r.x for r in seen.values() if r.part is part)
    heads, shared = model.layout().facts["n_heads"], model.layout().facts["n_kv_heads"]
    for role, made in (("q", q), ("k", k), ("v", v)):
        mine = linear(w, f"layers.1.attn.{role}", x)  # [B, T, H * head_dim]
        norm = getattr(part, f"{role}_norm", None) or getattr(part, f"{role}_layernorm", None)
        count = heads if role == "q" else shared
        if norm is not None and norm.weight.shape[-1] == mine.shape[-1]:
            mine = norm(mine)
        mine = mine.unflatten(-1, (count, -1)).transpose(1, 2)
        if norm is not None and norm.weight.shape[-1] == mine.shape[-1]:
            mine = norm(mine)
        if made.shape[1] == heads != count:
            mine = mine.repeat_interleave(heads // count, dim=1)
        positions = slice(None) if role == "v" else slice(1)
        scale = assert_proportional(mine[:, :, positions], made[:, :, positions])
        # OPT hands out q over sqrt(head_dim), gpt-oss scales its rotation.
        assert scale == pytest.approx(1) or (model.kind, role) in {("opt", "q"), ("gpt_oss", "q"), ("gpt_oss", "k")}


@pytest.mark.parametrize("kind", ATTENDING)
def test_o_is_what_follows_attention(saved: Maker, attention_calls: Spy, kind: str) -> None:
    model = saved(kind)
    calls = attention_calls(model)
    seen, w = run(model), model.weights()
    mixed = calls[1][-1]
    fed = [r for r in seen.values() if torch.is_tensor(r.x) and r.x.is_floating_point()]
    if mixed is None:  # the model's own attention: o is the last of the attention module's parts to run
        inside = {id(p) for p in calls[1][0].children()}
        after = [r for r in fed if id(r.part) in inside and r.part.__class__.__name__.endswith("Linear")][-1]
    else:
        after = next(r for r in fed if r.x.shape == mixed.shape and torch.equal(r.x, mixed))
    torch.testing.assert_close(linear(w, "layers.1.attn.o", after.x), after.y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in ATTENDING if kind not in ROUTED and kind != "bloom"])
def test_mlp_from_canonical_weights(saved: Maker, kind: str) -> None:
    from transformers.activations import ACT2FN

    model = saved(kind)
    seen, w = run(model), model.weights()
    first, last = MLP.get(kind, ("model.layers.1.mlp",) * 2)
    config = model.config
    keys = ("hidden_act", "hidden_activation", "activation_function", "activation")
    act = ACT2FN[next(config[k] for k in keys if config.get(k))]
    x = seen[first].x
    inner = act(linear(w, f"layers.1.mlp.{'gate' if 'layers.1.mlp.gate' in w else 'up'}", x))
    if "layers.1.mlp.gate" in w:
        inner = inner * linear(w, "layers.1.mlp.up", x)
    torch.testing.assert_close(linear(w, "layers.1.mlp.down", inner), seen[last].y, rtol=1e-4, atol=1e-5)


def test_bloom_mlp(saved: Maker) -> None:
    model = saved("bloom")
    seen, w = run(model), model.weights()
    made = seen["transformer.h.1.mlp"]
    inner = F.gelu(linear(w, "layers.1.mlp.up", made.x), approximate="tanh")
    residual = made.y - linear(w, "layers.1.mlp.down", inner)  # BLOOM's MLP adds the residual itself
    torch.testing.assert_close(residual, seen["transformer.h.1.self_attention"].y, rtol=1e-4, atol=1e-5)


def routed(w: dict[str, torch.Tensor], kind: str, x: torch.Tensor, top: int) -> torch.Tensor:
    """Return what a mixture of experts makes of `x` [token, d], from canonical weights and the published formulas."""
    at = "layers.1.mlp"
    scores = linear(w, f"{at}.router", x)
    chosen, which = torch.topk(scores if kind == "gpt_oss" else scores.softmax(-1), top)
    if kind == "gpt_oss":
        chosen = chosen.softmax(-1)
    elif kind in ("mixtral", "qwen3_moe"):
        chosen = chosen / chosen.sum(-1, keepdim=True)
    out = torch.zeros_like(x)
    for expert in range(scores.shape[-1]):
        gate, up = (linear(w, f"{at}.experts.{expert}.{part}", x) for part in ("gate", "up"))
        inner = gate * torch.sigmoid(1.702 * gate) * (up + 1) if kind == "gpt_oss" else F.silu(gate) * up
        weight = torch.where(which == expert, chosen, 0).sum(-1, keepdim=True)
        out = out + weight * linear(w, f"{at}.experts.{expert}.down", inner)
    if kind == "qwen2_moe":
        inner = F.silu(linear(w, f"{at}.shared.gate", x)) * linear(w, f"{at}.shared.up", x)
        out = out + torch.sigmoid(linear(w, f"{at}.shared.router", x)) * linear(w, f"{at}.shared.down", inner)
    return out


@pytest.mark.parametrize("kind", [kind for kind in ROUTED if kind != "phimoe"])
def test_experts_from_canonical_weights(saved: Maker, kind: str) -> None:
    changes = {"norm_topk_prob": True} if kind == "qwen3_moe" else {}
    model = saved(kind, **changes)
    seen, w = run(model), model.weights()
    block = seen["model.layers.1.mlp"]
    made = routed(w, kind, block.x.flatten(0, 1), model.config["num_experts_per_tok"])
    torch.testing.assert_close(made, block.y.reshape(made.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "phimoe"])
@pytest.mark.parametrize("turned", [False, True])
def test_fused_experts_in_both_orders(saved: Maker, kind: str, turned: bool) -> None:
    """The module's own parameters hold all experts in one array; other writers keep it as [expert, in, out]."""
    model = saved(kind)
    state = {name: t.detach() for name, t in model.module.state_dict().items()}
    fused = {name: t for name, t in state.items() if t.dim() == 3}
    assert len(fused) == 4
    arrays = {n: (t.mT.contiguous() if turned and n in fused else t).numpy() for n, t in state.items()}
    layout = assign(infos(arrays), {}, FAMILY["mixtral"].table, {})
    assert not [m.name for m in layout.matrices.values() if not m.role and "shared" not in m.name]
    apart = model.weights()
    for name, weight in canonical(layout, arrays).items():
        if ".experts." in name:
            assert torch.equal(weight, apart[name]), name


def test_mamba_from_canonical_weights(saved: Maker) -> None:
    model = saved("mamba")
    seen, w = run(model), {k.removeprefix("layers.1.ssm."): v for k, v in model.weights().items()}
    mixer = seen["backbone.layers.1.mixer"]
    x, z = linear(w, "in.x", mixer.x), linear(w, "in.z", mixer.x)  # [B, T, d_inner]
    x = F.silu(convolved(w, x))
    step, b, c = linear(w, "x", x).split([w["dt"].shape[1], 8, 8], dim=-1)
    step = F.softplus(linear(w, "dt", step))
    a, state, out = -w["A_log"].exp(), torch.zeros(2, 64, 8), []
    for t in range(x.shape[1]):
        state = torch.exp(step[:, t, :, None] * a) * state + (step[:, t] * x[:, t])[..., None] * b[:, t, None]
        out.append((state * c[:, t, None]).sum(-1) + w["D"] * x[:, t])
    made = linear(w, "out", torch.stack(out, 1) * F.silu(z))
    torch.testing.assert_close(made, mixer.y, rtol=1e-4, atol=1e-5)


def test_mamba2_from_canonical_weights(saved: Maker) -> None:
    model = saved("mamba2", use_bias=True)
    seen, w = run(model), {k.removeprefix("layers.1.ssm."): v for k, v in model.weights().items()}
    mixer = seen["backbone.layers.1.mixer"]
    z, x, b, c, step = (linear(w, f"in.{part}", mixer.x) for part in ("z", "x", "B", "C", "dt"))
    x, b, c = F.silu(convolved(w, torch.cat([x, b, c], -1))).split([64, 16, 16], dim=-1)
    x, b, c = x.unflatten(-1, (8, 8)), b.unflatten(-1, (2, 8)), c.unflatten(-1, (2, 8))
    b, c = b.repeat_interleave(4, 2), c.repeat_interleave(4, 2)  # a group of heads shares B and C
    step = F.softplus(step + w["dt.bias"])  # [B, T, head]
    decay, state, out = torch.exp(-step * w["A_log"].exp()), torch.zeros(2, 8, 8, 8), []
    for t in range(x.shape[1]):
        state = decay[:, t, :, None, None] * state + (step[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None]
        out.append((state * c[:, t, :, None]).sum(-1) + w["D"][:, None] * x[:, t])
    mixed = torch.stack(out, 1).flatten(2) * F.silu(z)
    groups = mixed.unflatten(-1, (2, -1))
    groups = groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + model.config["layer_norm_epsilon"])
    made = linear(w, "out", w["out_norm"] * groups.flatten(-2))
    torch.testing.assert_close(made, mixer.y, rtol=1e-4, atol=1e-5)


def convolved(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Return the causal depthwise convolution of `x` [B, T, channel] with `conv` [channel, width]."""
    width = w["conv"].shape[1]
    past = F.pad(x, (0, 0, width - 1, 0))
    return sum(past[:, k : k + x.shape[1]] * w["conv"][:, k] for k in range(width)) + w["conv.bias"]


@pytest.mark.parametrize("kind", CONFIGS)
def test_embedding_and_unembedding(saved: Maker, kind: str) -> None:
    model = saved(kind)
    seen, w = run(model), model.weights()
    table, head = model.module.get_input_embeddings(), model.module.get_output_embeddings()
    looked_up = next(r.y for r in seen.values() if r.part is table)
    assert_proportional(w["embed"][TOKENS], looked_up)
    unembed = w[model.layout().aliases.get("unembed", "unembed")]
    used = next(r for r in seen.values() if r.part is head)
    torch.testing.assert_close(F.linear(used.x, unembed, w.get("unembed.bias")), used.y, rtol=1e-4, atol=1e-5)
    tied = head.weight is table.weight
    assert ("unembed" in model.layout().aliases) == tied
    assert ("unembed" in w) != tied


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_tensor_has_a_role_in_its_place(saved: Maker, kind: str) -> None:
    model = saved(kind)
    layout = model.layout()
    weights = [*layout.matrices.values(), *layout.vectors.values()]
    assert {w.tensor for w in weights} == set(model.arrays)
    assert sum(torch.Size(w.shape).numel() for w in weights) == sum(a.size for a in model.arrays.values())
    assert [w.name for w in weights if not ROLE.fullmatch(w.role)] == []
    assert layout.notes == [] and layout.skipped == []
    assert {w.layer for w in weights if w.role.startswith("layers.")} == {0, 1}
    assert next(iter(layout.matrices)) == "embed"


@pytest.mark.parametrize("kind", CONFIGS)
def test_recognised_by_names_alone(saved: Maker, kind: str) -> None:
    names = set(saved(kind).arrays)
    fits = [family.name for family in ckpt_families() if family.table.signature_matches(names)]
    # GPT-BigCode has the names of nanoGPT, whose table then leaves its q, k, v fused.
    assert fits == ["gpt2" if kind == "gpt_bigcode" else FAMILY[kind].name]


@pytest.mark.parametrize("kind", CONFIGS)
def test_same_roles_without_configuration(saved: Maker, kind: str) -> None:
    model = saved(kind)
    table = next(f.table for f in ckpt_families() if f.table.signature_matches(set(model.arrays)))
    known, bare = model.layout(), model.layout(table, {})
    needs_heads = {"bloom", "falcon", "gpt_bigcode", "gpt_neox", "phi3"}
    if kind in needs_heads:
        assert {n for n in bare.matrices if n.endswith("attn.qkv")} == {"layers.0.attn.qkv", "layers.1.attn.qkv"}
        assert set(known.matrices) - set(bare.matrices) == {f"layers.{i}.attn.{p}" for i in (0, 1) for p in "qkv"}
        assert bool(bare.notes) == (kind != "gpt_bigcode")
    else:
        assert bare.matrices == known.matrices and bare.vectors == known.vectors
    assert bare.aliases == known.aliases


@pytest.mark.parametrize("kind", CONFIGS)
def test_base_model_has_the_same_layers(saved: Maker, kind: str, tmp_path: Path) -> None:
    """A base model is saved without the prefix and without the head."""
    model = saved(kind)
    model.module.base_model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    arrays = load_file(tmp_path / "model.safetensors")
    layout = assign(infos(arrays), {}, model.family.table, config)
    full = model.weights()
    for mine, whole in ((layout.matrices, model.layout().matrices), (layout.vectors, model.layout().vectors)):
        assert [n for n in mine if n.startswith("layers.")] == [n for n in whole if n.startswith("layers.")]
    for name, weight in canonical(layout, arrays).items():
        assert torch.equal(weight, full[name]), name
    assert layout.aliases == {} or kind in ("distilbert",)
    fits = [family.name for family in ckpt_families() if family.table.signature_matches(set(arrays))]
    assert fits == ["gpt2" if kind == "gpt_bigcode" else FAMILY[kind].name]
