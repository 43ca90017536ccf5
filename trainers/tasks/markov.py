"""Task `markov`: the next token of a lazy Markov chain, from "Focus and Dilution" (arXiv 2605.01199).

    P = lam I + (1 - lam) 1 pi^T

with stationary distribution pi: the chain keeps its token with probability lam and draws a new one from pi otherwise.

- `population`: the limit of long sequences. Every token is a key with weight pi_k and a query with weight pi_i, so that
  L = sum_i pi_i CE(P_i, softmax(logits_i)) exactly, without sampling noise.
- `sampled`: sequences that start uniformly; the token after the last is the target.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ckpt_tools import OptionError, option

from . import Batch, Task

# One attention layer with W0, W_Q, W_K, W1 and nothing else; plain gradient descent, as Adam destroys the stages.
BARE = {
    "layers": 1,
    "heads": 1,
    "d_model": 32,
    "d_ff": 0,
    "scaled": False,
    "use_v": False,
    "use_o": False,
    "residual": False,
    "norm": "none",
    "positions": "none",
    "causal": False,
    "optimizer": "gd",
    "dtype": "float64",
}


class Markov(Task):
    """Predict the next token of a chain that keeps its token with probability `lam`."""

    name = "markov"
    pi: tuple[float, ...] = option((0.75, 0.19, 0.05, 0.01), help="Stationary distribution.", min=0.0, max=1.0)
    lam: float = option(0.5, help="Probability of keeping the token.", min=0.0, max=1.0)
    form: str = option("population", help="Exact expectation, or sequences.", choices=("population", "sampled"))
    samples: int = option(1024, help="Training sequences (sampled form); 0: fresh ones at every step.", min=0)
    length: int = option(32, help="Tokens per sequence (sampled form).", min=1)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if min(self.pi, default=0.0) <= 0 or not math.isclose(sum(self.pi), 1, abs_tol=1e-9):
            raise OptionError(f"Option 'pi' of markov must be positive numbers whose sum is 1. Got {self.pi} instead.")

    @property
    def vocabulary(self) -> int:  # type: ignore[override]
        """Number of tokens."""
        return len(self.pi)

    @property
    def context(self) -> int:  # type: ignore[override]
        """Positions per example: all tokens once, or a sequence."""
        return len(self.pi) if self.form == "population" else self.length

    def defaults(self) -> Mapping[str, Any]:
        """Return the miniature in which the stages of the paper appear within seconds."""
        if self.form == "population":
            return {**BARE, "std": 1e-4, "lr": 0.2, "steps": 8000}
        return {**BARE, "std": 1e-3, "lr": 0.5, "steps": 1500}

    def transition(self) -> Tensor:
        """Return P, float64 [v, v], rows summing to 1."""
        pi = torch.tensor(self.pi, dtype=torch.float64)
        return self.lam * torch.eye(len(pi), dtype=torch.float64) + (1 - self.lam) * pi

    def levels(self) -> dict[str, float]:
        """Return losses in nats that models of known skill reach: `uniform`, `unigram` (pi), `floor` (P)."""
        pi = torch.tensor(self.pi, dtype=torch.float64)
        floor = pi @ torch.special.entr(self.transition()).sum(-1)
        unigram = torch.special.entr(pi).sum()
        return {"uniform": math.log(len(pi)), "unigram": unigram.item(), "floor": floor.item()}

    def examples(self, generator: torch.Generator) -> Batch | None:
        """Return the population as one batch, or the training sequences."""
        if self.form == "population":
            pi = torch.tensor(self.pi, dtype=torch.float64)
            tokens, targets = torch.arange(len(pi))[None], self.transition()[None]  # [1, v], [1, v, v]
            return {"tokens": tokens, "targets": targets, "weights": pi[None], "key_log_weight": pi.log()}
        return self.draw(self.samples, generator) if self.samples else None

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Return `size` sequences [size, length] and the token that follows each [size]."""
        shape = (size, self.length + 1)
        stay = torch.rand(shape, generator=generator, dtype=torch.float64) < self.lam
        pi = torch.tensor(self.pi, dtype=torch.float64)
        chain = torch.multinomial(pi, size * shape[1], replacement=True, generator=generator).view(shape)
        chain[:, 0] = torch.randint(len(pi), (size,), generator=generator)
        for t in range(1, shape[1]):
            chain[:, t] = torch.where(stay[:, t], chain[:, t - 1], chain[:, t])
        return {"tokens": chain[:, :-1].contiguous(), "targets": chain[:, -1].contiguous()}

    def metrics(self, logits: Tensor, batch: Batch) -> dict[str, float]:
        """Return `excess`, the mean KL(P_i || model) in nats, and the same for each current token i as `excess_i`.

        Averages over sequences with the same current token; the average over tokens is weighted by pi.
        """
        tokens, log_q = batch["tokens"], logits.log_softmax(-1)
        if self.form == "sampled":
            tokens, log_q = tokens[:, -1], log_q[:, -1]
        p = self.transition().to(log_q)[tokens]
        excess = (torch.xlogy(p, p) - p * log_q).sum(-1)
        found = {i: excess[tokens == i].mean().item() for i in range(len(self.pi)) if (tokens == i).any()}
        share = sum(self.pi[i] for i in found)
        mean = sum(self.pi[i] * value for i, value in found.items()) / share
        return {"excess": mean, **{f"excess_{i}": value for i, value in found.items()}}
