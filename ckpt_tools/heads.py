"""The loss of language models whose last step is linear, without ever holding all logits.

The unembedding is shown no positions at all, and what it would have been shown goes to `linear_cross_entropy` instead.
That is right only if the model hands out the unembedding's own numbers, not scaled or capped ones, which is tried once
per module: hidden states of large logits are put before the unembedding, and what comes out of the model compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .losses import linear_cross_entropy

Scored = tuple[Tensor, Tensor]

LARGE = 1 << 22
"""From so many logits on they are not held all at once."""
_PROBE = 100.0
_plain_heads: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def loss_without_logits(module: Any, batch: Mapping[str, Tensor], next_token: bool) -> Tensor | None:
    """Return the mean cross entropy in nats of a batch as `HFFamily.loss` defines it, twice differentiable.

    `next_token` says that `tokens` are their own targets. Returns None where the logits are few, weighted, scored
    against distributions, or more than a linear map of hidden states: take the loss of the logits then.
    """
    head = _linear_head(module)
    if head is None or batch["tokens"].numel() * head.out_features < LARGE or "weights" in batch:
        return None
    if ("targets" in batch and batch["targets"].is_floating_point()) or not _is_plain(module, head, batch["tokens"]):
        return None
    seen: list[Tensor] = []

    def take(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return hidden[:, :0]

    with _before(head, take):
        module(input_ids=batch["tokens"])
    hidden, targets = _scored(seen[0], batch, next_token)
    return linear_cross_entropy(hidden, head.weight, targets, head.bias)


def _linear_head(module: Any) -> nn.Linear | None:
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    return head if isinstance(head, nn.Linear) else None


def _scored(hidden: Tensor, batch: Mapping[str, Tensor], next_token: bool) -> Scored:
    """Return the hidden states `[P, d]` and targets `[P]` of the positions scored."""
    if next_token:
        return hidden[:, :-1].flatten(0, 1), batch["tokens"][:, 1:].flatten()
    targets = batch["targets"]
    if targets.dim() == 1:
        hidden, targets = hidden[:, -1:], targets[:, None]
    scored = targets >= 0
    return hidden[scored], targets[scored]


def _is_plain(module: nn.Module, head: nn.Linear, tokens: Tensor) -> bool:
    """Return whether the model's logits are `head(hidden)`; remembered once its weights have told."""
    if module not in _plain_heads:
        with torch.no_grad():
            verdict = _try(module, head, tokens[:1, :2])
        if verdict is None:
            return False
        _plain_heads[module] = verdict
    return _plain_heads[module]


def _try(module: nn.Module, head: nn.Linear, tokens: Tensor) -> bool | None:
    """Return the verdict on a few positions with logits up to `_PROBE`; None when the weights are zero or broken."""
    weight = head.weight
    top = weight.norm(dim=1).argmax()
    length = float(weight[top].square().sum())
    if not 0 < length < float("inf"):
        return None
    # Along one row, that row's logit is largest; its negative tests the other side of a cap.
    probe = torch.stack([weight[top], -weight[top]]).mul(_PROBE / length)[: tokens.shape[1]].expand(len(tokens), -1, -1)
    seen: list[Tensor] = []

    def put(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return probe.to(hidden)

    with _before(head, put):
        found = module(input_ids=tokens).logits
    if len(seen) != 1 or seen[0].shape != probe.shape:
        return False
    wanted = linear(probe, weight, head.bias).to(found.dtype)  # some round their logits to float32
    return found.shape == wanted.shape and bool(torch.allclose(found, wanted, rtol=1e-5, atol=1e-4))


@contextmanager
def _before(head: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a function change what the unembedding is shown."""
    hook = head.register_forward_pre_hook(lambda _head, args: (change(args[0]), *args[1:]))
    try:
        yield
    finally:
        hook.remove()
