"""Mamba with every part that the failure analysis takes out as a switch: family `mamba`.

A block maps the stream to a path x and a gate z, lets x pass a short causal convolution with a nonlinearity, and then a
selective state space (see `scan`), whose steps dt and vectors B and C depend on the token:

    block 1 (arXiv 2312.00752): dt, B, C are read off x behind the convolution; one rate A for each channel and state
    block 2 (arXiv 2405.21060): dt, B, C come from the stream, B and C pass the convolution; one rate A for each head

"Achilles' Heel of Mamba" (arXiv 2509.17514) finds the cause of failures in the nonlinear convolution, which mixes
tokens before the state space sees them, and compares it with kernels of ones, no nonlinearity, a residual past the
convolution, positional encoding and no gate. Initialization is that of arXiv 2405.05409: std = d_in^-gamma, per group
of weights if wanted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckpt_tools import Activations, OptionError, Options, RoleTable, Rule, hookimpl, option

from .family import TrainedFamily, group_std, rules
from .scan import selective_scan, ssd
from .transformer import about_last, cross_entropy

Batch = Mapping[str, Tensor]

EPSILON = 1e-5


class Config(Options):
    """The shape of the model, its switches, and how its weights start."""

    name = "mamba"
    block: int = option(2, help="Mamba-1 or Mamba-2 blocks.", choices=(1, 2))
    layers: int = option(2, help="Number of blocks.", min=0)
    d_model: int = option(64, help="Width of the residual stream.", min=1)
    d_state: int = option(64, help="States per channel.", min=1)
    expand: int = option(2, help="Width inside a block, as a multiple of d_model.", min=1)
    heads: int = option(1, help="Heads, which share a rate (block 2).", min=1)
    groups: int = option(1, help="Groups of heads, which share B and C (block 2).", min=1)
    dt_rank: int | None = option(None, help="Rank of the map to dt (block 1); none: d_model / 16, rounded up.", min=1)
    conv: str = option(
        "standard", help="Kernel: learned, all ones, or no convolution.", choices=("standard", "ones", "none")
    )
    conv_width: int = option(4, help="Positions under the kernel.", min=1)
    conv_bias: bool = option(True, help="Give the convolution a bias.")
    conv_activation: bool = option(True, help="Have the nonlinearity (SiLU) after the convolution.")
    conv_residual: bool = option(False, help="Add the convolution's input to the state space's input.")
    gate: bool = option(True, help="Multiply the state space's output by SiLU(z).")
    out_norm: bool = option(True, help="Have an RMSNorm behind the gate (block 2).")
    norm: str = option("rms", help="Norm before each block and at the end.", choices=("rms", "layer", "none"))
    positions: str = option("none", help="How positions are told apart.", choices=("none", "learned"))
    bias: bool = option(False, help="Give the maps into and out of a block a bias.")
    tied: bool = option(False, help="Use the embedding as unembedding.")
    vocabulary: int | None = option(None, help="Number of tokens; none: what the task needs.", min=1)
    context: int | None = option(None, help="Longest sequence; none: what the task needs.", min=1)
    gamma: float = option(0.5, help="Initialization rate: std = d_in^-gamma.")
    std: float | None = option(None, help="One initial std for all matrices, instead of gamma.", min=0.0)
    gamma_embed: float | None = option(None, help="Rate of embedding and positions; none: std, else gamma.")
    gamma_in: float | None = option(None, help="Rate of the maps to x, z, B, C, dt; none: std, else gamma.")
    gamma_conv: float | None = option(None, help="Rate of kernels, d_in = conv_width; none: std, else gamma.")
    gamma_out: float | None = option(None, help="Rate of the map out of a block; none: std, else gamma.")
    gamma_unembed: float | None = option(None, help="Rate of the unembedding; none: std, else gamma.")
    dt_min: float = option(1e-3, help="Least initial dt; log-uniform up to dt_max.", min=1e-9)
    dt_max: float = option(0.1, help="Largest initial dt.", min=1e-9)

    def widths(self) -> tuple[int, int]:
        """Return the widths inside a block and of a head; raises OptionError for shapes that cannot be built."""
        inner = self.expand * self.d_model
        if self.dt_min > self.dt_max:
            raise OptionError(f"mamba: dt_min {self.dt_min} exceeds dt_max {self.dt_max}.")
        for name, whole, share in (
            ("heads", "expand * d_model", inner % self.heads),
            ("groups", "heads", self.heads % self.groups),
        ):
            if share:
                raise OptionError(
                    f"mamba: {name} {getattr(self, name)} does not divide {whole}. Choose another number."
                )
        return inner, inner // self.heads

    def sizes(self) -> tuple[int, int]:
        """Return vocabulary and context; raises OptionError while either is unknown."""
        if self.vocabulary is None or self.context is None:
            raise OptionError("mamba: vocabulary and context must be set to build the model.")
        return self.vocabulary, self.context


class RMSNorm(nn.Module):
    """x / rms(x) over each of `groups` equal parts of the last axis, times a gain (arXiv 1910.07467)."""

    def __init__(self, width: int, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.reshape(*x.shape[:-1], self.groups, -1)
        parts = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + EPSILON)
        return self.weight * parts.reshape(x.shape)


def norm(c: Config) -> nn.Module:
    """Return the norm of the stream that the configuration asks for."""
    if c.norm == "rms":
        return RMSNorm(c.d_model)
    return nn.LayerNorm(c.d_model, eps=EPSILON) if c.norm == "layer" else nn.Identity()


class Convolution(nn.Module):
    """[B, T, channels] to the same: each channel's causal convolution, the nonlinearity, and the way past both."""

    def __init__(self, c: Config, channels: int) -> None:
        super().__init__()
        self.kind, self.width = c.conv, c.conv_width
        self.activation, self.residual = c.conv_activation, c.conv_residual
        self.weight = nn.Parameter(torch.ones(channels, c.conv_width)) if c.conv == "standard" else None
        self.bias = nn.Parameter(torch.zeros(channels)) if c.conv != "none" and c.conv_bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.kind == "none" else self.mix(x)
        y = F.silu(y) if self.activation else y
        return x + y if self.residual else y

    def mix(self, x: Tensor) -> Tensor:
        """Return sum_k w_k x_{t - width + 1 + k} + bias, x zero before the start."""
        past, length = F.pad(x, (0, 0, self.width - 1, 0)), x.shape[1]
        kernel = past.new_ones(x.shape[-1], self.width) if self.weight is None else self.weight
        y = past.new_zeros(()) if self.bias is None else self.bias
        for k in range(self.width):
            y = torch.addcmul(y, past[:, k : k + length], kernel[:, k])
        return y


