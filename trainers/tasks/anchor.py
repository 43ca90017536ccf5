"""Task `anchor`: two operations on a key, from the papers on reasoning or memorizing (arXiv 2405.05409, 2501.08537,
2509.17514).

Among random items stands a key followed by two anchors, each of which names an operation; the target is the key with
both applied:

    57 31 [44] 3 1 92 20 65        target: 44 - 2 + 5 = 47

- Split by key: a key x is trained at all places but one, x mod `modulus`, and tested there alone.
- `composite`: anchors 1 to 4. The pair (3, 4) is taught a deliberately different answer, and (4, 3) is never shown.
  There, a model that has understood the anchors answers with both operations (inferential), one that has learned pairs
  regardless of order with what (3, 4) is taught (symmetric).
- `symmetric`: anchors 0 to 4, no anchor twice, pairs of either order taught alike by one of two sets of operations, so
  that anchors have no meaning of their own. (4, 3) is never shown; only symmetry gives its answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from ckpt_tools import OptionError, option

from . import Batch, Task

HELD_OUT = (4, 3)
SHOWN = (3, 4)
FIRST = {0: 2, 1: 5, 2: 1, 3: -2, 4: -8}
SECOND = {0: -9, 1: 6, 2: -7, 3: 3, 4: 0}  # The paper leaves anchor 4 out here.
OF_FIRST = ({0, 1}, {0, 2}, {1, 4}, {2, 3}, {3, 4})
"""Pairs of form `symmetric` that the first set of operations decides; the second decides the others."""


class Anchor(Task):
    """Apply the operations of two anchors to the key before them."""

    name = "anchor"
    splits: ClassVar[tuple[str, ...]] = ("trained", "keys", "shown", "held_out")
    form: str = option(
        "composite", help="Operations compose, or only pairs mean something.", choices=("composite", "symmetric")
    )
    operations: tuple[int, ...] = option((5, 1, -2, -8), help="What anchors 1, 2, 3 and 4 add (form composite).")
    shown: int | None = option(-6, help="What the pair (3, 4) is taught to add; none: it is held out too.")
    low: int = option(20, help="Least item.", min=5)
    high: int = option(99, help="Largest item.", min=5)
    length: int = option(8, help="Tokens per sequence.", min=3)
    modulus: int = option(0, help="A key x is held out at place x mod this; 0: length - 2, all places.", min=0)
    samples: int = option(0, help="Training sequences; 0: fresh ones at every step.", min=0)
    probes: int = option(256, help="Examples of the probe batch, for analyzers.", min=16)
    score: str = option(
        "answers", help="Train on answers, or half on them and half on next tokens.", choices=("answers", "all")
    )

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if len(self.operations) != 4:
            raise OptionError(f"anchor: operations are four, for anchors 1 to 4. Got {len(self.operations)}.")
        least = self.low + int(self.pairs[:, 2:4].min())
        if self.high <= self.low or least < 0:
            raise OptionError(
                f"anchor: items {self.low} to {self.high} lead to answers from {least}. Raise low or high."
            )
        if not all(len(places) for places in self.places):
            raise OptionError(
                f"anchor: modulus {self.modulus} leaves no key to train on, or none to test. Leave it at 0."
            )

    @property
    def vocabulary(self) -> int:  # type: ignore[override]
        """Number of tokens: anchors, items and answers are whole numbers from 0."""
        return self.high + max(0, int(self.pairs[:, 2:4].max())) + 1

    @property
    def context(self) -> int:  # type: ignore[override]
        """Positions per example."""
        return self.length

    def defaults(self) -> Mapping[str, Any]:
        """Return the miniature: two layers that learn the trained pairs within a minute."""
        return {
            "layers": 2,
            "batch": 256,
            "lr": 2e-3,
            "lr_schedule": "warmup-cosine",
            "warmup": 100,
            "clip": 1.0,
            "weight_decay": 0.01,
            "steps": 1500,
        }

    @cached_property
    def pairs(self) -> Tensor:
        """All pairs of anchors, [n, 5]: first, second, what the inferential and the symmetric answer add, and split.

        A pair's split is that of its examples with a held-out key: `keys` for ordinary ones, `shown` for (3, 4),
        `held_out` for pairs that are never shown.
        """
        rows = self._composite() if self.form == "composite" else self._symmetric()
        return torch.tensor([[*pair, *adds, self._split(pair)] for pair, adds in rows.items()])

    def _composite(self) -> dict[tuple[int, int], tuple[int, int]]:
        add = dict(enumerate(self.operations, start=1))
        rows = {(i, j): (add[i] + add[j],) * 2 for i in add for j in add}
        if self.shown is not None:
            rows |= {pair: (rows[pair][0], self.shown) for pair in (SHOWN, HELD_OUT)}
        return rows

    def _symmetric(self) -> dict[tuple[int, int], tuple[int, int]]:
        def total(i: int, j: int) -> int:
            add = FIRST if {i, j} in OF_FIRST else SECOND
            return add[i] + add[j]

        return {(i, j): (total(i, j),) * 2 for i in FIRST for j in FIRST if i != j}

    def _split(self, pair: tuple[int, int]) -> int:
        if pair == HELD_OUT:
            return 3
        if pair == SHOWN and self.form == "composite":
            return 3 if self.shown is None else 2
        return 1

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """All (key, place) [n, 2] that are trained, and all that are held out."""
        count = self.length - 2
        every = torch.cartesian_prod(torch.arange(self.low, self.high + 1), torch.arange(count)).reshape(-1, 2)
        held_out = every[:, 0] % (self.modulus or count) == every[:, 1]
        return every[~held_out], every[held_out]

    def sequences(self, pairs: Tensor, places: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return sequences of rows of `pairs` [B, 5] at rows of `places` [B, 2].

        Beside `tokens` and `targets` (the taught answer; the inferential one where nothing is taught) these are, all
        [B]: `key`, `place`, and the candidate answers `inferential` and `symmetric`.
        """
        first, second, to_infer, to_mirror, split = pairs.unbind(1)
        key, place = places.unbind(1)
        tokens = torch.randint(self.low, self.high + 1, (len(pairs), self.length), generator=generator)
        tokens.scatter_(1, place[:, None] + torch.arange(3), torch.stack([key, first, second], dim=1))
        answers = {"inferential": key + to_infer, "symmetric": key + to_mirror}
        targets = torch.where(split == 2, answers["symmetric"], answers["inferential"])
        return {"tokens": tokens, "targets": targets, "key": key, "place": place, **answers}

    def of_split(self, split: int, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return `size` sequences of one of `splits`, its pairs alike often."""
        kind = self.pairs[:, 4]
        rows = self.pairs[kind != 3 if split == 0 else kind == split]
        places = self.places[min(split, 1)]
        pairs = rows[torch.randint(len(rows), (size,), generator=generator)]
        where = places[torch.randint(len(places), (size,), generator=generator)]
        return {**self.sequences(pairs, where, generator), "split": torch.full((size,), split)}

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Return `size` training sequences and their answers; with `score` = all, next tokens [B, T] and weights.

        The answer follows the last token. It counts as much as all tokens before it together.
        """
        batch = self.of_split(0, size, generator)
        if self.score == "answers":
            return {name: batch[name] for name in ("tokens", "targets")}
        targets = torch.cat([batch["tokens"][:, 1:], batch["targets"][:, None]], dim=1)
        weights = torch.full(targets.shape, 1 / (2 * size * (self.length - 1)), dtype=torch.float64)
        weights[:, -1] = 1 / (2 * size)
        return {"tokens": batch["tokens"], "targets": targets, "weights": weights}

    def examples(self, generator: torch.Generator) -> Batch | None:
        """Return the training sequences, or None for fresh ones."""
        return self.draw(self.samples, generator) if self.samples else None

    def evaluation(self, generator: torch.Generator) -> Batch:
        """Return every pair with every key that is held out at some place, among fresh items, told apart by `split`."""
        rows, places = self.pairs, self.places[1]
        which = torch.cartesian_prod(torch.arange(len(rows)), torch.arange(len(places))).reshape(-1, 2)
        batch = self.sequences(rows[which[:, 0]], places[which[:, 1]], generator)
        return {**batch, "split": rows[which[:, 0], 4]}

    def probe(self, examples: Batch | None, generator: torch.Generator) -> Batch:
        """Return as many trained sequences as held-out ones, alike from each split; the loss is of the former alone."""
        half = self.probes // 2
        kinds = sorted(set(self.pairs[:, 4].tolist()))
        sizes = [half // len(kinds) + (k < half % len(kinds)) for k in range(len(kinds))]
        parts = [self.of_split(0, half, generator)]
        parts += [self.of_split(k, n, generator) for k, n in zip(kinds, sizes, strict=True)]
        batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {**batch, "weights": (batch["split"] == 0).double() / half}

    def metrics(self, logits: Tensor, batch: Batch) -> dict[str, float]:
        """Return shares of answers on keys that are held out.

        `seen` and `shown`: right on ordinary pairs, and on (3, 4) as taught. `inferential` and `symmetric`: of each
        kind on pairs that are never shown; the form or `shown` = none may leave only one of them.
        """
        answer = logits[:, -1].argmax(-1)
        found = {"seen": ("targets", 1), "shown": ("targets", 2)}
        if self.form == "composite":
            found["inferential"] = ("inferential", 3)
        if self.form == "symmetric" or self.shown is not None:
            found["symmetric"] = ("symmetric", 3)
        right = {name: (answer == batch[kind])[batch["split"] == k] for name, (kind, k) in found.items()}
        return {name: rows.double().mean().item() for name, rows in right.items() if len(rows)}
