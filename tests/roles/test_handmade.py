"""Roles of models that people write themselves, against what the modules compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckpt_tools.family import Family
from ckpt_tools.family_file import ckpt_families
from ckpt_tools.roles import Layout, RoleTable, assign

from .conftest import canonical, infos

Weights = dict[str, Tensor]


def family_of(state: dict[str, Tensor]) -> type[Family] | None:
    fits = [family for family in ckpt_families() if family.table.signature_matches(set(state))]
    assert len(fits) <= 1, [f.name for f in fits]
    return fits[0] if fits else None


def read(module: nn.Module | dict[str, Tensor], config: dict[str, Any] | None = None) -> tuple[str, Layout, Weights]:
    state = module.state_dict() if isinstance(module, nn.Module) else module
    family = family_of(state)
    arrays = {name: t.numpy() for name, t in state.items()}
    layout = assign(infos(arrays), {}, family.table if family else RoleTable(()), config or {})
    return family.name if family else "", layout, canonical(layout, arrays)


def linear(w: Weights, role: str, x: Tensor) -> Tensor:
    return F.linear(x, w[role], w.get(f"{role}.bias"))


def attend(w: Weights, at: str, heads: int, x: Tensor, memory: Tensor | None = None) -> Tensor:
    """Return softmax attention of `x` [B, T, d] over itself or `memory`, from canonical weights."""
    memory = x if memory is None else memory
    q, k, v = (
        linear(w, f"{at}.{role}", source).unflatten(-1, (heads, -1)).transpose(1, 2)
        for role, source in (("q", x), ("k", memory), ("v", memory))
    )
    maps = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return linear(w, f"{at}.o", (maps @ v).transpose(1, 2).flatten(2))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


X = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
MEMORY = torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(2))


def randomised(module: nn.Module) -> nn.Module:
    """Return the module with every parameter random: zero biases would hide a wrong split."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.5)
    return module.eval()


