"""Ours and the peers of `hessian.py` behind one form: an operator with products, and a solver of the top eigenvalue."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass
class Operator:
    """Products with the Hessian of size x size, counted."""

    size: int
    work: Callable[[Any], Any]
    count: int = 0

    def product(self, v: Any) -> Any:
        """Return the product as whatever the package makes of v."""
        self.count += 1
        return self.work(v)


def ours(model: nn.Module, data: Any) -> Operator:
    """Return ours: double backward through a graph that is kept."""
    from ckpt_plugins.hessian import Curvature

    def loss(params: Any) -> tuple[torch.Tensor, None]:
        return nn.functional.cross_entropy(torch.func.functional_call(model, params, (data[0],)), data[1]), None

    curvature = Curvature([(1.0, loss)], dict(model.named_parameters()))
    return Operator(curvature.size, curvature.matvec)


def pyhessian(model: nn.Module, data: Any) -> tuple[Any, Operator]:
    """Return PyHessian's object, which keeps a graph, and its products."""
    package = importlib.import_module("pyhessian.hessian")  # the package's attribute of that name is the class

    for p in model.parameters():
        p.grad = None
    found = package.hessian(model, nn.CrossEntropyLoss(), data=data, cuda=False)
    sizes = [p.numel() for p in found.params]

    def work(v: np.ndarray) -> np.ndarray:
        pieces = [t.view_as(p) for t, p in zip(torch.split(torch.from_numpy(v), sizes), found.params, strict=True)]
        result = package.hessian_vector_product(found.gradsH, found.params, pieces)
        return torch.cat([t.reshape(-1) for t in result]).numpy()

    return found, Operator(sum(sizes), work)


def curvlinops(model: nn.Module, data: Any) -> Operator:
    """Return curvlinops' operator."""
    import curvlinops as package

    params = [p for p in model.parameters() if p.requires_grad]
    kwargs = {"check_deterministic": False}
    operator = package.HessianLinearOperator(model, nn.CrossEntropyLoss(), params, [data], **kwargs)
    return Operator(operator.shape[0], lambda v: (operator @ torch.from_numpy(v)).detach().numpy())


def eigenthings(model: nn.Module, data: Any) -> tuple[Any, Operator]:
    """Return hessian-eigenthings' operator and its products."""
    import hessian_eigenthings as package

    def loss(module: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(module(batch[0]), batch[1])

    found = package.HessianOperator(model, [data], loss)
    return found, Operator(found.size, lambda v: found.matvec(torch.from_numpy(v)).detach().numpy())


def operators(model: nn.Module, data: Any) -> dict[str, Operator]:
    """Return products of all packages."""
    return {
        "ours": ours(model, data),
        "PyHessian": pyhessian(model, data)[1],
        "curvlinops": curvlinops(model, data),
        "hessian-eigenthings": eigenthings(model, data)[1],
    }


def solve_ours(model: nn.Module, data: Any, tol: float, seed: int) -> tuple[float, int]:
    """Return eigenvalue and products of Lanczos that stops on the residual."""
    from ckpt_plugins.lanczos import lanczos

    operator = ours(model, data)
    found = lanczos(operator.product, operator.size, np.random.default_rng(seed), tol=tol, dtype=np.float32)
    return float(found.values[0]), operator.count


def solve_pyhessian(model: nn.Module, data: Any, tol: float, seed: int) -> tuple[float, int]:
    """Return eigenvalue and products of power iteration that stops when the value stalls."""
    package = importlib.import_module("pyhessian.hessian")

    torch.manual_seed(seed)
    found, _ = pyhessian(model, data)
    plain, count = package.hessian_vector_product, 0

    def counted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        return plain(*arguments)

    package.hessian_vector_product = counted
    try:
        values, _ = found.eigenvalues(maxIter=200, tol=tol)
    finally:
        package.hessian_vector_product = plain
    return float(values[0]), count


def solve_scipy(model: nn.Module, data: Any, tol: float, seed: int) -> tuple[float, int]:
    """Return eigenvalue and products of scipy's eigsh on curvlinops' operator, as its documentation does."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    operator = curvlinops(model, data)
    start = np.random.default_rng(seed).standard_normal(operator.size).astype("f4")
    wrapped = LinearOperator((operator.size, operator.size), matvec=operator.product, dtype="f4")
    values = eigsh(wrapped, k=1, which="LA", tol=tol, v0=start, return_eigenvectors=False)
    return float(values[0]), operator.count


def solve_eigenthings(model: nn.Module, data: Any, steps: int, seed: int) -> tuple[float, int]:
    """Return eigenvalue and products of hessian-eigenthings' Lanczos, which takes a number of steps."""
    from hessian_eigenthings.algorithms.lanczos import lanczos

    found, operator = eigenthings(model, data)
    plain, found.matvec = found.matvec, lambda v: (setattr(operator, "count", operator.count + 1), plain(v))[1]
    values = lanczos(found, k=1, max_iter=steps, which="LA", seed=seed).eigenvalues
    return float(values[0]), operator.count


Solver = Callable[[nn.Module, Any, Any, int], tuple[float, int]]
TOLERANCES = (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-5)
SOLVERS: dict[str, tuple[Sequence[Any], Solver]] = {
    "ours": (TOLERANCES, solve_ours),
    "PyHessian": (TOLERANCES, solve_pyhessian),
    "curvlinops, scipy": (TOLERANCES, solve_scipy),
    "hessian-eigenthings": ((4, 6, 8, 10, 12, 14, 16, 20, 24, 32), solve_eigenthings),
}
