"""The selective scan of Mamba (arXiv 2312.00752) and the matrix form of its second version (SSD, arXiv 2405.21060).

    h_t = a_t h_{t-1} + b_t        y_t = C_t h_t + D x_t        a_t = exp(dt_t A),  b_t = dt_t x_t B_t

The recurrence is linear in b, h = T(a) b, and its transpose is the same recurrence from the end,

    u = T(a)^T g:    u_t = g_t + a_{t+1} u_{t+1}

so that dL/db = u, dL/da_t = u_t h_{t-1}, and derivatives of any order are made of T, T^T and products.

Both scans are loops over time into preallocated memory, each behind one autograd function. `scan` keeps all states.
`selective_scan` never has more than one state in its forward pass and computes them again for the gradient; derivatives
of its derivatives, and those under `torch.func`, go through `scan`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

CHUNK = 64


def scan(a: Tensor, b: Tensor) -> Tensor:
    """Return all states h_t = a_t h_{t-1} + b_t, h_0 = b_0, of b [B, T, ...]; `a` has b's shape or expands to it."""
    a, b = widest(a, b)
    return recurrence(a.expand_as(b), b, False)


def selective_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Return y [B, T, d] of the state space with N states and as many rates per channel (Mamba-1).

    x and dt are [B, T, d], A is [d, N], B and C are [B, T, N], D is [d].
    """
    y: Tensor = SelectiveScan.apply(*widest(x, dt, A, B, C, D))  # type: ignore[no-untyped-call]
    return y


def unfused(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Return what `selective_scan` returns, from `scan` and plain operations."""
    h = scan(torch.exp(dt[..., None] * A), (dt * x)[..., None] * B[..., None, :])  # [B, T, d, N]
    return (h @ C[..., None]).squeeze(-1) + D * x


def ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, chunk: int = CHUNK) -> Tensor:
    """Return y [B, T, H, P] of the state space with one rate per head (Mamba-2), as matrix products within chunks.

    x is [B, T, H, P], dt is [B, T, H], A and D are [H], B and C are [B, T, G, N] with H a multiple of G groups. States
    pass from chunk to chunk by `scan`; but for rounding the result does not depend on `chunk`.
    """
    length, size = x.shape[1], min(chunk, x.shape[1])
    share = x.shape[2] // B.shape[2]

    def cut(v: Tensor) -> Tensor:
        """Return [B, T, H, ...] as [B, K, H, S, ...], K chunks of S steps; dt = 0 beyond T leaves states alone."""
        v = F.pad(v, (0, 0) * (v.dim() - 2) + (0, -length % size))
        return v.reshape(len(v), -1, size, *v.shape[2:]).transpose(2, 3)

    rate, fed = cut(dt * A), cut(dt[..., None] * x)  # [B, K, H, S], [B, K, H, S, P]
    B, C = (cut(v.repeat_interleave(share, dim=2)) for v in (B, C))  # [B, K, H, S, N]
    y = (C @ B.transpose(-1, -2) * decay(rate)) @ fed
    if size < length:
        since = rate.cumsum(-1)[..., None]  # [B, K, H, S, 1]
        kept = torch.exp(since[..., -1:, :] - since)
        states = scan(torch.exp(since[..., -1:, :]), (kept * fed).transpose(-1, -2) @ B)  # [B, K, H, P, N]
        y = y + torch.exp(since) * (C @ delay(states).transpose(-1, -2))
    return y.transpose(2, 3).flatten(1, 2)[:, :length] + D[:, None] * x


def decay(rate: Tensor) -> Tensor:
    """Return exp(rate_{s+1} + ... + rate_t) at [..., t, s], zero for s > t, of rates [..., T]."""
    length = rate.shape[-1]
    past = torch.ones(length, length, dtype=torch.bool, device=rate.device).tril(-1)
    # Sums of what lies between, not differences of sums from the start: those cancel.
    between = torch.where(past, rate[..., :, None], 0.0).cumsum(-2)
    return torch.exp(between.masked_fill(past.T, -torch.inf))


def widest(*tensors: Tensor) -> list[Tensor]:
    """Return tensors in the widest of their dtypes."""
    dtype = reduce(torch.promote_types, (v.dtype for v in tensors))
    return [v.to(dtype) for v in tensors]


