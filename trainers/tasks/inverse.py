"""Task `inverse`: which of five sequences comes back reversed, from "Achilles' Heel of Mamba" (arXiv 2509.17514).

Three distinct numbers have six orders. A sequence shows five of them, each followed by a token that is none of the
three, then `gap` more such tokens, three for each layer so that convolutions of width four cannot reach across, and at
the end one of the five orders backwards:

    a b c  o  c a b  o  ...  o o o o o o  c b a        target: 0, as `a b c` came first

Sets of three numbers that all leave the same remainder modulo 3 are never trained on; they are the test. `far` adds a
test with numbers that never occur in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import permutations
from typing import Any, ClassVar

import torch
from torch import Tensor

from ckpt_tools import OptionError, option

from . import Batch, Task

ORDERS = torch.tensor(list(permutations(range(3))))  # [6, 3]
SHOWN = 5
"""How many of the orders a sequence shows; the targets are 0 to 4, and chance is 1 / 5."""


class Inverse(Task):
    """Name the place of the order that is repeated backwards at the end."""

    name = "inverse"
    splits: ClassVar[tuple[str, ...]] = ("trained", "held_out", "far")
    low: int = option(20, help="Least number.", min=SHOWN)
    high: int = option(100, help="Largest number.", min=SHOWN)
    gap: int = option(6, help="Other tokens before the last three: 3 for each layer.", min=0)
    far: int = option(0, help="Largest number of a test beyond `high`; 0: no such test.", min=0)
    probes: int = option(256, help="Examples of the probe batch, for analyzers.", min=16)
    samples: int = option(0, help="Training sequences; 0: fresh ones at every step.", min=0)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if self.high - self.low < 8:
            raise OptionError(
                f"inverse: numbers {self.low} to {self.high} are too few for sets inside and outside one remainder. "
                f"Set high to at least {self.low + 8}."
            )
        if self.far and self.far - self.high < 4:
            raise OptionError(f"inverse: far must be 0 or at least {self.high + 4}, four numbers. Got {self.far}.")

    @property
    def vocabulary(self) -> int:  # type: ignore[override]
        """Number of tokens: targets, numbers, and those of the far test."""
        return max(self.high, self.far) + 1

    @property
    def context(self) -> int:  # type: ignore[override]
        """Positions per example."""
        return 4 * SHOWN + self.gap + 3

    def defaults(self) -> Mapping[str, Any]:
        """Return the miniature in which Transformers succeed and Mamba stays at chance."""
        return {
            "layers": 2,
            "heads": 1,
            "d_model": 64,
            "d_state": 64,
            "gamma": 0.5,
            "batch": 128,
            "lr": 4e-3,
            "lr_schedule": "warmup-cosine",
            "warmup": 100,
            "clip": 1.0,
            "weight_decay": 0.01,
            "steps": 1000,
        }

    @cached_property
    def sets(self) -> tuple[Tensor, ...]:
        """All sets of three numbers of each of `splits`, ascending, [n, 3]; the far ones only with `far`."""
        near = torch.combinations(torch.arange(self.low, self.high + 1), 3)
        held_out = (near % 3 == near[:, :1] % 3).all(1)
        far = torch.combinations(torch.arange(self.high + 1, self.far + 1), 3) if self.far else None
        return near[~held_out], near[held_out], *([] if far is None else [far])

    def sequences(self, sets: Tensor, low: int, high: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return one sequence [B, T] for each set [B, 3] of numbers from `low` to `high`, and its target [B]."""
        size = len(sets)
        orders = ORDERS[torch.rand(size, len(ORDERS), generator=generator).argsort(1)[:, :SHOWN]]  # [B, 5, 3]
        shown = sets[:, None].expand(-1, SHOWN, -1).gather(2, orders)
        other = torch.randint(low, high - 2, (size, SHOWN + self.gap), generator=generator)
        for column in range(3):  # numbers from the set's first on move up by one, and so on
            other += other >= sets[:, column, None]
        targets = torch.randint(SHOWN, (size,), generator=generator)
        asked = shown[torch.arange(size), targets].flip(1)
        keys = torch.cat([shown, other[:, :SHOWN, None]], dim=2).flatten(1)
        return {"tokens": torch.cat([keys, other[:, SHOWN:], asked], dim=1), "targets": targets}

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Return `size` training sequences and the places they ask for."""
        return self.of_split(0, size, generator)

    def of_split(self, split: int, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return `size` sequences of one of `splits`."""
        sets = self.sets[split]
        low, high = (self.high + 1, self.far) if split == 2 else (self.low, self.high)
        return self.sequences(sets[torch.randint(len(sets), (size,), generator=generator)], low, high, generator)

    def examples(self, generator: torch.Generator) -> Batch | None:
        """Return the training sequences, or None for fresh ones."""
        return self.draw(self.samples, generator) if self.samples else None

    def mixed(self, sizes: Mapping[int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Return sequences of several splits, `{split: how many}`, told apart by `split` [B]."""
        parts = [{**self.of_split(k, n, generator), "split": torch.full((n,), k)} for k, n in sizes.items()]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def probe(self, examples: Batch | None, generator: torch.Generator) -> Batch:
        """Return as many trained sequences as held-out ones; the loss is that of the former alone."""
        half = self.probes // 2
        batch = self.mixed({0: half, 1: half}, generator)
        return {**batch, "weights": (batch["split"] == 0).double() / half}

    def evaluation(self, generator: torch.Generator) -> Batch:
        """Return 500 sequences of each split."""
        return self.mixed(dict.fromkeys(range(len(self.sets)), 500), generator)

    def metrics(self, logits: Tensor, batch: Batch) -> dict[str, float]:
        """Return the share of right answers in each split."""
        right = logits[:, -1].argmax(-1) == batch["targets"]
        return {
            name: right[batch["split"] == k].double().mean().item()
            for k, name in enumerate(self.splits)
            if (batch["split"] == k).any()
        }
