"""Task `next_item`: one anchor among items says what is asked of the item behind it (arXiv 2510.06954).

    57 31 [3] 44 92 20 65 81 12 9        target: 44 + (3 mod 2) = 45

Anchors are 1 to 4, items 5 to 100, and the anchor may stand anywhere but at the last two places. Evaluation is on fresh
sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ckpt_tools import option

from . import Batch, Task

ANCHORS = (1, 4)


class NextItem(Task):
    """Give the item behind the anchor, plus one for odd anchors."""

    name = "next_item"
    low: int = option(5, help="Least item.", min=5)
    high: int = option(100, help="Largest item.", min=5)
    length: int = option(10, help="Tokens per sequence.", min=3)
    tokens: int = option(201, help="Size of the vocabulary.", min=7)
    samples: int = option(0, help="Training sequences; 0: fresh ones at every step.", min=0)
    tests: int = option(1000, help="Test sequences.", min=1)

    @property
    def vocabulary(self) -> int:  # type: ignore[override]
        """Number of tokens; the answers are among them."""
        return max(self.tokens, self.high + 2)

    @property
    def context(self) -> int:  # type: ignore[override]
        """Positions per example."""
        return self.length

    def defaults(self) -> Mapping[str, Any]:
        """Return a miniature of one layer that trains queries, keys, values and MLP alone, from small weights."""
        return {
            "layers": 1,
            "heads": 1,
            "d_model": 64,
            "d_ff": 128,
            "activation": "tanh",
            "use_o": False,
            "residual": False,
            "norm": "none",
            "gamma": 1.7,
            "gamma_embed": 0.0,
            "gamma_unembed": 0.5,
            "freeze": ("embed*", "unembed"),
            "optimizer": "sgd",
            "lr": 2.0,
            "batch": 256,
            "steps": 1100,
        }

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Return `size` sequences [size, length] and their targets [size]."""
        tokens = torch.randint(self.low, self.high + 1, (size, self.length), generator=generator)
        anchors = torch.randint(ANCHORS[0], ANCHORS[1] + 1, (size,), generator=generator)
        place = torch.randint(self.length - 2, (size,), generator=generator)
        rows = torch.arange(size)
        tokens[rows, place] = anchors
        return {"tokens": tokens, "targets": tokens[rows, place + 1] + anchors % 2}

    def examples(self, generator: torch.Generator) -> Batch | None:
        """Return the training sequences, or None when every step draws its own."""
        return self.draw(self.samples, generator) if self.samples else None

    def evaluation(self, generator: torch.Generator) -> Batch:
        """Return fresh sequences."""
        return self.draw(self.tests, generator)

    def metrics(self, logits: Tensor, batch: Batch) -> dict[str, float]:
        """Return `accuracy` on fresh sequences."""
        return {"accuracy": (logits[:, -1].argmax(-1) == batch["targets"]).double().mean().item()}