class Attention(nn.Module):
    """nanoGPT's attention: one Linear for q, k, v, and the mask kept as a float buffer."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.register_buffer("bias", torch.tril(torch.ones(1, 1, 5, 5)))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (3, -1)).transpose(1, 2) for t in self.c_attn(x).split(x.shape[-1], dim=-1))
        return self.c_proj((torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v).transpose(1, 2).flatten(2))


def nano(d: int = 12) -> tuple[nn.Module, Attention, nn.Module]:
    block, attention = nn.Module(), Attention(d)
    block.ln_1, block.attn, block.ln_2 = nn.LayerNorm(d), attention, nn.LayerNorm(d)
    block.mlp = nn.Module()
    block.mlp.c_fc, block.mlp.c_proj = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
    model = nn.Module()
    model.transformer = nn.ModuleDict(
        {"wte": nn.Embedding(9, d), "wpe": nn.Embedding(5, d), "h": nn.ModuleList([block]), "ln_f": nn.LayerNorm(d)}
    )
    model.lm_head = nn.Linear(d, 9, bias=False)
    return randomised(model), attention, block.mlp


def test_nanogpt_is_told_from_gpt2_by_shape() -> None:
    model, attention, mlp = nano()
    name, layout, w = read(model)
    assert name == "gpt2"
    close(attend(w, "layers.0.attn", 3, X), attention(X))
    close(linear(w, "layers.0.mlp.up", X), mlp.c_fc(X))
    close(linear(w, "layers.0.mlp.down", mlp.c_fc(X)), mlp.c_proj(mlp.c_fc(X)))
    assert {"embed", "embed.position", "unembed"} <= set(layout.matrices)
    assert [s.name for s in layout.skipped] == ["transformer.h.0.attn.bias"]


@pytest.mark.parametrize("wrap", ["model.", "module.net."])
def test_wrapped_models_are_recognised(wrap: str) -> None:
    model, _, _ = nano()
    plain = read(model)[2]
    name, layout, w = read({wrap + n: t for n, t in model.state_dict().items()})
    assert name == "gpt2" and set(w) == set(plain)
    assert layout.matrices["embed"].tensor == f"{wrap}transformer.wte.weight"


def test_original_llama_names() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.feed_forward = nn.Module(), nn.Module()
            for part, rows in {"wq": 12, "wk": 6, "wv": 6, "wo": 12}.items():
                setattr(self.attention, part, nn.Linear(12, rows, bias=False))
            for part, shape in {"w1": (12, 20), "w2": (20, 12), "w3": (12, 20)}.items():
                setattr(self.feed_forward, part, nn.Linear(*shape, bias=False))
            self.attention_norm, self.ffn_norm = nn.RMSNorm(12), nn.RMSNorm(12)

    model = nn.Module()
    model.tok_embeddings, model.layers, model.norm = nn.Embedding(9, 12), nn.ModuleList([Layer()]), nn.RMSNorm(12)
    model.output = nn.Linear(12, 9, bias=False)
    model.register_buffer("freqs_cos", torch.ones(5, 2))
    name, layout, w = read(randomised(model), {"dim": 12, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2})
    ffn: Any = model.layers[0].feed_forward
    gated = F.silu(linear(w, "layers.0.mlp.gate", X)) * linear(w, "layers.0.mlp.up", X)
    close(linear(w, "layers.0.mlp.down", gated), ffn.w2(F.silu(ffn.w1(X)) * ffn.w3(X)))
    close(linear(w, "layers.0.attn.k", X), model.layers[0].attention.wk(X))
    assert name == "llama2c" and layout.facts["n_kv_heads"] == 2
    assert [(s.name, s.reason) for s in layout.skipped] == [("freqs_cos", "buffer, not a trained weight")]


def test_transformer_lens_heads_are_stacked() -> None:
    """Its model computes `einsum('bti,hij->bthj')` per head and sums the heads' outputs."""
    heads, shared, d, width = 4, 2, 12, 3
    state = {
        "embed.W_E": torch.randn(9, d),
        "pos_embed.W_pos": torch.randn(5, d),
        "blocks.0.ln1.w": torch.randn(d),
        "blocks.0.attn.W_Q": torch.randn(heads, d, width),
        "blocks.0.attn._W_K": torch.randn(shared, d, width),
        "blocks.0.attn._W_V": torch.randn(shared, d, width),
        "blocks.0.attn.W_O": torch.randn(heads, width, d),
        "blocks.0.attn.b_Q": torch.randn(heads, width),
        "blocks.0.attn._b_V": torch.randn(shared, width),
        "blocks.0.attn.b_O": torch.randn(d),
        "blocks.0.attn.mask": torch.ones(5, 5, dtype=torch.bool),
        "blocks.0.attn.IGNORE": torch.tensor(-torch.inf),
        "blocks.0.mlp.W_in": torch.randn(d, 20),
        "blocks.0.mlp.b_in": torch.randn(20),
        "blocks.0.mlp.W_out": torch.randn(20, d),
        "unembed.W_U": torch.randn(d, 9),
    }
    name, layout, w = read(state)
    q = torch.einsum("bti,hij->bthj", X, state["blocks.0.attn.W_Q"]) + state["blocks.0.attn.b_Q"]
    v = torch.einsum("bti,hij->bthj", X, state["blocks.0.attn._W_V"]) + state["blocks.0.attn._b_V"]
    z = torch.randn(2, 5, heads, width)
    close(linear(w, "layers.0.attn.q", X), q.flatten(2))
    close(linear(w, "layers.0.attn.v", X), v.flatten(2))
    o = torch.einsum("bthj,hjd->btd", z, state["blocks.0.attn.W_O"]) + state["blocks.0.attn.b_O"]
    close(linear(w, "layers.0.attn.o", z.flatten(2)), o)
    close(linear(w, "layers.0.mlp.up", X), X @ state["blocks.0.mlp.W_in"] + state["blocks.0.mlp.b_in"])
    close(linear(w, "unembed", X), X @ state["unembed.W_U"])
    assert name == "transformer_lens"
    assert (layout.facts["n_heads"], layout.facts["n_kv_heads"], layout.facts["head_dim"]) == (4, 2, 3)
    assert {s.name for s in layout.skipped} == {"blocks.0.attn.mask", "blocks.0.attn.IGNORE"}
    assert all(weight.role for weight in [*layout.matrices.values(), *layout.vectors.values()])


