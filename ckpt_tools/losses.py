"""Cross entropy over large vocabularies without ever holding the logits.

With h_p the hidden state of position p, z_p = W h_p + b its logits, q_p = softmax(z_p), t_p its target and P the number
of positions, the loss is L = 1/P sum_p [logsumexp(z_p) - z_p[t_p]]. Its gradient needs G_p = (q_p - e_{t_p}) / P only:

    dL/dh_p = W^T G_p        dL/dW = sum_p G_p h_p^T        dL/db = sum_p G_p

and the second derivative, for cotangents (a_p, B, c) of these three and u_p = W a_p + B h_p + c, needs
r_p = (diag(q_p) - q_p q_p^T) u_p / P beside it:

    d/dh_p = W^T r_p + B^T G_p        d/dW = sum_p r_p h_p^T + G_p a_p^T        d/db = sum_p r_p

All of it is computed in chunks of positions and recomputed when needed. Checkpointing cannot do this: under
`create_graph=True` the graph of the backward pass keeps whatever the checkpoints dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

CHUNK = 32
"""Positions whose logits are in memory at a time."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, *, chunk: int = CHUNK
) -> Tensor:
    """Return the mean cross entropy in nats of logits `hidden @ weight.T + bias`, twice differentiable.

    `hidden` is `[P, d]`, `weight` `[V, d]`, `targets` `[P]` ids, `bias` `[V]` or None. Memory beyond the inputs and
    their gradients is about three times `chunk * V` numbers.
    """
    bias = hidden.new_zeros(len(weight)) if bias is None else bias
    loss: Tensor = _Loss.apply(hidden, weight, bias, targets, chunk)  # type: ignore[no-untyped-call]
    return loss


class _Loss(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, chunk: int) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.chunk = chunk
        total = hidden.new_zeros(())
        for h, t in _chunks(chunk, hidden, targets):
            z = torch.addmm(bias, h, weight.T)
            total += (z.logsumexp(-1) - z.gather(-1, t[:, None]).squeeze(-1)).sum()
        return total / len(targets)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        return (*_Slope.apply(scale, hidden, weight, bias, targets, ctx.chunk), None, None)  # type: ignore[no-untyped-call]


class _Slope(Function):
    """(scale, inputs) -> scale times the gradient by hidden, weight, bias."""

    @staticmethod
    def forward(
        ctx: Any, scale: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        by_h, by_w, by_b = torch.empty_like(hidden), torch.zeros_like(weight), torch.zeros_like(bias)
        for out, h, t in _chunks(chunk, by_h, hidden, targets):
            _, g = _softmax(h, weight, bias, t, len(targets))
            torch.mm(g, weight, out=out)
            by_w.addmm_(g.T, h)
            by_b += g.sum(0)
        ctx.save_for_backward(scale, hidden, weight, bias, targets)
        ctx.chunk = chunk
        return scale * by_h, by_w.mul_(scale), by_b.mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor | None, ...]:
        scale, hidden, weight, bias, targets = ctx.saved_tensors
        by_h, by_w, by_b = torch.empty_like(hidden), torch.zeros_like(weight), torch.zeros_like(bias)
        by_scale = torch.zeros_like(scale)
        for out, h, ah, t in _chunks(ctx.chunk, by_h, hidden, a, targets):
            q, g = _softmax(h, weight, bias, t, len(targets))
            u = torch.addmm(c, ah, weight.T).addmm_(h, b.T)
            by_scale += (g * u).sum()
            r = q.mul_(u - (q * u).sum(-1, keepdim=True)).div_(len(targets))
            torch.mm(r, weight, out=out)
            out.addmm_(g, b)
            by_w.addmm_(r.T, h).addmm_(g.T, ah)
            by_b += r.sum(0)
        return by_scale, by_h.mul_(scale), by_w.mul_(scale), by_b.mul_(scale), None, None


def _chunks(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(torch.split(t, size) for t in tensors), strict=True)


def _softmax(h: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the probabilities of a chunk and G, (probabilities - one-hot targets) / count."""
    q = torch.addmm(bias, h, weight.T).softmax(-1)
    g = q / count
    g[torch.arange(len(targets), device=targets.device), targets] -= 1 / count
    return q, g
