"""Task `memory_reasoning`: facts to memorize beside sums to work out, from arXiv 2502.04375.

    (z, a, b)   a, b memory anchors       a label drawn once and for all for z and the pair, in either order
    (z, a, b)   a, b reasoning anchors    z + a + b

Tokens are whole numbers: memory anchors 1 to `anchors`, reasoning anchors the `anchors` after them, then the keys z.
Labels of memory are keys drawn uniformly. One pair of reasoning anchors is never trained, in neither order; sums that
fall on no key are tokens of their own. Both kinds have the same number of triples, but for that pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ckpt_tools import OptionError, option

from . import Batch, Task, take

LENGTH = 3
MEMORY, REASONING, HELD_OUT = range(3)


class MemoryReasoning(Task):
    """Learn random labels and sums at the same time."""

    name = "memory_reasoning"
    splits: ClassVar[tuple[str, ...]] = ("memory", "reasoning", "held_out")
    anchors: int = option(10, help="Anchors of each kind.", min=2)
    keys: int = option(100, help="Number of keys.", min=2)
    held_out: tuple[int, ...] = option((11, 13), help="Two reasoning anchors that are never trained together.")
    probes: int = option(256, help="Examples of the probe batch, for analyzers.", min=16)
    target_seed: int = option(0, help="Decides the labels of memory.", min=0)

    context = LENGTH

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        least, most = self.anchors + 1, 2 * self.anchors
        if len(self.held_out) != 2 or not all(least <= a <= most for a in self.held_out):
            raise OptionError(
                f"memory_reasoning: held_out must be two of the reasoning anchors {least} to {most}. "
                f"Got {','.join(map(str, self.held_out))} instead."
            )

    @property
    def vocabulary(self) -> int:  # type: ignore[override]
        """Number of tokens; the largest is the largest sum."""
        return 6 * self.anchors + self.keys + 1

    def defaults(self) -> Mapping[str, Any]:
        """Return the miniature for the Emb-MLP: seconds of training."""
        return {"d_model": 200, "d_ff": 200, "activation": "tanh", "batch": 2000, "lr": 2e-3, "steps": 450}

    @cached_property
    def labels(self) -> Tensor:
        """The labels of memory [keys, anchors, anchors], alike in either order of the anchors."""
        draw = torch.Generator().manual_seed(self.target_seed)
        first = 2 * self.anchors + 1
        labels = torch.randint(first, first + self.keys, (self.keys, self.anchors, self.anchors), generator=draw)
        upper = labels.triu()
        return upper + upper.transpose(1, 2).tril(-1)

    @cached_property
    def triples(self) -> dict[str, Tensor]:
        """Every triple: `tokens` [B, 3], `targets` and `split` [B]."""
        z, a, b = torch.cartesian_prod(
            torch.arange(self.keys), torch.arange(self.anchors), torch.arange(self.anchors)
        ).unbind(1)
        key = z + 2 * self.anchors + 1
        memory = torch.stack([key, a + 1, b + 1], dim=1)
        reasoning = memory + torch.tensor([0, self.anchors, self.anchors])
        targets = torch.cat([self.labels[z, a, b], reasoning.sum(1)])
        pair = reasoning[:, 1:].sort(dim=1).values
        unseen = (pair == torch.tensor(sorted(self.held_out))).all(1)
        split = torch.cat([torch.full_like(z, MEMORY), torch.where(unseen, HELD_OUT, REASONING)])
        return {"tokens": torch.cat([memory, reasoning]), "targets": targets, "split": split}

    def examples(self, generator: torch.Generator) -> Batch:
        """Return all trained triples."""
        trained = self.triples["split"] != HELD_OUT
        return {name: self.triples[name][trained] for name in ("tokens", "targets")}

    def evaluation(self, generator: torch.Generator) -> Batch:
        """Return every triple with its split."""
        return self.triples

    def probe(self, examples: Batch | None, generator: torch.Generator) -> Batch:
        """Return as many triples of each split, with `split`; the loss is of the trained ones alone."""
        rows = [(self.triples["split"] == i).nonzero().squeeze(1) for i in range(len(self.splits))]
        size = min(self.probes // len(rows), *map(len, rows))
        chosen = torch.cat([some[torch.randperm(len(some), generator=generator)[:size]] for some in rows])
        batch = take({name: self.triples[name] for name in ("tokens", "targets")}, chosen)
        split = self.triples["split"][chosen]
        trained = (split != HELD_OUT).double()
        return {**batch, "split": split, "weights": trained / trained.sum()}

    def metrics(self, logits: Tensor, batch: Batch) -> dict[str, float]:
        """Return the accuracy of each split and its loss in nats, `memory_loss` and so on."""
        losses = F.cross_entropy(logits[:, -1], batch["targets"], reduction="none").double()
        right = (logits[:, -1].argmax(-1) == batch["targets"]).double()
        found: dict[str, float] = {}
        for i, name in enumerate(self.splits):
            rows = batch["split"] == i
            found |= {name: right[rows].mean().item(), f"{name}_loss": losses[rows].mean().item()}
        return found
