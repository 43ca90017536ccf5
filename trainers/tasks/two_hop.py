"""Task `two_hop`: two facts joined into a third, from "Identity Bridge" (arXiv 2509.24653).

    one hop   (e1, r1) -> e2 = f(e1)        (e2, r2) -> e3 = g_r2(e2)
    two hops  (e1, r1, r2) -> g_r2(f(e1))
    identity  (e2) -> e2

Subjects e1, bridges e2 and objects e3 are three disjoint sets of equal size; f and each g are one-to-one. There are
`complexity` second relations, no two of which lead from one bridge to the same object, so that every subject reaches
just that many objects. All one-hop facts are trained, and the two-hop facts of all subjects but the share `ood` of
them: theirs are the test out of distribution. Identity tuples are trained for the share `identity` of the bridges.

Sequences are padded on the left, so that the answer is always read at the last position. To families that have a
setting `padding` a sequence is what it is without: (e1, r1) is then how (e1, r1, r2) begins. Token ids: 0 is padding,
then subjects, bridges, objects, r1, and the second relations.
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


class TwoHop(Task):
    """Answer questions that need two facts."""

    name = "two_hop"
    splits: ClassVar[tuple[str, ...]] = ("first", "second", "two_hop", "identity", "ood")
    entities: int = option(40, help="Number of subjects, of bridges and of objects.", min=2)
    complexity: int = option(1, help="Objects that each subject leads to, one for each second relation.", min=1)
    ood: float = option(0.5, help="Share of subjects whose two-hop facts are held out.", min=0.0, max=1.0)
    identity: float = option(1.0, help="Share of bridges with an identity tuple; 0: none.", min=0.0, max=1.0)
    target_seed: int = option(0, help="Decides the facts, and which are held out.", min=0)

    context = LENGTH
    padding = 0

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if self.complexity > self.entities:
            raise OptionError(f"two_hop: complexity {self.complexity} needs as many entities. Got {self.entities}.")

    @property
    def vocabulary(self) -> int:  # type: ignore[override]
        """Number of tokens."""
        return 3 * self.entities + self.complexity + 2

    def defaults(self) -> Mapping[str, Any]:
        """Return the miniature: seconds of training, for the linear Emb-MLP."""
        return {
            "d_model": 64,
            "d_ff": 64,
            "gamma": 0.8,
            "lr": 1e-3,
            "steps": 3000,
        }

    def tokens(self, kind: str) -> Tensor:
        """Return the ids of "subjects", "bridges", "objects", "first" or "second" (relations)."""
        n = self.entities
        starts = {"subjects": 1, "bridges": 1 + n, "objects": 1 + 2 * n, "first": 1 + 3 * n, "second": 2 + 3 * n}
        size = {"first": 1, "second": self.complexity}.get(kind, n)
        return starts[kind] + torch.arange(size)

    @cached_property
    def maps(self) -> tuple[Tensor, Tensor]:
        """f [n], the bridge of each subject, and g [C, n], the object of each bridge by second relation, as ids."""
        draw = torch.Generator().manual_seed(self.target_seed)
        n = self.entities
        f = self.tokens("bridges")[torch.randperm(n, generator=draw)]
        places = torch.randperm(n, generator=draw)
        names = torch.randperm(n, generator=draw)
        # Shifts by different amounts never lead to the same place.
        g = names[(places + torch.arange(self.complexity)[:, None]) % n]
        return f, self.tokens("objects")[g]

    @cached_property
    def held_out(self) -> Tensor:
        """Which subjects have no two-hop fact in training, bool [n]."""
        return self._some(self.ood, 1)

    @cached_property
    def identified(self) -> Tensor:
        """Which bridges have an identity tuple, bool [n]."""
        return self._some(self.identity, 2)

    def _some(self, share: float, stream: int) -> Tensor:
        draw = torch.Generator().manual_seed(self.target_seed * 3 + stream)
        return torch.randperm(self.entities, generator=draw) < round(share * self.entities)

    def facts(self) -> dict[str, Tensor]:
        """Return every tuple, `tokens` [B, 3], `targets`, `split`, and `bridge` [B], the entity that joins its facts.

        `split` counts in `splits`: one-hop facts, first and second, two-hop facts trained, identity tuples, two-hop
        facts held out.
        """
        f, g = self.maps
        subjects, bridges, first, second = (self.tokens(k) for k in ("subjects", "bridges", "first", "second"))
        n = self.entities
        parts = [_rows([subjects, first.expand(n)], f, f, torch.zeros(n))]
        for r, relation in enumerate(second):
            ids = relation.expand(n)
            answers = g[r, f - bridges[0]]
            split = torch.where(self.held_out, 4, 2)
            parts.append(_rows([bridges, ids], g[r], bridges, torch.ones(n)))
            parts.append(_rows([subjects, first.expand(n), ids], answers, f, split))
        known = bridges[self.identified]
        parts.append(_rows([known], known, known, torch.full((len(known),), 3)))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def examples(self, generator: torch.Generator) -> Batch:
        """Return all trained tuples, in order of their splits."""
        facts = self.facts()
        order = torch.argsort(facts["split"], stable=True)
        rows = order[facts["split"][order] != self.splits.index("ood")]
        return {name: facts[name][rows] for name in ("tokens", "targets")}

    def evaluation(self, generator: torch.Generator) -> Batch:
        """Return every tuple with its split and bridge."""
        return self.facts()

    def probe(self, examples: Batch | None, generator: torch.Generator) -> Batch:
        """Return every tuple, with `split` and `bridge`; the loss is of the trained ones alone."""
        facts = self.facts()
        trained = (facts["split"] != self.splits.index("ood")).double()
        return {**facts, "weights": trained / trained.sum()}

    def metrics(self, logits: Tensor, batch: Batch) -> dict[str, float]:
        """Return the accuracy of each split, `ood` being the one that was never trained."""
        right = logits[:, -1].argmax(-1) == batch["targets"]
        rows = {name: batch["split"] == i for i, name in enumerate(self.splits)}
        return {name: right[some].double().mean().item() for name, some in rows.items() if some.any()}


def _rows(columns: list[Tensor], targets: Tensor, bridge: Tensor, split: Tensor) -> dict[str, Tensor]:
    """Return tuples padded on the left."""
    tokens = torch.zeros(len(targets), LENGTH, dtype=torch.int64)
    if len(targets):
        tokens[:, LENGTH - len(columns) :] = torch.stack(columns, dim=1)
    return {"tokens": tokens, "targets": targets, "bridge": bridge, "split": split.long()}
