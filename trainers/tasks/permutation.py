"""Task `permutation`: two permutations in a row, the anchors of arXiv 2605.04396 for the question of arXiv 2501.08537.

    (k, a, b)  ->  p_b(p_a(k))

Each anchor is a random permutation of the keys, so that nothing but composing the two leads to the answer of a pair of
anchors that was never shown. `shown` ordered pairs, the same for every key, are trained with all keys; the others are
the test out of distribution. Every anchor is shown first and is shown second. Token ids: keys, then anchors.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from ckpt_tools import OptionError, option

from . import Batch, Task

LENGTH = 3


class Permutation(Task):
    """Apply the permutations of two anchors to a key, one after the other."""

    name = "permutation"
    splits: ClassVar[tuple[str, ...]] = ("trained", "ood")
    keys: int = option(16, help="Number of keys.", min=2)
    anchors: int = option(8, help="Number of permutations.", min=2)
    pairs: int = option(45, help="Ordered pairs of anchors that are trained.", min=2)
    target_seed: int = option(0, help="Decides the permutations, and which pairs are trained.", min=0)

    context = LENGTH

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if not self.anchors <= self.pairs < self.anchors**2:
            raise OptionError(
                f"permutation: pairs must be from {self.anchors}, so that each anchor is seen, to "
                f"{self.anchors**2 - 1}, so that one is held out. Got {self.pairs} instead."
            )

    @property
    def vocabulary(self) -> int:  # type: ignore[override]
        """Number of tokens."""
        return self.keys + self.anchors

    def defaults(self) -> Mapping[str, Any]:
        """Return the miniature: a minute of training, for two layers."""
        return {
            "layers": 2,
            "heads": 2,
            "gain": 0.8,
            "batch": 128,
            "lr": 3e-3,
            "beta2": 0.98,
            "no_decay": ("embeddings",),
            "steps": 5000,
        }

    @cached_property
    def permutations(self) -> Tensor:
        """What each anchor makes of each key, [anchors, keys]."""
        draw = torch.Generator().manual_seed(self.target_seed)
        return torch.stack([torch.randperm(self.keys, generator=draw) for _ in range(self.anchors)])

    @cached_property
    def shown(self) -> Tensor:
        """Which ordered pairs are trained, bool [anchors, anchors]: a random matching, so that every anchor is seen at
        both places, and others at random."""
        draw = torch.Generator().manual_seed(self.target_seed * 2 + 1)
        n = self.anchors
        matching = torch.zeros(n, n)
        matching[torch.arange(n), torch.randperm(n, generator=draw)] = 1
        order = torch.argsort(torch.rand(n * n, generator=draw) - matching.flatten())
        return torch.zeros(n * n, dtype=torch.bool).scatter(0, order[: self.pairs], True).reshape(n, n)

    @cached_property
    def triples(self) -> dict[str, Tensor]:
        """Every triple: `tokens` [B, 3], `targets` and `split` [B]."""
        k, a, b = torch.cartesian_prod(
            torch.arange(self.keys), torch.arange(self.anchors), torch.arange(self.anchors)
        ).unbind(1)
        targets = self.permutations[b, self.permutations[a, k]]
        tokens = torch.stack([k, a + self.keys, b + self.keys], dim=1)
        return {"tokens": tokens, "targets": targets, "split": (~self.shown[a, b]).long()}

    def examples(self, generator: torch.Generator) -> Batch:
        """Return all trained triples."""
        trained = self.triples["split"] == 0
        return {name: self.triples[name][trained] for name in ("tokens", "targets")}

    def evaluation(self, generator: torch.Generator) -> Batch:
        """Return every triple with its split."""
        return self.triples

    def probe(self, examples: Batch | None, generator: torch.Generator) -> Batch:
        """Return every triple with its split; the loss is of the trained ones alone."""
        trained = (self.triples["split"] == 0).double()
        return {**self.triples, "weights": trained / trained.sum()}

    def metrics(self, logits: Tensor, batch: Batch) -> dict[str, float]:
        """Return the accuracies `trained` and `ood`, on pairs that were shown and on those that were not."""
        right = (logits[:, -1].argmax(-1) == batch["targets"]).double()
        return {name: right[batch["split"] == i].mean().item() for i, name in enumerate(self.splits)}