def delay(x: Tensor) -> Tensor:
    """Return x_{t-1} at t, zero at the start."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)


def advance(x: Tensor) -> Tensor:
    """Return x_{t+1} at t, zero at the end."""
    return torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], dim=1)


class Recurrence(torch.autograd.Function):
    """T(a) b, or T(a)^T b with `transposed`, along axis 1 of two tensors of one shape."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, transposed: bool) -> Tensor:
        out = torch.empty_like(b, memory_format=torch.contiguous_format)
        rates, inputs, states = a.unbind(1), b.unbind(1), out.unbind(1)
        if transposed:
            rates, inputs, states = (rates[0], *rates[:0:-1]), inputs[::-1], states[::-1]
        states[0].copy_(inputs[0])
        for t in range(1, len(states)):
            torch.addcmul(inputs[t], rates[t], states[t - 1], out=states[t])
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, _, ctx.transposed = inputs
        ctx.save_for_backward(a, output)
        ctx.save_for_forward(a, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        a, out = ctx.saved_tensors
        if ctx.needs_input_grad[0] and not ctx.transposed and not torch.is_grad_enabled():
            return *recurrence_gradients(a, out, grad), None
        other = recurrence(a, grad, not ctx.transposed)
        if not ctx.needs_input_grad[0]:
            return None, other, None
        return (delay(other) * out if ctx.transposed else other * delay(out)), other, None

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, db: Tensor | None, _: None) -> Tensor:
        a, out = ctx.saved_tensors
        # torch hides tangents of outer levels here, so that jvp of jvp would be zero without a word; those of this
        # level are taken off in exchange.
        with forward_ad._set_fwd_grad_enabled(True):
            a = forward_ad.unpack_dual(a).primal  # type: ignore[no-untyped-call]
            change = torch.zeros_like(out) if db is None else db
            if da is not None:
                change = change + (advance(da * out) if ctx.transposed else da * delay(out))
            return recurrence(a, change, ctx.transposed)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], a: Tensor, b: Tensor, transposed: bool) -> tuple[Tensor, int]:
        # Behind time the mapped axis is one more axis of independent recurrences.
        def behind(x: Tensor, dim: int | None) -> Tensor:
            if dim is None:
                return x.unsqueeze(2).expand(*x.shape[:2], info.batch_size, *x.shape[2:])
            return x.movedim(dim, 2)

        return recurrence(behind(a, dims[0]), behind(b, dims[1]), transposed), 2


def recurrence(a: Tensor, b: Tensor, transposed: bool) -> Tensor:
    """Return T(a) b or its transpose, differentiably."""
    out: Tensor = Recurrence.apply(a, b, transposed)  # type: ignore[no-untyped-call]
    return out


def recurrence_gradients(a: Tensor, h: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return dL/da and dL/db of h = T(a) b in one pass, while each step is in cache."""
    da, db = torch.empty_like(h), torch.empty_like(h)
    rates, states, given = a.unbind(1), h.unbind(1), grad.unbind(1)
    to_a, to_b = da.unbind(1), db.unbind(1)
    to_b[-1].copy_(given[-1])
    for t in range(len(states) - 1, 0, -1):
        torch.mul(to_b[t], states[t - 1], out=to_a[t])
        torch.addcmul(given[t - 1], rates[t], to_b[t], out=to_b[t - 1])
    to_a[0].zero_()
    return da, db


class SelectiveScan(torch.autograd.Function):
    """`selective_scan` of tensors of one dtype."""

    @staticmethod
    def forward(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        y = D * x
        one = x.new_empty(1, x.shape[0], *A.shape)
        for t, h in enumerate(states(x, dt, A, B, one)):
            y[:, t] += (h @ C[:, t, :, None]).squeeze(-1)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled():
            pulled: tuple[Tensor, ...] = torch.func.vjp(unfused, *ctx.saved_tensors)[1](grad)
            return pulled
        return selective_gradients(grad, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        with forward_ad._set_fwd_grad_enabled(True):
            y = unfused(*ctx.saved_tensors)
            moved: Tensor | None = forward_ad.unpack_dual(y).tangent  # type: ignore[no-untyped-call]
        return torch.zeros_like(y) if moved is None else moved

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        return torch.vmap(unfused, in_dims=dims)(*inputs), 0


def states(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, out: Tensor) -> Iterator[Tensor]:
    """Yield h_t [B, d, N] for all t, written into `out` [T or 1, B, d, N]."""
    fed, a, h = dt * x, torch.empty_like(out[0]), torch.zeros_like(out[0])
    for t in range(x.shape[1]):
        torch.mul(dt[:, t, :, None], A, out=a)
        h = torch.mul(h, a.exp_(), out=out[t % len(out)])
        yield h.addcmul_(fed[:, t, :, None], B[:, t, None])


def selective_gradients(
    grad: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of x, dt, A, B, C, D for that of y, in one pass from the end."""
    hs = list(states(x, dt, A, B, x.new_empty(x.shape[1], x.shape[0], *A.shape)))
    fed, to_fed, to_dt = dt * x, torch.empty_like(x), torch.zeros_like(x)
    to_A, to_B, to_C = torch.zeros_like(A), torch.empty_like(B), torch.empty_like(C)
    u, a, to_rate = torch.zeros_like(hs[0]), torch.empty_like(hs[0]), torch.empty_like(hs[0])
    for t in range(len(hs) - 1, -1, -1):
        u.addcmul_(grad[:, t, :, None], C[:, t, None])  # dL/dh_t: u held a_{t+1} u_{t+1}
        to_C[:, t] = (grad[:, t, None] @ hs[t]).squeeze(1)
        to_B[:, t] = (fed[:, t, None] @ u).squeeze(1)
        to_fed[:, t] = (u @ B[:, t, :, None]).squeeze(-1)
        if t:
            torch.mul(dt[:, t, :, None], A, out=a)
            u.mul_(a.exp_())
            torch.mul(u, hs[t - 1], out=to_rate)  # dL/d(dt_t A)
            to_dt[:, t] = torch.mul(to_rate, A, out=a).sum(-1)
            to_A += to_rate.mul_(dt[:, t, :, None]).sum(0)
    to_x = torch.addcmul(grad * D, to_fed, dt)
    return to_x, to_dt.addcmul_(to_fed, x), to_A, to_B, to_C, (grad * x).sum((0, 1))