@pytest.mark.parametrize("widths", [{}, {"kdim": 7, "vdim": 8}])
def test_multihead_attention(widths: dict[str, int]) -> None:
    module = randomised(nn.MultiheadAttention(12, 3, batch_first=True, **widths))
    name, _, w = read(module)
    keys, values = torch.randn(2, 4, widths.get("kdim", 12)), torch.randn(2, 4, widths.get("vdim", 12))
    q = linear(w, "layers.0.attn.q", X).unflatten(-1, (3, -1)).transpose(1, 2)
    k = linear(w, "layers.0.attn.k", keys).unflatten(-1, (3, -1)).transpose(1, 2)
    v = linear(w, "layers.0.attn.v", values).unflatten(-1, (3, -1)).transpose(1, 2)
    mixed = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(2)
    close(linear(w, "layers.0.attn.o", mixed), module(X, keys, values)[0])
    assert name == "torch_transformer"


def test_torch_encoder_and_decoder() -> None:
    model = randomised(nn.Transformer(12, 4, 2, 2, 20, dropout=0.0, batch_first=True))
    name, layout, w = read(model)
    layer: Any = model.decoder.layers[1]

    def norm(role: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (12,), w[role], w[f"{role}.bias"])

    at = "decoder.layers.1"
    x = norm(f"{at}.attn.norm", X + attend(w, f"{at}.attn", 4, X))
    x = norm(f"{at}.cross.norm", x + attend(w, f"{at}.cross", 4, x, MEMORY))
    x = norm(f"{at}.mlp.norm", x + linear(w, f"{at}.mlp.down", F.relu(linear(w, f"{at}.mlp.up", x))))
    close(x, layer(X, MEMORY))
    encoder: Any = model.encoder.layers[0]
    y = norm("encoder.layers.0.attn.norm", X + attend(w, "encoder.layers.0.attn", 4, X))
    y = y + linear(w, "encoder.layers.0.mlp.down", F.relu(linear(w, "encoder.layers.0.mlp.up", y)))
    close(norm("encoder.layers.0.mlp.norm", y), encoder(X))
    assert name == "torch_transformer"
    assert layout.matrices["decoder.layers.1.cross.q"].layer == 1
    assert all(weight.role for weight in [*layout.matrices.values(), *layout.vectors.values()])


def test_lone_encoder_needs_no_path() -> None:
    model = nn.Module()
    model.embedding, model.head = nn.Embedding(9, 12), nn.Linear(12, 9)
    model.stack = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 4, 20, batch_first=True), 2, nn.LayerNorm(12))
    _, layout, w = read(randomised(model))
    assert {"embed", "layers.1.attn.q", "layers.1.mlp.up", "head.weight"} <= set(layout.matrices)
    assert "norm" in layout.vectors and "layers.0.mlp.norm" in layout.vectors
    close(attend(w, "layers.1.attn", 4, X), model.stack.layers[1].self_attn(X, X, X)[0])


def test_attention_in_blocks_of_ones_own() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))

    model = nn.Module()
    model.blocks = nn.ModuleList([Block(), Block()])
    _, _, w = read(randomised(model))
    block: Any = model.blocks[1]
    close(attend(w, "layers.1.attn", 3, X), block.attention(X, X, X)[0])
    close(linear(w, "layers.1.mlp.down", F.gelu(linear(w, "layers.1.mlp.up", X))), block.mlp(X))


