"""Transformers with every part that theory leaves out as a switch: family `transformer`.

A block is attention, then an MLP, each with optional residual and LayerNorm. With all of that off, one head and no
W_V, W_O the model is that of "Focus and Dilution" (arXiv 2605.01199), whose logits are

    A W0 W1,    A = softmax_k(log w_k + X W0 W_Q W_K^T W0^T X^T)

with W0 = `embed`, W_Q = `q`^T, W_K = `k`^T, W1 = `unembed`^T and, optionally, a weight w_k for each key. Initialization
follows "Initialization is Critical" (arXiv 2405.05409): std = d_in^-gamma, per group of weights if wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckpt_tools import Activations, OptionError, Options, RoleTable, hookimpl, option

from .family import TrainedFamily, group_std, rules

Batch = Mapping[str, Tensor]

OVERLOOKED = -1e9
"""Log weight of padding: finite, as softmax is not defined for a query that has no key at all."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "tanh": torch.tanh,
    "linear": lambda x: x,
}


class Config(Options):
    """The shape of the model, its switches, and how its weights start."""

    name = "transformer"
    layers: int = option(2, help="Number of blocks.", min=0)
    heads: int = option(4, help="Attention heads per block.", min=1)
    d_model: int = option(64, help="Width of the residual stream.", min=1)
    head_dim: int | None = option(None, help="Width of a head; none: d_model / heads.", min=1)
    d_ff: int = option(256, help="Width of the MLP; 0: attention only.", min=0)
    activation: str = option("gelu", help="Nonlinearity of the MLP.", choices=tuple(ACTIVATIONS))
    attention: str = option("softmax", help="Softmax, or its first-order expansion.", choices=("softmax", "linear"))
    scaled: bool = option(True, help="Divide attention scores by sqrt(head_dim).")
    use_v: bool = option(True, help="Have a value matrix; without it heads attend to their slice of the stream.")
    use_o: bool = option(True, help="Have an output matrix; without it heads are only concatenated.")
    residual: bool = option(True, help="Add each sublayer's input to its output.")
    norm: str = option("pre", help="Where LayerNorm stands.", choices=("none", "pre", "post"))
    positions: str = option("learned", help="How positions are told apart.", choices=("none", "learned", "rotary"))
    causal: bool = option(True, help="Let a position see only itself and earlier ones.")
    bias: bool = option(False, help="Give every matrix except embedding and unembedding a bias.")
    tied: bool = option(False, help="Use the embedding as unembedding.")
    padding: int | None = option(
        None, help="Token before a sequence's first, which counts for nothing; none: what the task says.", min=0
    )
    vocabulary: int | None = option(None, help="Number of tokens; none: what the task needs.", min=1)
    context: int | None = option(None, help="Longest sequence; none: what the task needs.", min=1)
    gamma: float = option(0.5, help="Initialization rate: std = d_in^-gamma.")
    std: float | None = option(None, help="One initial std for all matrices, instead of gamma.", min=0.0)
    gamma_embed: float | None = option(None, help="Rate of embedding and positions; none: std, else gamma.")
    gamma_qk: float | None = option(None, help="Rate of q and k; none: std, else gamma.")
    gamma_vo: float | None = option(None, help="Rate of v and o; none: std, else gamma.")
    gamma_mlp: float | None = option(None, help="Rate of the MLP; none: std, else gamma.")
    gamma_unembed: float | None = option(None, help="Rate of the unembedding; none: std, else gamma.")
    gain: float = option(1.0, help="Factor of every initial std.", min=0.0)
    scale_residual: bool = option(False, help="Divide the initial o and down by sqrt(2 layers).")

    def head_width(self) -> int:
        """Return the width of a head; raises OptionError for shapes that cannot be built."""
        if self.head_dim is None and self.d_model % self.heads:
            raise OptionError(f"d_model {self.d_model} is not a multiple of heads {self.heads}. Set head_dim.")
        width = self.head_dim or self.d_model // self.heads
        if width * self.heads != self.d_model and not (self.use_v and self.use_o):
            raise OptionError(
                f"Without v or o, heads * head_dim must be d_model {self.d_model}. Got {width * self.heads}."
            )
        if self.positions == "rotary" and width % 2:
            raise OptionError(f"Rotary positions need an even head_dim. Got {width} instead.")
        return width

    def sizes(self) -> tuple[int, int]:
        """Return vocabulary and context; raises OptionError while either is unknown."""
        if self.vocabulary is None or self.context is None:
            raise OptionError("transformer: vocabulary and context must be set to build the model.")
        return self.vocabulary, self.context


def rotate(x: Tensor, start: int = 0) -> Tensor:
    """Return `x` [..., T, d] with each pair (x_i, x_{i + d/2}) turned by angle t * 10000^(-2i/d) (RoPE, 2104.09864).

    Positions t count from `start`.
    """
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half, dtype=x.dtype, device=x.device) / half)
    t = torch.arange(start, start + x.shape[-2], dtype=x.dtype, device=x.device)
    angles = t[:, None] * rates  # [T, d/2]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], dim=-1)


