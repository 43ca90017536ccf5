"""Products of a loss's curvature with vectors, by double backward through a graph that is built once.

The Hessian product is H v = d/dtheta (g . v) with g the gradient; with the graph of g retained each product costs about
one more backward pass of g (Pearlmutter, Neural Computation 6, 1994). The generalised Gauss-Newton matrix is
G = J^T (d2 loss / d z2) J with z the model's outputs (Schraudolph, Neural Computation 14, 2002); it is positive
semidefinite when the loss is convex in z, and J v is two backward passes through J^T u.

Only `torch.autograd.grad` is used: forward-over-forward-over-reverse compositions (`torch.func.hessian`,
`jacrev(jacrev)`, `jvp(jacrev)`) give wrong second derivatives through `layer_norm` with affine weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd import grad

from ckpt_tools import to_numpy

Vector = NDArray[Any]
Tensors = dict[str, torch.Tensor]
Part = tuple[float, Callable[[Tensors], tuple[torch.Tensor, torch.Tensor | None]]]
_Product = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]


class Curvature:
    """The Hessian, or Gauss-Newton matrix, of a loss in the given parameters, as an operator on flat vectors `[n]`.

    `parts` are (share, function) pairs: the function returns (loss, outputs) for parameters, the whole loss is the sum
    of share * loss. One part keeps its graph in memory; several rebuild theirs for each product, which bounds memory
    by the largest part at about 1.5 times the cost. Vectors have the parameters' dtype; they are arrays, wherever the
    parameters are.
    """

    def __init__(
        self, parts: Sequence[Part], params: Mapping[str, torch.Tensor], *, gauss_newton: bool = False
    ) -> None:
        self.params = {name: p.detach().requires_grad_() for name, p in params.items()}
        self.size = sum(p.numel() for p in self.params.values())
        self.dtype = str(next(iter(self.params.values())).dtype).removeprefix("torch.")
        self._parts = list(parts)
        self._linearise = self._gauss_newton if gauss_newton else self._hessian
        self._kept: _Product | None = None
        self.loss, self.gradient = self._first()

    @property
    def products_kept(self) -> bool:
        """Whether the graph is retained between products."""
        return self._kept is not None

    def _first(self) -> tuple[float, Vector]:
        """Return loss and flat gradient, and keep the graph of a single part."""
        loss, gradient = 0.0, np.zeros(self.size, self.dtype)
        for share, function in self._parts:
            value, grads, product = self._linearise(function)
            loss += share * float(value.detach())
            gradient += share * self._flat(grads)
            if len(self._parts) == 1:
                self._kept = product
        return loss, gradient

    def matvec(self, v: Vector) -> Vector:
        """Return the product with a flat vector."""
        pieces = self._pieces(v)
        if self._kept is not None:
            return self._parts[0][0] * self._flat(self._kept(pieces))
        total = np.zeros(self.size, self.dtype)
        for share, function in self._parts:
            total += share * self._flat(self._linearise(function)[2](pieces))
        return total

    def _hessian(self, function: Any) -> tuple[torch.Tensor, Sequence[torch.Tensor], _Product]:
        params = tuple(self.params.values())
        loss, _ = function(self.params)
        grads = grad(loss, params, create_graph=True, materialize_grads=True)
        return loss, grads, _vjp(grads, params)

    def _gauss_newton(self, function: Any) -> tuple[torch.Tensor, Sequence[torch.Tensor], _Product]:
        params = tuple(self.params.values())
        loss, outputs = function(self.params)
        slope = grad(loss, outputs, create_graph=True)
        u = torch.zeros_like(outputs, requires_grad=True)
        back = grad(outputs, params, u, create_graph=True, materialize_grads=True)
        forward, curve, pull = _vjp(back, (u,)), _vjp(slope, (outputs,)), _vjp((outputs,), params)
        grads = grad(loss, params, retain_graph=True, materialize_grads=True)
        return loss, grads, lambda v: pull(curve(forward(v)))

    def _pieces(self, v: Vector) -> list[torch.Tensor]:
        params = list(self.params.values())
        flat = torch.from_numpy(np.ascontiguousarray(v, dtype=self.dtype)).to(params[0].device)
        pieces = torch.split(flat, [p.numel() for p in params])
        return [piece.view_as(p) for piece, p in zip(pieces, params, strict=True)]

    def _flat(self, tensors: Sequence[torch.Tensor]) -> Vector:
        return to_numpy(torch.cat([t.detach().reshape(-1) for t in tensors]))


def _vjp(outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> _Product:
    """Return v -> J^T v of outputs by inputs, repeatable; outputs that depend on nothing contribute nothing."""
    live = [i for i, o in enumerate(outputs) if o.requires_grad]

    def product(v: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        if not live:
            return [torch.zeros_like(i) for i in inputs]
        return grad([outputs[i] for i in live], inputs, [v[i] for i in live], retain_graph=True, materialize_grads=True)

    return product