def lstm_step(w: Weights, at: str, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (
        linear(w, f"{at}.input.{gate}", x) + linear(w, f"{at}.hidden.{gate}", h)
        for gate in ("input", "forget", "cell", "output")
    )
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (linear(w, f"{at}.projection", h) if f"{at}.projection" in w else h), c


def gru_step(w: Weights, at: str, x: Tensor, h: Tensor) -> Tensor:
    a = {g: linear(w, f"{at}.input.{g}", x) for g in ("reset", "update", "new")}
    b = {g: linear(w, f"{at}.hidden.{g}", h) for g in ("reset", "update", "new")}
    z = torch.sigmoid(a["update"] + b["update"])
    return (1 - z) * torch.tanh(a["new"] + torch.sigmoid(a["reset"] + b["reset"]) * b["new"]) + z * h


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("path", ["", "encoder.rnn."])
@pytest.mark.parametrize("projection", [0, 4])
def test_lstm_gates(path: str, projection: int) -> None:
    module = randomised(nn.LSTM(12, 7, 2, batch_first=True, proj_size=projection))
    name, _, w = read({path + n: t for n, t in module.state_dict().items()})
    x = X
    for layer in (0, 1):
        h, c, out = torch.zeros(2, projection or 7), torch.zeros(2, 7), []
        for t in range(x.shape[1]):
            h, c = lstm_step(w, f"layers.{layer}.rnn", x[:, t], h, c)
            out.append(h)
        x = torch.stack(out, 1)
    close(x, module(X)[0])
    assert name == "torch_rnn"


def test_gru_gates_in_both_directions() -> None:
    module = randomised(nn.GRU(12, 7, batch_first=True, bidirectional=True))
    _, layout, w = read(module)
    for at, order in (("layers.0.rnn", range(5)), ("layers.0.rnn.reverse", range(4, -1, -1))):
        h = torch.zeros(2, 7)
        for t in order:
            h = gru_step(w, at, X[:, t], h)
        last = module(X)[0][:, 4, :7] if at == "layers.0.rnn" else module(X)[0][:, 0, 7:]
        close(h, last)
    assert layout.matrices["layers.0.rnn.reverse.hidden.new"].layer == 0


def test_plain_rnn_and_cells() -> None:
    rnn = randomised(nn.RNN(12, 7, batch_first=True))
    _, _, w = read(rnn)
    close(torch.tanh(linear(w, "layers.0.rnn.input", X[:, 0]) + w["layers.0.rnn.hidden.bias"]), rnn(X[:, :1])[0][:, 0])
    cells = randomised(nn.ModuleList([nn.GRUCell(12, 7), nn.GRUCell(7, 7)]))
    _, _, w = read({f"cells.{n}": t for n, t in cells.state_dict().items()})
    h = torch.randn(2, 7)
    close(gru_step(w, "layers.1.rnn", h, h), cells[1](h, h))
    lone = randomised(nn.LSTMCell(12, 7))
    _, _, w = read(lone)
    close(lstm_step(w, "layers.0.rnn", X[:, 0], h, h)[0], lone(X[:, 0], (h, h))[0])


def test_two_recurrent_modules_carry_their_names() -> None:
    model = nn.ModuleDict({"encoder": nn.GRU(12, 7), "decoder": nn.LSTM(7, 7), "embedding": nn.Embedding(9, 12)})
    _, layout, _ = read(model)
    assert {"embed", "encoder.layers.0.rnn.input.reset", "decoder.layers.0.rnn.input.forget"} <= set(layout.matrices)


@pytest.mark.parametrize("paths", [("", "decoder."), ("a.", "a.b."), ("x.a.y.", "x.b.y."), ("a.", "b.a.")])
def test_paths_are_told_apart_whatever_they_share(paths: tuple[str, str]) -> None:
    state = {path + n: t for path in paths for n, t in nn.RNN(3, 4).state_dict().items()}
    _, layout, _ = read(state)
    assert len(layout.matrices) == 4 and layout.notes == []
    assert all(name.endswith(("layers.0.rnn.input", "layers.0.rnn.hidden")) for name in layout.matrices)


MLPS: dict[str, Any] = {
    "sequential": lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)),
    "under a name": lambda: nn.ModuleDict({"net": MLPS["sequential"]()}),
    "list": lambda: nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)])}),
    "fc1": lambda: nn.ModuleDict({f"fc{k}": nn.Linear(a, b) for k, a, b in ((1, 4, 6), (2, 6, 6), (3, 6, 2))}),
    "layer_0": lambda: nn.ModuleDict({f"layer_{k}": nn.Linear(a, b) for k, a, b in ((0, 4, 6), (1, 6, 6), (2, 6, 2))}),
    "head": lambda: nn.ModuleDict({"hidden": nn.Sequential(*MLPS["sequential"]()[:4]), "out": nn.Linear(6, 2)}),
    "blocks": lambda: nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in ((4, 6), (6, 6), (6, 2)))),
}


