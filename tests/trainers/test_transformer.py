"""The Transformer against a plain numpy one, in every combination of switches that matters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, jvp

from ckpt_tools.errors import OptionError
from ckpt_tools.family import Activations
from ckpt_trainers.settings import plan
from ckpt_trainers.transformer import Config, Transformer, attend, cross_entropy, rotate

pytestmark = pytest.mark.slow

Array = np.ndarray[Any, Any]

SMALL: dict[str, Any] = {"layers": 2, "heads": 2, "d_model": 8, "d_ff": 12, "vocabulary": 7, "context": 6, "gamma": 0.3}
CASES: dict[str, dict[str, Any]] = {
    "gpt": {},
    "bert": {"norm": "post", "causal": False, "bias": True},
    "bare": {"norm": "none", "residual": False, "positions": "none", "d_ff": 0, "use_v": False, "use_o": False},
    "condensation": {"norm": "none", "residual": False, "activation": "tanh", "use_o": False, "layers": 1},
    "rotary": {"positions": "rotary", "activation": "relu", "head_dim": 6},
    "linear": {"attention": "linear", "activation": "linear", "scaled": False},
    "tied": {"tied": True, "layers": 1, "heads": 1},
    "no layers": {"layers": 0},
}
each_case = pytest.mark.parametrize("switches", CASES.values(), ids=CASES.keys())


def model(switches: dict[str, Any], seed: int = 0) -> torch.nn.Module:
    config = Config(**{**SMALL, **switches}).as_dict()
    module = Transformer.build(config).double()
    Transformer.init(module, config, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for p in module.parameters():
            if p.dim() == 1:
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed), dtype=p.dtype))
    return module


def batch(length: int = 5) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    weights = torch.rand(3, length, generator=draw, dtype=torch.float64)
    return {
        "tokens": torch.randint(7, (3, length), generator=draw),
        "targets": torch.randint(7, (3, length), generator=draw),
        "weights": weights / weights.sum(),
    }


def normed(x: Array, w: dict[str, Array], name: str) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: Array, w: dict[str, Array], name: str) -> Array:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0) if f"{name}.weight" in w else x


def turned(x: Array) -> Array:
    # A pair of features is a complex number; position t multiplies it by exp(i t rate).
    half = x.shape[1] // 2
    z = (x[:, :half] + 1j * x[:, half:]) * np.exp(
        1j * np.outer(np.arange(len(x)), 10000.0 ** (-np.arange(half) / half))
    )
    return np.concatenate([z.real, z.imag], axis=1)


def reference_attention(c: Config, x: Array, w: dict[str, Array], name: str, log_weight: Array) -> Array:
    q, k, v = (linear(x, w, f"{name}.{part}") for part in "qkv")
    width, heads = q.shape[1] // c.heads, []
    for h in range(c.heads):
        qh, kh, vh = (m[:, h * width : (h + 1) * width] for m in (q, k, v))
        if c.positions == "rotary":
            qh, kh = turned(qh), turned(kh)
        rows = []
        for t in range(len(x)):
            seen = t + 1 if c.causal else len(x)
            score = kh[:seen] @ qh[t] / (math.sqrt(width) if c.scaled else 1)
            p = np.exp(log_weight[:seen] + (score if c.attention == "softmax" else 0))
            p /= p.sum()
            rows.append((p if c.attention == "softmax" else p * (1 + score - p @ score)) @ vh[:seen])
        heads.append(np.array(rows))
    return linear(np.concatenate(heads, axis=1), w, f"{name}.o")


ACTIVATION = {
    "gelu": np.vectorize(lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "linear": lambda x: x,
}


def reference(c: Config, w: dict[str, Array], tokens: Array, log_weight: Array) -> Array:
    """Logits [T, v] of one sequence."""
    x = w["embed.weight"][tokens]
    if c.positions == "learned":
        x = x + w["position.weight"][: len(tokens)]
    for i in range(c.layers):
        for part in ["attn", "mlp"][: 2 if c.d_ff else 1]:
            name = f"layers.{i}.{part}"
            y = normed(x, w, f"{name}.norm") if c.norm == "pre" else x
            if part == "attn":
                y = reference_attention(c, y, w, name, log_weight)
            else:
                y = linear(ACTIVATION[c.activation](linear(y, w, f"{name}.up")), w, f"{name}.down")
            y = x + y if c.residual else y
            x = normed(y, w, f"{name}.norm") if c.norm == "post" else y
    return linear(normed(x, w, "norm") if c.norm == "pre" else x, w, "unembed")


@each_case
@pytest.mark.parametrize("weighted", [False, True])
def test_forward_equals_numpy(switches: dict[str, Any], weighted: bool) -> None:
    module, data = model(switches), batch()
    log_weight = np.log(np.arange(1.0, 6.0)) if weighted else np.zeros(5)
    if weighted:
        data["key_log_weight"] = torch.from_numpy(log_weight)
    weights = {name: p.numpy() for name, p in module.state_dict().items()}
    logits = Transformer.forward(module, data).logits.detach().numpy()
    for row, tokens in zip(logits, data["tokens"].numpy(), strict=True):
        expected = reference(Config(**{**SMALL, **switches}), weights, tokens, log_weight)
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("switches", [{}, {"positions": "rotary"}, {"causal": False}, {"norm": "post", "bias": True}])
@pytest.mark.parametrize("last", [False, True])
def test_a_sequence_behind_padding_is_what_it_is_without(switches: dict[str, Any], last: bool) -> None:
    module = model({**switches, "padding": 6})
    bare = torch.randint(6, (3, 3), generator=torch.Generator().manual_seed(1))
    padded = torch.cat([torch.full((3, 2), 6), bare], dim=1)
    shown = module(torch.cat([padded, padded.flip(1)]), last=last).logits[:3]  # beside full-length ones, as in a batch
    torch.testing.assert_close(shown[:, -3:], module(bare, last=last).logits, rtol=0, atol=1e-12)


def test_padding_told_by_the_task() -> None:
    assert plan(Transformer, "two_hop", {"entities": 10}).flat()["padding"] == 0
    assert plan(Transformer, "anchor", {}).flat()["padding"] is None


@each_case
def test_record_shows_streams_and_maps(switches: dict[str, Any]) -> None:
    module, data = model(switches), batch()
    c = Config(**{**SMALL, **switches})
    shown = Transformer.forward(module, data, record=True)
    assert [h.shape for h in shown.hidden] == [(3, 5, 8)] * (c.layers + 1)
    assert [a.shape for a in shown.attention] == [(3, c.heads, 5, 5)] * c.layers
    for maps in shown.attention:
        torch.testing.assert_close(maps.sum(-1), torch.ones(3, c.heads, 5).double())
        assert not c.causal or maps.triu(1).abs().max() == 0
    plain = Transformer.forward(module, data)
    assert torch.equal(plain.logits, shown.logits)
    assert plain.hidden == plain.attention == ()


def test_causal_positions_do_not_see_the_future() -> None:
    module, data = model({}), batch()
    changed = data["tokens"].clone()
    changed[:, 3:] = (changed[:, 3:] + 1) % 7
    a, b = (Transformer.forward(module, {"tokens": t}).logits for t in (data["tokens"], changed))
    assert torch.equal(a[:, :3], b[:, :3])
    assert not torch.allclose(a[:, 3:], b[:, 3:])


def test_linear_attention_is_the_first_order_of_softmax() -> None:
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 1, 6, 6, generator=draw, dtype=torch.float64)
    prior = torch.randn(6, 6, generator=draw, dtype=torch.float64)
    gaps = [(attend(e * scores, prior, "softmax") - attend(e * scores, prior, "linear")).norm() for e in (1e-3, 1e-4)]
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.02)


def test_rotary_scores_depend_on_distance_only() -> None:
    q, k = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = rotate(q.expand(9, 8)) @ rotate(k.expand(9, 8)).T
    for distance in range(-8, 9):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert scores[0].std() > 1e-2


@each_case
def test_loss_at_the_last_position_equals_that_of_all(switches: dict[str, Any]) -> None:
    module, data = model(switches), batch()
    data |= {"key_log_weight": torch.arange(5.0).double(), "targets": data["targets"][:, -1]}
    del data["weights"]
    full = cross_entropy(Transformer.forward(module, data).logits, data)
    assert Transformer.scored(module, data).shape == (3, 1, 7)
    maps = module(data["tokens"], record=True, last=True).attention
    assert [m.shape[2] for m in maps] == [5, 1][2 - Config(**{**SMALL, **switches}).layers :]
    torch.testing.assert_close(Transformer.loss(module, data), full, rtol=0, atol=1e-13)


# torch builds its tables for jvp with its own deprecated torch.jit.script.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@each_case
def test_functional_call_is_bit_equal_and_differentiable_twice(switches: dict[str, Any]) -> None:
    module, other, data = model(switches, seed=0), model(switches, seed=5), batch()
    tensors = {name: p.detach().clone() for name, p in other.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        def run(*args: Any, **kwargs: Any) -> Activations:
            out: Activations = functional_call(module, parameters, args, kwargs)
            return out

        return Transformer.loss(run, data)

    with torch.no_grad():
        assert torch.equal(loss(tensors), Transformer.loss(other, data))
    draw = torch.Generator().manual_seed(2)
    v = {name: torch.randn(p.shape, generator=draw, dtype=p.dtype) for name, p in tensors.items()}
    forward_over_reverse = jvp(grad(loss), (tensors,), (v,))[1]
    step = 1e-6
    up, down = ({name: tensors[name] + sign * step * v[name] for name in tensors} for sign in (1, -1))
    g_up, g_down = grad(loss)(up), grad(loss)(down)
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    first = torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=True)
    double_backward = torch.autograd.grad(first, list(leaves.values()), list(v.values()), materialize_grads=True)
    for (name, product), other_product in zip(forward_over_reverse.items(), double_backward, strict=True):
        torch.testing.assert_close(product, other_product, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(product, (g_up[name] - g_down[name]) / (2 * step), rtol=1e-4, atol=1e-7)


@each_case
def test_every_parameter_has_its_own_role(switches: dict[str, Any]) -> None:
    names = [name for name, _ in model(switches).named_parameters()]
    roles = []
    for name in names:
        found = Transformer.table.find(name)
        assert found is not None, name
        _, rule, indices = found
        assert len(rule.roles) == 1
        roles.append(rule.roles[0].format(**indices))
    assert len(set(roles)) == len(roles)
    assert {"embed"} <= set(roles)
    assert ("unembed" in roles) != switches.get("tied", False)


def test_table_names_heads_and_widths() -> None:
    facts = Transformer.table.facts(Config(**SMALL).as_dict())
    assert facts == {"n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "head_dim": 4, "d_model": 8}
    assert Transformer.table.facts(Config(**{**SMALL, "head_dim": 6}).as_dict())["head_dim"] == 6


def spreads(**config: Any) -> dict[str, float]:
    chosen = Config(
        layers=1, heads=1, d_model=100, d_ff=400, vocabulary=300, context=300, norm="none", **config
    ).as_dict()
    module = Transformer.build(chosen)
    Transformer.init(module, chosen, torch.Generator().manual_seed(0))
    return {
        name.removesuffix(".weight").removeprefix("layers.0."): p.std().item() for name, p in module.named_parameters()
    }


def test_initialization_rate() -> None:
    found = spreads(gamma=0.7)
    assert found == pytest.approx({name: (400 if name == "mlp.down" else 100) ** -0.7 for name in found}, rel=0.03)


def test_initialization_per_group() -> None:
    found = spreads(std=0.02, gamma_qk=1.0, gamma_unembed=0.25, gamma_mlp=0.5)
    expected = dict.fromkeys(found, 0.02) | {
        "attn.q": 0.01,
        "attn.k": 0.01,
        "mlp.up": 0.1,
        "mlp.down": 0.05,
        "unembed": 100**-0.25,
    }
    assert found == pytest.approx(expected, rel=0.03)


def test_gain_and_scaled_residual() -> None:
    found = spreads(gamma=0.5, gain=0.8, scale_residual=True, gamma_unembed=1.0)
    expected = dict.fromkeys(found, 0.08) | {
        "attn.o": 0.08 / 2**0.5,
        "mlp.down": 0.04 / 2**0.5,
        "unembed": 0.008,
    }
    assert found == pytest.approx(expected, rel=0.03)
    assert spreads(std=0.02, gain=3.0)["attn.q"] == pytest.approx(0.06, rel=0.03)


def test_both_precisions_start_alike() -> None:
    config = Config(**SMALL, bias=True).as_dict()
    single, double = Transformer.build(config), Transformer.build(config).double()
    for module in (single, double):
        Transformer.init(module, config, torch.Generator().manual_seed(3))
    for a, b in zip(single.parameters(), double.parameters(), strict=True):
        assert torch.equal(a, b.float())
    gains = {name: p for name, p in single.named_parameters() if p.dim() == 1}
    assert all((p == (1 if name.endswith("norm.weight") else 0)).all() for name, p in gains.items())


def test_building_leaves_global_random_state() -> None:
    before = torch.get_rng_state()
    Transformer.build(Config(**SMALL).as_dict())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"d_model": 9}, "d_model 9 is not a multiple of heads 2. Set head_dim."),
        ({"head_dim": 5, "use_o": False}, "heads * head_dim must be d_model 8. Got 10"),
        ({"head_dim": 3, "positions": "rotary"}, "even head_dim. Got 3"),
        ({"vocabulary": None}, "vocabulary and context must be set"),
        ({"activation": "swish"}, "must be one of gelu, relu, tanh, linear. Got 'swish'"),
    ],
)
def test_shapes_that_cannot_be_built(switches: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Transformer.build({**SMALL, **switches})
    assert message in str(caught.value)


def test_cross_entropy_of_each_form_of_targets() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, generator=draw, dtype=torch.float64)
    ids = torch.randint(5, (2, 3), generator=draw)
    soft = torch.nn.functional.one_hot(ids, 5).double()
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(2, 3)
    weights = torch.tensor([[0, 0.5, 0], [0.25, 0, 0.25]], dtype=torch.float64)
    for targets in (ids, soft):
        torch.testing.assert_close(cross_entropy(logits, {"targets": targets}), each.mean())
        torch.testing.assert_close(
            cross_entropy(logits, {"targets": targets, "weights": weights}), (weights * each).sum()
        )
        torch.testing.assert_close(cross_entropy(logits, {"targets": targets[:, -1]}), each[:, -1].mean())
    hidden = torch.where(weights == 0, -100, ids)
    torch.testing.assert_close(cross_entropy(logits, {"targets": hidden, "weights": weights}), (weights * each).sum())
