"""Multilayer perceptrons and deep matrix factorization: family `mlp`.

    f(x) = W_L s(W_{L-1} ... s(W_1 x + b_1) ... + b_{L-1}) + b_L

Two layers show initial condensation (arXiv 2105.11686) and the stages of the loss (arXiv 2410.20119), three layers the
condensation of arXiv 2402.15958. With activation `linear` and no bias the product W_L ... W_1 is a matrix factorized
deeply. Weights start as N(0, std^2), std = d_in^-gamma, for each layer if wanted, and biases like their layer.

The loss is c sum_e w_e (f_e - y_e)^2 over entries e of the targets: c is the batch's `factor`, 1/2 without one; w its
`weights`, which sum to 1, all equal without any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckpt_tools import Activations, OptionError, Options, RoleTable, hookimpl, option

from .family import TrainedFamily, rules

Batch = Mapping[str, Tensor]

# The multiplicity at 0 bounds the directions that neurons condense to: 1 for tanh, 2 for xtanh.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "xtanh": lambda x: x * torch.tanh(x),
    "linear": lambda x: x,
}


class Config(Options):
    """The shape of the network and how its weights start."""

    name = "mlp"
    hidden: tuple[int, ...] = option((50, 50), help="Widths of the hidden layers.", min=1)
    activation: str = option("tanh", help="Nonlinearity of the hidden layers.", choices=tuple(ACTIVATIONS))
    bias: bool = option(False, help="Give every layer a bias.")
    inputs: int | None = option(None, help="Length of an input; none: what the task gives.", min=1)
    outputs: int | None = option(None, help="Length of an output; none: what the task needs.", min=1)
    gamma: float = option(0.5, help="Initialization rate: std = d_in^-gamma.")
    std: float | None = option(None, help="One initial std for all layers, instead of gamma.", min=0.0)
    gammas: tuple[float, ...] = option((), help="Rate of each layer, instead of std and gamma.")
    stds: tuple[float, ...] = option((), help="Std of each layer, instead of all rates.", min=0.0)

    def widths(self) -> list[int]:
        """Return the widths from input to output; raises OptionError while an end is unknown."""
        if self.inputs is None or self.outputs is None:
            raise OptionError("mlp: inputs and outputs must be set to build the network.")
        return [self.inputs, *self.hidden, self.outputs]

    def spreads(self) -> list[float]:
        """Return the initial std of each layer; raises OptionError for rates of another number of layers."""
        layers = len(self.hidden) + 1
        for name, given in (("gammas", self.gammas), ("stds", self.stds)):
            if given and len(given) != layers:
                raise OptionError(f"mlp: {name} must name one value for each of {layers} layers. Got {len(given)}.")
        if self.stds:
            return list(self.stds)
        if self.std is not None and not self.gammas:
            return [self.std] * layers
        rates = self.gammas or (self.gamma,) * layers
        return [float(d_in**-rate) for d_in, rate in zip(self.widths()[:-1], rates, strict=True)]


class Model(nn.Module):
    """Vectors [B, d_in] to Activations: `logits` are the outputs [B, 1, d_out], `hidden` what enters each layer."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        widths = c.widths()
        self.layers = nn.ModuleList(nn.Linear(d_in, d_out, bias=c.bias) for d_in, d_out in pairwise(widths))
        self.activation = ACTIVATIONS[c.activation]

    def forward(self, inputs: Tensor, *, record: bool = False) -> Activations:
        x, hidden = inputs[:, None], []
        for i, layer in enumerate(self.layers):
            x = self.activation(x) if i else x
            hidden.append(x)
            x = layer(x)
        return Activations(x, tuple(hidden) if record else ())


class MLP(TrainedFamily):
    """Multilayer perceptrons on vectors."""

    name = "mlp"
    reads = "vectors"
    Config: ClassVar[type[Options]] = Config
    Model: ClassVar[type[nn.Module]] = Model
    table = RoleTable(rules({"layers.{i}": "layers.{i}.linear"}))

    @classmethod
    def init(cls, module: nn.Module, config: Mapping[str, Any], generator: torch.Generator) -> None:
        """Draw every weight and bias from N(0, std^2) of its layer, in float64 whatever the model is."""
        spreads = Config(**config).spreads()
        with torch.no_grad():
            for name, p in module.named_parameters():
                layer = int(name.split(".")[1])
                p.copy_(spreads[layer] * torch.randn(p.shape, generator=generator, dtype=torch.float64))

    @classmethod
    def loss(cls, module: Any, batch: Batch) -> Tensor:
        """Return the squared error, see the module's docstring; half its mean over entries unless the batch differs."""
        return squared_error(cls.scored(module, batch), batch)


def squared_error(outputs: Tensor, batch: Batch) -> Tensor:
    """Return c sum_e w_e (f_e - y_e)^2 of outputs [B, 1, d_out]; see the module's docstring."""
    squares = (outputs[:, 0] - batch["targets"]).square()
    total = (batch["weights"] * squares).sum() if "weights" in batch else squares.mean()
    return batch["factor"] * total if "factor" in batch else total / 2


@hookimpl
def ckpt_families() -> list[type[TrainedFamily]]:
    """Provide the family `mlp`."""
    return [MLP]
