"""One attention layer and an MLP on sequences of vectors: family `attn_mlp`, from arXiv 2510.06954.

    f(X) = tanh(A X W_V W1) W2        A = softmax(x_s W_Q W_K^T X^T / sqrt(d))

with x_s the last vector of the sequence, the only one that asks. There is neither residual nor norm, and the answer is
one number. The loss for labels y of -1 and 1 is the mean of exp(-y f). Weights start as N(0, std^2), std = d_in^-gamma.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ckpt_tools import Activations, OptionError, Options, RoleTable, Rule, hookimpl, option

from .family import TrainedFamily

Batch = Mapping[str, Tensor]


class Config(Options):
    """The shape of the model and how its weights start."""

    name = "attn_mlp"
    d_ff: int | None = option(None, help="Width of the hidden layer; none: that of the vectors.", min=1)
    inputs: int | None = option(None, help="Length of a vector; none: what the task gives.", min=1)
    gamma: float = option(0.5, help="Initialization rate: std = d_in^-gamma.")
    std: float | None = option(None, help="One initial std for all matrices, instead of gamma.", min=0.0)


class Attention(nn.Module):
    """Vectors [B, s, d] to what the last one sees of them [B, 1, d], and its attention [B, 1, 1, s]."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.q = nn.Linear(d, d, bias=False)
        self.k = nn.Linear(d, d, bias=False)
        self.v = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.q(x[:, -1:]) @ self.k(x).transpose(1, 2) / x.shape[-1] ** 0.5
        weights = scores.softmax(-1)  # [B, 1, s]
        return weights @ self.v(x), weights[:, None]


class Model(nn.Module):
    """Vectors [B, s, d] to Activations: logits [B, 1, 1]; `hidden` are the attention's output and the hidden layer."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        if c.inputs is None:
            raise OptionError("attn_mlp: inputs must be set to build the model.")
        self.attn = Attention(c.inputs)
        self.up = nn.Linear(c.inputs, c.d_ff or c.inputs, bias=False)
        self.down = nn.Linear(c.d_ff or c.inputs, 1, bias=False)

    def forward(self, inputs: Tensor, *, record: bool = False) -> Activations:
        x, maps = self.attn(inputs)
        h = torch.tanh(self.up(x))
        return Activations(self.down(h), (x, h) if record else (), (maps,) if record else ())


class AttnMLP(TrainedFamily):
    """Attention of the last vector, then an MLP with one output."""

    name = "attn_mlp"
    reads = "sequences"
    Config: ClassVar[type[Options]] = Config
    Model: ClassVar[type[nn.Module]] = Model
    table = RoleTable(
        rules=(
            *(Rule(f"attn.{part}.weight", (f"layers.0.attn.{part}",)) for part in "qkv"),
            Rule("up.weight", ("layers.0.mlp.up",)),
            Rule("down.weight", ("layers.0.mlp.down",)),
        ),
    )

    @classmethod
    def init(cls, module: nn.Module, config: Mapping[str, Any], generator: torch.Generator) -> None:
        """Draw every matrix from N(0, std^2), in float64 whatever the model is."""
        c = Config(**config)
        with torch.no_grad():
            for p in module.parameters():
                spread = p.shape[1] ** -c.gamma if c.std is None else c.std
                p.copy_(spread * torch.randn(p.shape, generator=generator, dtype=torch.float64))

    @classmethod
    def loss(cls, module: Any, batch: Batch) -> Tensor:
        """Return the mean of exp(-y f) over the sequences, or their sum weighted by `weights`."""
        each = (-batch["targets"] * cls.forward(module, batch).logits[:, 0, 0]).exp()
        return (batch["weights"] * each).sum() if "weights" in batch else each.mean()


@hookimpl
def ckpt_families() -> list[type[TrainedFamily]]:
    """Provide the family `attn_mlp`."""
    return [AttnMLP]
