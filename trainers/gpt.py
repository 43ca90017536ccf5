"""GPT: a decoder-only language model on text, family `gpt`.

    x = E[tokens] + P        x += attention(norm(x))        x += W_down gelu(W_up norm(x))        logits = E norm(x)

Learned positions, LayerNorm before each sublayer, an unembedding tied to the embedding. Initialization is that of
arXiv 2505.23013 and 2405.05409, a constant rate: std = d_in^-gamma; `std` = 0.02 and `scale_residual` make it GPT-2's.

Attention runs fused in training and without gradients. Where gradients of a model in evaluation mode are wanted, it is
written out, since the fused kernels cannot be differentiated twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckpt_tools import Activations, OptionError, Options, RoleTable, hookimpl, option

from .family import TrainedFamily, group_std, rules
from .transformer import GROUPS, MODULES, about_last
from .transformer import cross_entropy as weighted_cross_entropy

Batch = Mapping[str, Tensor]


class Config(Options):
    """The shape of the model and how its weights start."""

    name = "gpt"
    layers: int = option(4, help="Number of blocks.", min=0)
    heads: int = option(4, help="Attention heads per block.", min=1)
    d_model: int = option(128, help="Width of the residual stream.", min=1)
    d_ff: int | None = option(None, help="Width of the MLP; none: 4 d_model.", min=1)
    bias: bool = option(False, help="Give matrices except embedding and unembedding, and norms, a bias.")
    tied: bool = option(True, help="Use the embedding as unembedding.")
    vocabulary: int | None = option(None, help="Number of tokens; none: what the task needs.", min=1)
    context: int | None = option(None, help="Longest sequence; none: what the task needs.", min=1)
    characters: str | None = option(None, help="The alphabet, a character's token being its place; none: the task's.")
    gamma: float = option(0.5, help="Initialization rate: std = d_in^-gamma.")
    std: float | None = option(None, help="One initial std for all matrices, instead of gamma.", min=0.0)
    gamma_embed: float | None = option(None, help="Rate of embedding and positions; none: std, else gamma.")
    gamma_qk: float | None = option(None, help="Rate of q and k; none: std, else gamma.")
    gamma_vo: float | None = option(None, help="Rate of v and o; none: std, else gamma.")
    gamma_mlp: float | None = option(None, help="Rate of the MLP; none: std, else gamma.")
    gamma_unembed: float | None = option(None, help="Rate of an unembedding of its own; none: std, else gamma.")
    scale_residual: bool = option(False, help="Divide the initial o and down by sqrt(2 layers).")

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if self.d_model % self.heads:
            raise OptionError(f"gpt: d_model {self.d_model} is not a multiple of heads {self.heads}.")

    def sizes(self) -> tuple[int, int]:
        """Return vocabulary and context; raises OptionError while either is unknown."""
        if self.vocabulary is None or self.context is None:
            raise OptionError("gpt: vocabulary and context must be set to build the model.")
        return self.vocabulary, self.context


class Attention(nn.Module):
    """Causal attention: [B, T, d] to the same, and the maps [B, h, T, T] where they are wanted."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.heads = c.heads
        self.norm = nn.LayerNorm(c.d_model, bias=c.bias)
        self.q = nn.Linear(c.d_model, c.d_model, bias=c.bias)
        self.k = nn.Linear(c.d_model, c.d_model, bias=c.bias)
        self.v = nn.Linear(c.d_model, c.d_model, bias=c.bias)
        self.o = nn.Linear(c.d_model, c.d_model, bias=c.bias)

    def project(self, x: Tensor) -> Sequence[Tensor]:
        """Return queries, keys and values [B, T, d]; one product of all three is faster than three."""
        weight = torch.cat([self.q.weight, self.k.weight, self.v.weight])
        bias = None if self.q.bias is None else torch.cat([self.q.bias, self.k.bias, self.v.bias])
        return F.linear(x, weight, bias).chunk(3, dim=-1)

    def split(self, x: Tensor) -> Tensor:
        """Return [B, T, h * w] as [B, h, T, w]."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, record: bool) -> tuple[Tensor, Tensor | None]:
        q, k, v = map(self.split, self.project(x))
        if record or (torch.is_grad_enabled() and not self.training):
            mixed, maps = written_out(q, k, v)
        else:
            mixed, maps = F.scaled_dot_product_attention(q, k, v, is_causal=True), None
        return self.o(mixed.transpose(1, 2).flatten(-2)), maps


def written_out(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return softmax(q k^T / sqrt(w), causal) v, and the softmax, of [B, h, T, w]."""
    future = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).triu(1)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    maps = scores.masked_fill(future, -torch.inf).softmax(-1)
    return maps @ v, maps