class Mamba1(nn.Module):
    """[B, T, d] to [B, T, d] through a state space with a rate for each channel and state."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        inner, _ = c.widths()
        rank = c.dt_rank or math.ceil(c.d_model / 16)
        self.parts = (rank, c.d_state, c.d_state)
        self.norm = norm(c)
        self.in_x = nn.Linear(c.d_model, inner, bias=c.bias)
        self.in_z = nn.Linear(c.d_model, inner, bias=c.bias) if c.gate else None
        self.conv = Convolution(c, inner)
        self.x = nn.Linear(inner, sum(self.parts), bias=False)
        self.dt = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.zeros(inner, c.d_state))
        self.D = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, c.d_model, bias=c.bias)

    def forward(self, u: Tensor) -> Tensor:
        x = self.conv(self.in_x(u))  # [B, T, inner]
        dt, B, C = self.x(x).split(self.parts, dim=-1)
        y = selective_scan(x, F.softplus(self.dt(dt)), -self.A_log.exp(), B, C, self.D)
        y = y if self.in_z is None else y * F.silu(self.in_z(u))
        out: Tensor = self.out(y)
        return out


class Mamba2(nn.Module):
    """[B, T, d] to [B, T, d] through a state space with one rate per head."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        inner, _ = c.widths()
        states = c.groups * c.d_state
        self.heads, self.groups, self.parts = c.heads, c.groups, (inner, states, states)
        self.norm = norm(c)
        self.in_x = nn.Linear(c.d_model, inner, bias=c.bias)
        self.in_z = nn.Linear(c.d_model, inner, bias=c.bias) if c.gate else None
        self.in_B = nn.Linear(c.d_model, states, bias=c.bias)
        self.in_C = nn.Linear(c.d_model, states, bias=c.bias)
        self.in_dt = nn.Linear(c.d_model, c.heads, bias=c.bias)
        self.conv = Convolution(c, sum(self.parts))
        self.dt_bias = nn.Parameter(torch.zeros(c.heads))
        self.A_log = nn.Parameter(torch.zeros(c.heads))
        self.D = nn.Parameter(torch.ones(c.heads))
        self.out_norm = RMSNorm(inner, c.groups) if c.out_norm else nn.Identity()
        self.out = nn.Linear(inner, c.d_model, bias=c.bias)

    def forward(self, u: Tensor) -> Tensor:
        x, B, C = self.conv(jointly(u, self.in_x, self.in_B, self.in_C)).split(self.parts, dim=-1)
        dt = F.softplus(self.in_dt(u) + self.dt_bias)  # [B, T, H]
        y = ssd(cut(x, self.heads), dt, -self.A_log.exp(), cut(B, self.groups), cut(C, self.groups), self.D)
        y = y.flatten(-2)  # [B, T, inner]
        y = y if self.in_z is None else y * F.silu(self.in_z(u))
        out: Tensor = self.out(self.out_norm(y))
        return out