def attend(scores: Tensor, prior: Tensor, kind: str) -> Tensor:
    """Return attention weights [B, h, T, T] whose rows sum to 1, from scores and log weights of the keys.

    "linear" is softmax(prior + scores) to first order in the scores: p (1 + s - <s>_p), p = softmax(prior).
    """
    if kind == "softmax":
        return torch.softmax(prior + scores, dim=-1)
    p = torch.softmax(prior.expand_as(scores), dim=-1)
    return p * (1 + scores - (p * scores).sum(-1, keepdim=True))


class Attention(nn.Module):
    """Queries at the last Q positions of x [B, T, d] to [B, Q, d] and the attention maps [B, h, Q, T].

    `prior` [Q, T] is the log weight of each key for each query; [B or 1, h or 1, Q, T] tells examples and heads apart.
    """

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.kind, self.heads, self.rotary = c.attention, c.heads, c.positions == "rotary"
        width = c.head_width()
        self.scale = width**-0.5 if c.scaled else 1.0
        self.norm = norm(c)
        self.q = nn.Linear(c.d_model, c.heads * width, bias=c.bias)
        self.k = nn.Linear(c.d_model, c.heads * width, bias=c.bias)
        self.v = nn.Linear(c.d_model, c.heads * width, bias=c.bias) if c.use_v else nn.Identity()
        self.o = nn.Linear(c.heads * width, c.d_model, bias=c.bias) if c.use_o else nn.Identity()

    def split(self, x: Tensor) -> Tensor:
        """Return [B, T, h * w] as [B, h, T, w]."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        start = x.shape[1] - prior.shape[-2]
        q, k, v = self.split(self.q(x[:, start:])), self.split(self.k(x)), self.split(self.v(x))
        if self.rotary:
            q, k = rotate(q, start), rotate(k)
        maps = attend(self.scale * q @ k.transpose(-1, -2), prior, self.kind)  # [B, h, Q, T]
        return self.o((maps @ v).transpose(1, 2).flatten(-2)), maps


class MLP(nn.Module):
    """[B, T, d] to [B, T, d] through one hidden layer."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.norm = norm(c)
        self.up = nn.Linear(c.d_model, c.d_ff, bias=c.bias)
        self.activation = ACTIVATIONS[c.activation]
        self.down = nn.Linear(c.d_ff, c.d_model, bias=c.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.activation(self.up(x))  # [B, T, d_ff]
        out: Tensor = self.down(hidden)
        return out


def norm(c: Config) -> nn.Module:
    """Return a LayerNorm, or nothing when the configuration has none."""
    return nn.Identity() if c.norm == "none" else nn.LayerNorm(c.d_model)


class Block(nn.Module):
    """Attention, then the MLP if there is one."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.pre, self.residual = c.norm == "pre", c.residual
        self.attn = Attention(c)
        self.mlp = MLP(c) if c.d_ff else None

    def join(self, x: Tensor, y: Tensor, norm: nn.Module) -> Tensor:
        """Return sublayer output `y` joined to its input `x`."""
        y = x + y if self.residual else y
        return y if self.pre else norm(y)

    def forward(self, x: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        y, maps = self.attn(self.attn.norm(x) if self.pre else x, prior)
        x = self.join(x[:, -prior.shape[-2] :], y, self.attn.norm)
        if self.mlp is not None:
            x = self.join(x, self.mlp(self.mlp.norm(x) if self.pre else x), self.mlp.norm)
        return x, maps


class Model(nn.Module):
    """Tokens [B, T] to Activations; `key_log_weight` [T] is added to all scores of a key.

    With `last`, the last block and the unembedding run at the last position only and logits are [B, 1, v]. Behind
    padding a sequence is what it is without: positions count from its first token, and no other looks at the padding.
    """

    def __init__(self, c: Config) -> None:
        super().__init__()
        vocabulary, context = c.sizes()
        self.causal, self.padding = c.causal, c.padding
        self.embed = nn.Embedding(vocabulary, c.d_model)
        self.position = nn.Embedding(context, c.d_model) if c.positions == "learned" else None
        self.layers = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = norm(c) if c.norm == "pre" else nn.Identity()
        self.unembed = nn.Linear(c.d_model, vocabulary, bias=False)
        if c.tied:
            self.unembed.weight = self.embed.weight

    def forward(
        self, tokens: Tensor, key_log_weight: Tensor | None = None, *, record: bool = False, last: bool = False
    ) -> Activations:
        x = self.embed(tokens)  # [B, T, d]
        if self.position is not None:
            x = x + self.position.weight[self.places(tokens)]
        prior = self.prior(x, key_log_weight)
        if self.padding is not None:
            prior = prior + OVERLOOKED * (tokens == self.padding)[:, None, None]  # [B, 1, T, T]
        hidden, attention = [x], []
        for i, block in enumerate(self.layers, start=1):
            x, maps = block(x, prior[..., -1:, :] if last and i == len(self.layers) else prior)
            if record:
                hidden.append(x)
                attention.append(maps)
        x = x[:, -1:] if last else x
        return Activations(self.unembed(self.norm(x)), tuple(hidden) if record else (), tuple(attention))

    def places(self, tokens: Tensor) -> Tensor | slice:
        """Return where each token stands, [B, T], or for all sequences alike."""
        if self.padding is None:
            return slice(tokens.shape[1])
        since = torch.arange(tokens.shape[1], device=tokens.device)
        return (since - (tokens == self.padding).sum(1, keepdim=True)).clamp(min=0)

    def prior(self, x: Tensor, key_log_weight: Tensor | None) -> Tensor:
        """Return the log weight of each key for each query, [T, T]: -inf where it may not look."""
        length = x.shape[1]
        prior = x.new_zeros(length, length)
        if key_log_weight is not None:
            prior = prior + key_log_weight
        if self.causal:
            future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            prior = prior.masked_fill(future, -torch.inf)
        return prior


def about_last(targets: Tensor) -> bool:
    """Return whether targets lack the T axis, and so are about the last position only."""
    return targets.dim() == (2 if targets.is_floating_point() else 1)


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Return the weighted cross entropy in nats of logits [B, T, v].

    Targets are token ids [B, T] or distributions [B, T, v]; without the T axis they are about the last position.
    `weights` has the shape of the positions and sums to 1; without it all positions count alike.
    """
    targets = batch["targets"]
    soft = targets.is_floating_point()
    if about_last(targets):
        logits = logits[:, -1]
    log_p = logits.log_softmax(-1)
    # Ids at positions that are not scored may be negative.
    picked = (targets * log_p).sum(-1) if soft else log_p.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    weights = batch.get("weights")
    return -(picked.mean() if weights is None else (weights * picked).sum())


SUBLAYERS = ("attn.q", "attn.k", "attn.v", "attn.o", "attn.norm", "mlp.up", "mlp.down", "mlp.norm")
MODULES = {"embed": "embed", "position": "embed.position", "norm": "norm", "unembed": "unembed"}
MODULES |= {name: name for name in (f"layers.{{i}}.{part}" for part in SUBLAYERS)}
GROUPS = {
    "embed|position": "embed",
    r".*\.[qk]": "qk",
    r".*\.[vo]": "vo",
    r".*\.(up|down)": "mlp",
    "unembed": "unembed",
}


class Transformer(TrainedFamily):
    """Encoder or decoder Transformers on token sequences."""

    name = "transformer"
    Config: ClassVar[type[Options]] = Config
    Model: ClassVar[type[nn.Module]] = Model
    table = RoleTable(
        rules=rules(MODULES),
        tied=(("unembed.weight", "embed.weight"),),
        config={
            "n_layers": "layers",
            "n_heads": "heads",
            "n_kv_heads": "heads",
            "head_dim": "head_dim",
            "d_model": "d_model",
        },
    )

    @classmethod
    def init(cls, module: nn.Module, config: Mapping[str, Any], generator: torch.Generator) -> None:
        """Draw every matrix from N(0, std^2), std = d_in^-gamma of its group; gains are 1 and biases 0.

        The draws are float64 whatever the model is, so that runs of either precision start alike.
        """
        c = Config(**config)
        with torch.no_grad():
            for name, p in module.named_parameters():
                if p.dim() < 2:
                    p.fill_(float(name.endswith("weight")))
                else:
                    p.copy_(
                        torch.randn(p.shape, generator=generator, dtype=torch.float64) * spread(c, name, p.shape[1])
                    )

    @classmethod
    def forward(cls, module: Any, batch: Batch, *, record: bool = False) -> Activations:
        """Run the model on `tokens` [B, T]; `module` needs only be callable like `Model`."""
        shown: Activations = module(batch["tokens"], batch.get("key_log_weight"), record=record)
        return shown

    @classmethod
    def scored(cls, module: Any, batch: Batch) -> Tensor:
        """Return the logits that the loss needs: [B, T, v], or [B, 1, v] for targets about the last position."""
        last = about_last(batch["targets"])
        shown: Activations = module(batch["tokens"], batch.get("key_log_weight"), last=last)
        return shown.logits

    @classmethod
    def loss(cls, module: Any, batch: Batch) -> Tensor:
        """Return the cross entropy in nats, see `cross_entropy`."""
        return cross_entropy(cls.scored(module, batch), batch)


def spread(c: Config, name: str, d_in: int) -> float:
    """Return the initial std of a matrix: `gain` multiplies that of its group, `scale_residual` divides o and down."""
    factor = c.gain
    if c.scale_residual and name.endswith((".o.weight", ".down.weight")):
        factor /= math.sqrt(2 * c.layers)
    return factor * group_std(c, GROUPS, name, d_in)


@hookimpl
def ckpt_families() -> list[type[TrainedFamily]]:
    """Provide the family `transformer`."""
    return [Transformer]
