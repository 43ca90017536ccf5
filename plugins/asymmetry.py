"""How much a model's short convolutions, and the model as a whole, tell a sequence from its reverse (arXiv 2509.17514).

A causal convolution gives f(u) = act(sum_l w_l u_(t-l) + b) of the window of inputs u at lags l = 0, 1, ...; it mixes
tokens before the state space sees them, and what it mixes is the same for a window and its reverse if and only if the
kernel is. For pairs of representations r and s of inputs and of their reverses the asymmetry is

    sqrt(sum ||r - s||^2 / sum (||r||^2 + ||s||^2))

0 where all are equal, 1 where they are orthogonal, sqrt(2) where they are opposite.

- kernel: of w and w reversed, divided by sqrt(2): the share of the antisymmetric part, between 0 and 1;
- window: of f over every window of inputs that the batch produces and over that window reversed;
- state: of the residual stream's mean over positions, for the batch's sequences and for these reversed, as the model is
  and with all taps of all kernels set to one. Without positions the first state is the same for both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from ckpt_tools import Analyzer, Figure, Out, SourceError, hookimpl, option, to_numpy

if TYPE_CHECKING:
    from torch import Tensor

    from ckpt_tools import Model, View

    Batch = Mapping[str, Tensor]

_CONV = re.compile(r"layers\.(\d+)\.ssm\.conv")


class Asymmetry(Analyzer):
    """Taps and asymmetry of convolution kernels, and how far states of reversed sequences lie from the originals'.

    Models without short convolutions have states only.
    """

    name = "asymmetry"
    needs = "forward"
    reading = (
        "A convolution that weighs what came first differently from what came last can tell a sequence from its "
        "reverse. `kernel_asymmetry` is 0 where it cannot, and `state_asymmetry` says how far the states of a "
        "sequence and of its reverse lie apart in the whole model."
    )
    activation: Literal["silu", "none"] = option("silu", help="Nonlinearity behind the convolution.")

    figures = (
        Figure("tap_share", lines="lag"),
        Figure("window_asymmetry", lines="layer"),
        Figure("state_asymmetry", lines="state"),
    )
    outputs: ClassVar[Mapping[str, Out]] = {
        "tap_share": Out(("layer", "lag"), "1", "Mean share of a tap in its kernel's absolute weight"),
        "kernel_asymmetry": Out(("layer",), "1", "Share of the antisymmetric part of the kernels"),
        "window_asymmetry": Out(("layer",), "1", "Asymmetry of the fused representation of a window"),
        "state_asymmetry": Out(
            ("state",), "1", "Asymmetry of the mean residual stream before each layer and at the end"
        ),
        "state_asymmetry_ones": Out(("state",), "1", "The same with all kernels set to ones"),
    }

    def analyze(self, view: View) -> Mapping[str, Any]:
        """Return the asymmetries; raises SourceError for a model that records no states."""
        model, batch = view.model(), view.batch()
        kernels = convolutions(model)
        inputs = _inputs(view, model, batch, kernels)
        lags = max((k.shape[1] for _, k, _ in kernels.values()), default=0)
        windows = [window_asymmetry(inputs[n], k, b, self.activation == "silu") for n, (_, k, b) in kernels.items()]
        return {
            "layer": list(kernels),
            "lag": list(range(lags)),
            "tap_share": [_padded(tap_share(k), lags) for _, k, _ in kernels.values()],
            "kernel_asymmetry": [kernel_asymmetry(k) for _, k, _ in kernels.values()],
            "window_asymmetry": windows,
            "state_asymmetry": _states(model, batch, {}),
            "state_asymmetry_ones": _states(model, batch, _ones(model, kernels)),
        }


Kernels = dict[int, "tuple[str, Tensor, Tensor | None]"]


def convolutions(model: Model) -> Kernels:
    """Return name of the weight, kernel `[channel, tap]` (the last tap is lag 0) and bias, of layers that have one."""
    found: Kernels = {}
    by_role = {role: name for name, roles in model.roles.items() for role in roles}
    for role, name in by_role.items():
        if layer := _CONV.fullmatch(role):
            kernel = model.tensors[name]
            bias = by_role.get(f"{role}.bias")
            found[int(layer[1])] = name, kernel.reshape(len(kernel), -1), None if bias is None else model.tensors[bias]
    return dict(sorted(found.items()))


def tap_share(kernel: Tensor) -> np.ndarray[Any, Any]:
    """Return, for each lag, the mean over channels of |w_l| / sum |w|; channels of zeros are left out."""
    weights = np.abs(to_numpy(kernel).astype(np.float64))[:, ::-1]
    total = weights.sum(1, keepdims=True)
    used = total[:, 0] != 0
    return np.asarray((weights[used] / total[used]).mean(0) if used.any() else np.zeros(weights.shape[1]))


def kernel_asymmetry(kernel: Tensor) -> float:
    """Return the share of the antisymmetric part of kernels `[channel, tap]`: 0 for symmetric ones, at most 1."""
    return float(asymmetry(kernel, kernel.flip(1)) / np.sqrt(2))


def asymmetry(one: Tensor, other: Tensor) -> float:
    """Return sqrt(sum |one - other|^2 / sum (|one|^2 + |other|^2)); 0 where both are zero."""
    one, other = one.cpu().double(), other.cpu().double()  # not every device has float64
    scale = float(one.square().sum() + other.square().sum())
    return float(np.sqrt(float((one - other).square().sum()) / scale)) if scale != 0 else 0.0


def window_asymmetry(x: Tensor, kernel: Tensor, bias: Tensor | None, nonlinear: bool) -> float:
    """Return the asymmetry of what the convolution makes of windows of inputs `[B, T, channel]`; NaN if T is short."""
    if x.shape[1] < kernel.shape[1]:
        return float("nan")
    windows = x.unfold(1, kernel.shape[1], 1)  # [B, T - taps + 1, channel, tap]
    return asymmetry(_fused(windows, kernel, bias, nonlinear), _fused(windows.flip(-1), kernel, bias, nonlinear))


def _fused(windows: Tensor, kernel: Tensor, bias: Tensor | None, nonlinear: bool) -> Tensor:
    import torch

    y = (windows * kernel).sum(-1)
    y = y if bias is None else y + bias
    return torch.nn.functional.silu(y) if nonlinear else y


def _inputs(view: View, model: Model, batch: Batch, kernels: Kernels) -> dict[int, Tensor]:
    """Return what enters each convolution `[B, T, channel]`."""
    seen: dict[int, Tensor] = {}
    with _watched(view, model, kernels, seen):
        model.forward(batch)
    missing = [layer for layer in kernels if layer not in seen]
    if missing:
        raise SourceError(
            f"What enters the convolution of layer {missing[0]} of family {model.family.name!r} is not known: neither "
            "it nor a projection before it was called as a module. Leave `asymmetry` out."
        )
    return seen


@contextmanager
def _watched(view: View, model: Model, kernels: Kernels, seen: dict[int, Tensor]) -> Iterator[None]:
    """Keep the convolutions' inputs: at the module or, where its kernel goes to a function, where they are made."""
    root = model.skeleton.module
    fused = {roles[0].rpartition(".in.")[0]: (name, roles) for name, roles in model.roles.items() if len(roles) > 1}
    hooks = []
    for layer, (name, kernel, _) in kernels.items():
        conv = root.get_submodule(name.rpartition(".")[0])
        hooks.append(conv.register_forward_pre_hook(partial(_keep_input, seen, layer)))
        made = fused.get(f"layers.{layer}.ssm")
        if made is not None:
            before = made[1][: made[1].index(f"layers.{layer}.ssm.in.x")]
            start = sum(view.info(role).shape[0] for role in before)
            projection = root.get_submodule(made[0].rpartition(".")[0])
            part = slice(start, start + len(kernel))
            hooks.append(projection.register_forward_hook(partial(_keep_part, seen, layer, part)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _keep_input(seen: dict[int, Tensor], layer: int, module: Any, args: tuple[Tensor, ...]) -> None:
    import torch

    # torch's own convolutions take channels first.
    seen[layer] = args[0].transpose(1, 2) if isinstance(module, torch.nn.Conv1d) else args[0]


def _keep_part(
    seen: dict[int, Tensor], layer: int, part: slice, module: Any, args: tuple[Tensor, ...], out: Tensor
) -> None:
    seen[layer] = out[..., part]


def _ones(model: Model, kernels: Kernels) -> dict[str, Tensor]:
    import torch

    return {name: torch.ones_like(model.tensors[name]) for name, *_ in kernels.values()}


def _states(model: Model, batch: Batch, tensors: dict[str, Tensor]) -> list[float]:
    """Return the asymmetry of the residual stream's mean over positions, before each layer and after all."""
    import torch

    reverse = {**batch, "tokens": batch["tokens"].flip(1)}
    with torch.no_grad():
        one, other = (model.forward(b, record=True, tensors=tensors or None).hidden for b in (batch, reverse))
    if not one:
        raise SourceError(f"The models of family {model.family.name!r} record no hidden states to compare.")
    return [asymmetry(x.double().mean(1), y.double().mean(1)) for x, y in zip(one, other, strict=True)]


def _padded(row: np.ndarray[Any, Any], length: int) -> np.ndarray[Any, Any]:
    return np.pad(row, (0, length - len(row)), constant_values=np.nan)


@hookimpl
def ckpt_analyzers() -> list[type[Analyzer]]:
    """Provide the analyzer `asymmetry`."""
    return [Asymmetry]