class MLP(nn.Module):
    """[B, T, d] to the same through one hidden layer."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        width = c.d_ff or 4 * c.d_model
        self.norm = nn.LayerNorm(c.d_model, bias=c.bias)
        self.up = nn.Linear(c.d_model, width, bias=c.bias)
        self.down = nn.Linear(width, c.d_model, bias=c.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.gelu(self.up(x)))
        return out


class Block(nn.Module):
    """Attention, then the MLP, each added to the stream."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.attn = Attention(c)
        self.mlp = MLP(c)

    def forward(self, x: Tensor, record: bool) -> tuple[Tensor, Tensor | None]:
        y, maps = self.attn(self.attn.norm(x), record)
        x = x + y
        return x + self.mlp(self.mlp.norm(x)), maps


class Model(nn.Module):
    """Tokens [B, T] to Activations; with `last`, logits are those of the last position, [B, 1, v]."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        vocabulary, context = c.sizes()
        self.embed = nn.Embedding(vocabulary, c.d_model)
        self.position = nn.Embedding(context, c.d_model)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.d_model, bias=c.bias)
        self.unembed = nn.Linear(c.d_model, vocabulary, bias=False)
        if c.tied:
            self.unembed.weight = self.embed.weight

    def forward(self, tokens: Tensor, *, record: bool = False, last: bool = False) -> Activations:
        x = self.embed(tokens) + self.position.weight[: tokens.shape[1]]  # [B, T, d]
        hidden, attention = [x], []
        for block in self.layers:
            x, maps = block(x, record)
            hidden.append(x)
            attention.append(maps)
        logits = self.unembed(self.norm(x[:, -1:] if last else x))
        return Activations(logits, tuple(hidden), tuple(attention)) if record else Activations(logits)


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Return the cross entropy in nats, as `transformer.cross_entropy` does; fused where all positions count alike."""
    targets = batch["targets"]
    if "weights" in batch or targets.shape != logits.shape[:-1] or targets.is_floating_point():
        return weighted_cross_entropy(logits, batch)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class GPT(TrainedFamily):
    """Decoder-only language models."""

    name = "gpt"
    Config: ClassVar[type[Options]] = Config
    Model: ClassVar[type[nn.Module]] = Model
    table = RoleTable(
        rules=rules(MODULES),
        tied=(("unembed.weight", "embed.weight"),),
        config={"n_layers": "layers", "n_heads": "heads", "n_kv_heads": "heads", "d_model": "d_model"},
    )

    @classmethod
    def init(cls, module: nn.Module, config: Mapping[str, Any], generator: torch.Generator) -> None:
        """Draw every matrix from N(0, std^2) of its group, in float64 whatever the model is; gains are 1, biases 0."""
        c = Config(**config)
        with torch.no_grad():
            for name, p in module.named_parameters():
                if p.dim() < 2:
                    p.fill_(float(name.endswith("weight")))
                else:
                    draw = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                    p.copy_(spread(c, name, p.shape[1]) * draw)

    @classmethod
    def forward(cls, module: Any, batch: Batch, *, record: bool = False) -> Activations:
        """Run the model on `tokens` [B, T]; `module` needs only be callable like `Model`."""
        _refuse(batch)
        return super().forward(module, batch, record=record)

    @classmethod
    def scored(cls, module: Any, batch: Batch) -> Tensor:
        """Return the logits that the loss needs: [B, T, v], or [B, 1, v] for targets about the last position."""
        _refuse(batch)
        shown: Activations = module(batch["tokens"], last=about_last(batch["targets"]))
        return shown.logits

    @classmethod
    def loss(cls, module: Any, batch: Batch) -> Tensor:
        """Return the cross entropy in nats, see `cross_entropy`."""
        return cross_entropy(cls.scored(module, batch), batch)


def _refuse(batch: Batch) -> None:
    if "key_log_weight" in batch:
        raise OptionError("gpt has no weights of keys. Train transformer, or use the task's form of sequences.")


def spread(c: Config, name: str, d_in: int) -> float:
    """Return the initial std of a matrix: that of its group, and `scale_residual` divides o and down."""
    std = group_std(c, GROUPS, name, d_in)
    return std / (2 * c.layers) ** 0.5 if c.scale_residual and name.endswith((".o.weight", ".down.weight")) else std


@hookimpl
def ckpt_families() -> list[type[TrainedFamily]]:
    """Provide the family `gpt`."""
    return [GPT]
