"""An MLP over a sum of embeddings: family `emb_mlp`, from "Identity Bridge" (arXiv 2509.24653) and arXiv 2502.04375.

    G(X) = s(sum_t e_{x_t} W1) W2

The order of tokens does not count, and a padding token counts for nothing. With activation `linear` the model is the
matrix product of the papers' theory. Weights start as N(0, std^2), std = d_in^-gamma, per group if wanted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ckpt_tools import Activations, OptionError, Options, RoleTable, Rule, hookimpl, option

from .family import TrainedFamily, group_std
from .mlp import ACTIVATIONS
from .transformer import about_last, cross_entropy

Batch = Mapping[str, Tensor]


class Config(Options):
    """The shape of the model and how its weights start."""

    name = "emb_mlp"
    d_model: int = option(64, help="Width of the embeddings.", min=1)
    d_ff: int = option(64, help="Width of the hidden layer.", min=1)
    activation: str = option("linear", help="Nonlinearity of the hidden layer.", choices=tuple(ACTIVATIONS))
    padding: int | None = option(None, help="Token that counts for nothing; none: what the task says.", min=0)
    vocabulary: int | None = option(None, help="Number of tokens; none: what the task needs.", min=1)
    gamma: float = option(0.5, help="Initialization rate: std = d_in^-gamma.")
    std: float | None = option(None, help="One initial std for all matrices, instead of gamma.", min=0.0)
    gamma_embed: float | None = option(None, help="Rate of the embedding; none: std, else gamma.")
    gamma_mlp: float | None = option(None, help="Rate of W1; none: std, else gamma.")
    gamma_unembed: float | None = option(None, help="Rate of W2; none: std, else gamma.")


class MLP(nn.Module):
    """[B, d] to [B, d_ff], W1 and the nonlinearity."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.up = nn.Linear(c.d_model, c.d_ff, bias=False)
        self.activation = ACTIVATIONS[c.activation]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.up(x))
        return out


class Model(nn.Module):
    """Tokens [B, T] to Activations: logits [B, 1, v]; `hidden` are the sum of embeddings and the hidden layer."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        if c.vocabulary is None:
            raise OptionError("emb_mlp: vocabulary must be set to build the model.")
        self.padding = c.padding
        self.embed = nn.Embedding(c.vocabulary, c.d_model)
        self.mlp = MLP(c)
        self.unembed = nn.Linear(c.d_ff, c.vocabulary, bias=False)

    def forward(self, tokens: Tensor, *, record: bool = False) -> Activations:
        e = self.embed(tokens)  # [B, T, d]
        if self.padding is not None:
            e = e * (tokens != self.padding)[..., None]
        x = e.sum(1, keepdim=True)
        h = self.mlp(x)
        return Activations(self.unembed(h), (x, h) if record else ())


GROUPS = {"embed": "embed", r"mlp\.up": "mlp", "unembed": "unembed"}


class EmbMLP(TrainedFamily):
    """An MLP over the sum of a sequence's embeddings."""

    name = "emb_mlp"
    Config: ClassVar[type[Options]] = Config
    Model: ClassVar[type[nn.Module]] = Model
    table = RoleTable(
        rules=(
            Rule("embed.weight", ("embed",)),
            Rule("mlp.up.weight", ("layers.0.mlp.up",)),
            Rule("unembed.weight", ("unembed",)),
        ),
        config={"d_model": "d_model"},
    )

    @classmethod
    def init(cls, module: nn.Module, config: Mapping[str, Any], generator: torch.Generator) -> None:
        """Draw every matrix from N(0, std^2) of its group, in float64 whatever the model is."""
        c = Config(**config)
        with torch.no_grad():
            for name, p in module.named_parameters():
                draw = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                p.copy_(group_std(c, GROUPS, name, p.shape[1]) * draw)

    @classmethod
    def forward(cls, module: Any, batch: Batch, *, record: bool = False) -> Activations:
        """Run the model on `tokens` [B, T]; `module` needs only be callable like `Model`."""
        if "key_log_weight" in batch or not about_last(batch.get("targets", batch["tokens"][:, 0])):
            raise OptionError("emb_mlp gives one answer per sequence, and the task asks for one per token.")
        return super().forward(module, batch, record=record)

    @classmethod
    def loss(cls, module: Any, batch: Batch) -> Tensor:
        """Return the cross entropy in nats, see `transformer.cross_entropy`."""
        return cross_entropy(cls.scored(module, batch), batch)


@hookimpl
def ckpt_families() -> list[type[TrainedFamily]]:
    """Provide the family `emb_mlp`."""
    return [EmbMLP]
