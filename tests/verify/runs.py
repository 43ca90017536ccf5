"""Small trainings to verify, and ways to tamper with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Weights = dict[str, np.ndarray[Any, Any]]
Run = dict[int, Weights]

DENSE = range(0, 301, 10)
LOG = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300)


def train(
    steps: Sequence[int] = DENSE,
    *,
    seed: int = 0,
    scale: float = 1.0,
    rate: float = 0.5,
    order: int = 0,
    batch: int = 32,
) -> Run:
    """Return the weights of a two-hidden-layer tanh network under stochastic gradient descent, by step.

    `scale` shrinks the initial weights, `order` seeds the order of examples; `batch` 0 takes all of them.
    """
    rng, data, picks = np.random.default_rng(seed), np.random.default_rng(99), np.random.default_rng(1000 + order)
    sizes = (16, 48, 48, 6)
    w = {
        f"layers.{i}.{kind}": (scale * rng.standard_normal(shape) / np.sqrt(b)).astype(np.float32)
        for i, (a, b) in enumerate(zip(sizes[1:], sizes, strict=False))
        for kind, shape in (("weight", (a, b)), ("bias", (a,)))
    }
    x, labels = data.standard_normal((256, 16)), np.eye(6)[data.integers(6, size=256)]
    x = (x + 2 * labels @ data.standard_normal((6, 16))).astype(np.float32)
    saved: Run = {}
    for step in range(max(steps) + 1):
        if step in steps:
            saved[step] = {name: value.copy() for name, value in w.items()}
        chosen = picks.integers(256, size=batch) if batch else slice(None)
        for name, gradient in _gradients(w, x[chosen], labels[chosen]).items():
            w[name] -= rate * gradient
    return saved


def _gradients(w: Weights, x: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Weights:
    hidden = [x]
    for i in range(2):
        hidden.append(np.tanh(hidden[-1] @ w[f"layers.{i}.weight"].T + w[f"layers.{i}.bias"]))
    scores = hidden[-1] @ w["layers.2.weight"].T + w["layers.2.bias"]
    p = np.exp(scores - scores.max(1, keepdims=True))
    d = (p / p.sum(1, keepdims=True) - labels).astype(np.float32) / len(x)
    found: Weights = {}
    for i in (2, 1, 0):
        found[f"layers.{i}.weight"], found[f"layers.{i}.bias"] = d.T @ hidden[i], d.sum(0)
        d = (d @ w[f"layers.{i}.weight"]) * (1 - hidden[i] ** 2) if i else d
    return found


def tampered(run: Run, **changes: Weights) -> Run:
    """Return the run with the weights of some steps replaced: `tampered(run, s30=weights)`."""
    return {**run, **{int(step[1:]): weights for step, weights in changes.items()}}


def blurred(weights: Weights, seed: int = 5) -> Weights:
    """Return weights changed by a thousandth, so that no bytes are equal."""
    rng = np.random.default_rng(seed)
    return {n: (v * (1 + 1e-3 * rng.standard_normal(v.shape))).astype(v.dtype) for n, v in weights.items()}
