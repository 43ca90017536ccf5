"""What one update does: rate, clipping, and which weights decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ckpt_trainers.settings import plan
from ckpt_trainers.training import Training
from ckpt_trainers.transformer import Transformer

SMALL: dict[str, Any] = {
    "form": "sampled",
    "samples": 30,
    "length": 5,
    "d_model": 8,
    "d_ff": 8,
    "norm": "pre",
    "positions": "learned",
    "bias": True,
    "std": 0.3,
    "steps": 10,
}


def begin(**values: Any) -> Training:
    return Training(Transformer, "markov", plan(Transformer, "markov", {**SMALL, **values}))


def weights(training: Training) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in training.module.named_parameters()}


def update(training: Training) -> None:
    training.update(Transformer.loss(training.module, training.batch()))


def change(training: Training) -> Tensor:
    """All weights after an update minus before it, as one vector."""
    before = weights(training)
    update(training)
    return torch.cat([(after - before[name]).ravel() for name, after in weights(training).items()])


def test_an_update_uses_the_rate_of_its_step() -> None:
    scheduled = {"lr": 0.3, "lr_schedule": "warmup-cosine", "warmup": 3}
    chosen = begin(**scheduled)
    for step in range(5):
        gradient = torch.cat([p.ravel() for p in torch.autograd.grad(loss_of(chosen), [*chosen.module.parameters()])])
        rate = chosen.plan.loop.rate(step)
        torch.testing.assert_close(change(chosen), -rate * gradient, rtol=1e-9, atol=1e-15)


def loss_of(training: Training) -> Tensor:
    return Transformer.loss(training.module, training.batch())


@pytest.mark.parametrize("share", [0.25, 3.0])
def test_clipping_bounds_the_norm_and_keeps_the_direction(share: float) -> None:
    free = change(begin(lr=1.0))
    clipped = change(begin(lr=1.0, clip=share * free.norm().item()))
    torch.testing.assert_close(clipped, min(1.0, share) * free, rtol=1e-5, atol=1e-12)


EMBEDDINGS = {"embed.weight", "position.weight"}


@pytest.mark.parametrize("excepted", ["", "embeddings", "vectors", "embeddings,vectors"])
def test_decay_spares_what_it_is_told(excepted: str) -> None:
    """Without gradient, decay alone moves the weights: by the factor 1 - lr * decay."""
    chosen = begin(optimizer="adamw", lr=0.5, weight_decay=0.2, no_decay=excepted)
    with torch.no_grad():
        for p in chosen.module.parameters():
            p.add_(0.1)
    before = weights(chosen)
    chosen.update(sum((0 * p.sum() for p in chosen.module.parameters()), torch.tensor(0.0)))
    for name, after in weights(chosen).items():
        kind = "vectors" if before[name].dim() < 2 else "embeddings" if name in EMBEDDINGS else "matrices"
        factor = 1.0 if kind in excepted.split(",") else 0.9
        torch.testing.assert_close(after, factor * before[name], rtol=1e-12, atol=0)
    assert before.keys() >= EMBEDDINGS


def test_tied_unembedding_counts_as_embedding() -> None:
    chosen = begin(optimizer="adamw", tied=True, no_decay="embeddings")
    spared = {id(p) for p in chosen.optimizer.param_groups[1]["params"]}
    assert {name for name, p in chosen.module.named_parameters() if id(p) in spared} == EMBEDDINGS