@pytest.mark.parametrize("kind", MLPS)
def test_plain_networks_number_their_layers(kind: str) -> None:
    model = randomised(MLPS[kind]())
    name, layout, w = read(model)
    x = torch.randn(3, 4)
    assert name == "torch_mlp" and list(layout.matrices) == [f"layers.{k}.linear" for k in range(3)]
    for k, part in enumerate(m for m in model.modules() if isinstance(m, nn.Linear)):
        close(linear(w, f"layers.{k}.linear", x), part(x))
        x = part(x)


def test_norms_belong_to_the_layer_before() -> None:
    """Layer 10 must not come between 1 and 2, and a norm's bias is no linear layer's."""
    parts: list[nn.Module] = []
    for _ in range(6):
        parts += [nn.Linear(4, 4), nn.BatchNorm1d(4)]
    _, layout, _ = read(randomised(nn.ModuleDict({"network": nn.Sequential(*parts)})))
    assert list(layout.matrices) == [f"layers.{k}.linear" for k in range(6)]
    assert layout.matrices["layers.5.linear"].tensor == "network.10.weight"
    assert layout.vectors["layers.5.norm"].tensor == "network.11.weight"
    assert layout.vectors["layers.0.norm.bias"].tensor == "network.1.bias"
    assert layout.vectors["layers.0.linear.bias"].tensor == "network.0.bias"
    assert {s.reason for s in layout.skipped} == {"buffer, not a trained weight"} and len(layout.skipped) == 18


def test_two_networks_carry_their_names() -> None:
    model = nn.ModuleDict({k: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)) for k in ("actor", "critic")})
    _, layout, _ = read(model)
    assert list(layout.matrices) == [f"{k}.layers.{n}.linear" for k in ("actor", "critic") for n in (0, 1)]


def test_networks_with_other_parts_are_not_plain() -> None:
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    _, layout, _ = read(conv)
    assert {n: w.shape for n, w in layout.matrices.items()} == {"0.weight": (4, 27), "3.weight": (2, 16)}
    assert not any(w.role for w in layout.matrices.values())
    assert layout.notes == ["roles unknown: this is no plain network, since '0.weight' is of another kind"]
    assert family_of(nn.ModuleDict({"conv1": nn.Conv2d(3, 4, 3), "fc1": nn.Linear(4, 2)}).state_dict()) is None


def test_fused_qkv_in_numbered_blocks() -> None:
    d = 12
    state = {
        "pos_emb": torch.randn(5, d),
        "tok_emb.weight": torch.randn(9, d),
        "blocks.0.ln1.gamma": torch.randn(d),
        "blocks.0.attn.qkv.weight": torch.randn(3 * d, d),
        "blocks.0.attn.proj.weight": torch.randn(d, d),
        "blocks.0.mlp.up.weight": torch.randn(20, d),
        "unembed.weight": torch.randn(9, d),
    }
    name, layout, w = read(state)
    assert name == "blocks"
    q, k, v = F.linear(X, state["blocks.0.attn.qkv.weight"]).split(d, dim=-1)
    for role, made in (("q", q), ("k", k), ("v", v)):
        close(linear(w, f"layers.0.attn.{role}", X), made)
    assert list(layout.matrices)[:2] == ["embed", "embed.position"] and list(layout.matrices)[-1] == "unembed"


def test_gguf_names() -> None:
    names = {"token_embd": (9, 8), "blk.0.attn_norm": (8,), "blk.0.attn_q": (8, 8), "blk.0.ffn_gate_exps": (3, 6, 8)}
    state = {f"{n}.weight": torch.randn(shape) for n, shape in names.items()}
    name, layout, w = read(state)
    assert name == "gguf" and set(layout.matrices) == {
        "embed", "layers.0.attn.q", *(f"layers.0.mlp.experts.{e}.gate" for e in range(3))
    }  # fmt: skip
    assert torch.equal(w["layers.0.mlp.experts.2.gate"], state["blk.0.ffn_gate_exps.weight"][2])
    assert layout.aliases == {"unembed": "embed"}