def jointly(u: Tensor, *maps: nn.Linear) -> Tensor:
    """Return the outputs of several maps of `u` side by side, in one product."""
    weight = torch.cat([m.weight for m in maps])
    bias = None if maps[0].bias is None else torch.cat([m.bias for m in maps])
    return F.linear(u, weight, bias)


def cut(x: Tensor, parts: int) -> Tensor:
    """Return [B, T, parts * w] as [B, T, parts, w]."""
    return x.reshape(*x.shape[:2], parts, -1)


class Block(nn.Module):
    """A mixer on the normed stream, added to the stream."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.ssm = Mamba1(c) if c.block == 1 else Mamba2(c)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.ssm(self.ssm.norm(x))
        return x + y


class Model(nn.Module):
    """Tokens [B, T] to Activations; with `last`, logits are those of the last position, [B, 1, v]."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        vocabulary, context = c.sizes()
        self.embed = nn.Embedding(vocabulary, c.d_model)
        self.position = nn.Embedding(context, c.d_model) if c.positions == "learned" else None
        self.layers = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = norm(c)
        self.unembed = nn.Linear(c.d_model, vocabulary, bias=False)
        if c.tied:
            self.unembed.weight = self.embed.weight

    def forward(self, tokens: Tensor, *, record: bool = False, last: bool = False) -> Activations:
        x = self.embed(tokens)  # [B, T, d]
        if self.position is not None:
            x = x + self.position.weight[: tokens.shape[1]]
        hidden = [x]
        for block in self.layers:
            x = block(x)
            hidden.append(x)
        x = x[:, -1:] if last else x
        return Activations(self.unembed(self.norm(x)), tuple(hidden) if record else ())


MODULES = {"embed": "embed", "position": "embed.position", "norm": "norm", "unembed": "unembed"}
MODULES |= {f"layers.{{i}}.ssm.in_{part}": f"layers.{{i}}.ssm.in.{part}" for part in ("x", "z", "B", "C", "dt")}
MODULES |= {name: name for name in (f"layers.{{i}}.ssm.{p}" for p in ("conv", "x", "dt", "out", "norm", "out_norm"))}
GROUPS = {
    "embed|position": "embed",
    r".*\.(in_\w+|x|dt)": "in",
    r".*\.conv": "conv",
    r".*\.out": "out",
    "unembed": "unembed",
}


class Mamba(TrainedFamily):
    """Selective state space models on token sequences."""

    name = "mamba"
    Config: ClassVar[type[Options]] = Config
    Model: ClassVar[type[nn.Module]] = Model
    table = RoleTable(
        rules=(
            *rules(MODULES),
            Rule("layers.{i}.ssm.dt_bias", ("layers.{i}.ssm.dt.bias",)),
            Rule("layers.{i}.ssm.A_log", ("layers.{i}.ssm.A_log",)),
            Rule("layers.{i}.ssm.D", ("layers.{i}.ssm.D",)),
        ),
        tied=(("unembed.weight", "embed.weight"),),
        config={"n_layers": "layers", "d_model": "d_model"},
    )

    @classmethod
    def init(cls, module: nn.Module, config: Mapping[str, Any], generator: torch.Generator) -> None:
        """Fill the weights; draws are float64 whatever the model is, so that runs of either precision start alike.

        Matrices and kernels are N(0, std^2), std = d_in^-gamma of their group; gains and D are 1, biases 0. A is
        -1, -2, ... over the states of a channel or the heads, and softplus(bias of dt) is log-uniform.
        """
        c = Config(**config)
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.copy_(initial(c, name, p.shape, generator))

    @classmethod
    def scored(cls, module: Any, batch: Batch) -> Tensor:
        """Return the logits that the loss needs: [B, T, v], or [B, 1, v] for targets about the last position."""
        shown: Activations = module(batch["tokens"], last=about_last(batch["targets"]))
        return shown.logits

    @classmethod
    def loss(cls, module: Any, batch: Batch) -> Tensor:
        """Return the cross entropy in nats, see `transformer.cross_entropy`."""
        return cross_entropy(cls.scored(module, batch), batch)


def initial(c: Config, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return the initial values of a parameter, float64."""
    if name.endswith("A_log"):
        return torch.arange(1, shape[-1] + 1, dtype=torch.float64).log().expand(shape)
    if name.endswith(("dt_bias", "dt.bias")) and not name.endswith("in_dt.bias"):
        low, high = math.log(c.dt_min), math.log(c.dt_max)
        dt = torch.exp(low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64))
        return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus
    if len(shape) < 2:
        return torch.full(shape, float(not name.endswith("bias")), dtype=torch.float64)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * group_std(c, GROUPS, name, shape[1])


@hookimpl
def ckpt_families() -> list[type[TrainedFamily]]:
    """Provide the family `mamba`."""
    return [Mamba]
