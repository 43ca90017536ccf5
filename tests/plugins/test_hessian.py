"""Curvature products against dense matrices made by central differences of the float64 gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from ckpt_plugins.hessian import Curvature, Tensors
from ckpt_plugins.lanczos import hutch_plus_plus, lanczos

pytestmark = pytest.mark.slow

Loss = Callable[[Tensors], Tensor]
Case = tuple[Callable[[Tensors], tuple[Tensor, Tensor]], Tensors]


class Scan(nn.Module):
    """A diagonal state-space layer, h_t = a_t h_{t-1} + b_t x_t with input-dependent a_t, one step at a time."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.randn(d))
        self.gate = nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        state, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            step = functional.softplus(self.gate(x[:, t]))
            state = torch.exp(-step * self.log_rate.exp()) * state + step * x[:, t]
            out.append(state)
        return torch.stack(out, dim=1)


class Attend(nn.Module):
    """Causal softmax attention with one head."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(d, 3 * d)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        mask = torch.ones_like(scores, dtype=torch.bool).triu(1)
        attended: Tensor = scores.masked_fill(mask, -torch.inf).softmax(-1) @ v
        return attended


def sequence_model(middle: nn.Module, seed: int, d: int = 4, vocabulary: int = 5) -> Case:
    """Embedding, LayerNorm with random affine weights, `middle`, LayerNorm, head; loss is next-token cross entropy."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Embedding(vocabulary, d), nn.LayerNorm(d), middle, nn.LayerNorm(d), nn.Linear(d, vocabulary)
    ).double()
    for p in model.parameters():
        p.data += 0.5 * torch.randn_like(p)
    tokens = torch.randint(0, vocabulary, (3, 6))

    def part(params: Tensors) -> tuple[Tensor, Tensor]:
        logits = functional_call(model, params, tokens[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()), logits

    return part, {name: p.detach() for name, p in model.named_parameters()}


@pytest.fixture(autouse=True)
def _own_generator() -> None:
    """Keep the global generator as it was."""
    with torch.random.fork_rng():
        yield  # type: ignore[misc]


def mlp(seed: int) -> Case:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 2)).double()
    for p in model.parameters():
        p.data += 0.5 * torch.randn_like(p)
    x, y = torch.randn(7, 3).double(), torch.randn(7, 2).double()

    def part(params: Tensors) -> tuple[Tensor, Tensor]:
        out = functional_call(model, params, x)
        return (out - y).square().mean(), out

    return part, {name: p.detach() for name, p in model.named_parameters()}


CASES = {
    "mlp": lambda: mlp(0),
    "attention": lambda: sequence_model(Attend(4), 1),
    "state space": lambda: sequence_model(Scan(4), 2),
}


def unflatten(v: Tensor, like: Tensors) -> Tensors:
    sizes = [p.numel() for p in like.values()]
    return {name: piece.view_as(like[name]) for name, piece in zip(like, v.split(sizes), strict=True)}


def flatten(tensors: Tensors) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors.values()])


def differences(loss: Loss, params: Tensors, h: float = 1e-4) -> NDArray[np.float64]:
    """Return the dense Hessian by fourth-order central differences of the gradient."""
    origin = flatten(params)

    def gradient(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(loss(unflatten(at, params)), at)[0]

    rows = []
    for axis in torch.eye(origin.numel(), dtype=torch.float64):
        near = gradient(origin + h * axis) - gradient(origin - h * axis)
        far = gradient(origin + 2 * h * axis) - gradient(origin - 2 * h * axis)
        rows.append((8 * near - far) / (12 * h))
    dense = torch.stack(rows).numpy()
    return np.asarray((dense + dense.T) / 2)


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[Case, NDArray[np.float64]]:
    part, params = CASES[request.param]()
    return (part, params), differences(lambda p: part(p)[0], params)


def dense_of(curvature: Curvature) -> NDArray[np.float64]:
    return np.stack([curvature.matvec(axis) for axis in np.eye(curvature.size)])


def test_hessian_equals_the_central_differences(case: tuple[Case, NDArray[np.float64]]) -> None:
    (part, params), dense = case
    found = dense_of(Curvature([(1.0, part)], params))
    np.testing.assert_allclose(found, dense, atol=1e-6 * np.abs(dense).max())


def test_eigenvalues_and_trace_equal_the_dense_ones(case: tuple[Case, NDArray[np.float64]]) -> None:
    (part, params), dense = case
    curvature = Curvature([(1.0, part)], params)
    exact = np.linalg.eigvalsh(dense)[::-1]
    ritz = lanczos(curvature.matvec, curvature.size, np.random.default_rng(0), k=4, tol=1e-7, max_products=200)
    np.testing.assert_allclose(ritz.values[:4], exact[:4], rtol=1e-6)
    full = hutch_plus_plus(curvature.matvec, curvature.size, np.random.default_rng(0), products=3 * curvature.size)
    assert full.value == pytest.approx(np.trace(dense), rel=1e-6)


def test_loss_and_gradient_come_with_the_operator(case: tuple[Case, NDArray[np.float64]]) -> None:
    (part, params), _ = case
    at = {name: p.clone().requires_grad_() for name, p in params.items()}
    loss = part(at)[0]
    loss.backward()
    curvature = Curvature([(1.0, part)], params)
    assert curvature.loss == loss.item()
    np.testing.assert_allclose(curvature.gradient, flatten({n: p.grad for n, p in at.items()}).numpy(), rtol=1e-12)


def test_block_is_the_block_of_the_whole(case: tuple[Case, NDArray[np.float64]]) -> None:
    (part, params), dense = case
    name = next(n for n, p in params.items() if p.ndim == 1)
    start = sum(p.numel() for p in list(params.values())[: list(params).index(name)])
    stop = start + params[name].numel()
    block = Curvature([(1.0, lambda p: part({**params, **p}))], {name: params[name]})
    np.testing.assert_allclose(dense_of(block), dense[start:stop, start:stop], atol=1e-6 * np.abs(dense).max())


def test_parts_add_up(case: tuple[Case, NDArray[np.float64]]) -> None:
    (part, params), dense = case
    double = Curvature([(0.25, part), (0.75, part)], params)
    assert not double.products_kept
    np.testing.assert_allclose(dense_of(double), dense, atol=1e-6 * np.abs(dense).max())


def test_gauss_newton_is_jacobian_times_output_curvature(case: tuple[Case, NDArray[np.float64]]) -> None:
    (part, params), _ = case
    origin = flatten(params)
    outputs = part(params)[1]
    # Reverse mode once and differences for the rest: no nested functional transforms in an oracle for their faults.
    jacobian = torch.autograd.functional.jacobian(lambda at: part(unflatten(at, params))[1].reshape(-1), origin)
    n, classes = outputs.numel(), outputs.shape[-1]
    if outputs.ndim == 3:
        q = outputs.reshape(-1, classes).softmax(-1)
        blocks = (torch.diag_embed(q) - q[:, :, None] * q[:, None, :]) / len(q)
        middle = torch.block_diag(*blocks)
    else:
        middle = 2 * torch.eye(n, dtype=torch.float64) / n
    dense = (jacobian.T @ middle @ jacobian).numpy()
    found = dense_of(Curvature([(1.0, part)], params, gauss_newton=True))
    np.testing.assert_allclose(found, dense, atol=1e-10 * np.abs(dense).max())
    assert np.linalg.eigvalsh(found).min() > -1e-12 * np.abs(dense).max()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_functional_hessian_is_wrong_through_layer_norm_and_ours_is_not() -> None:
    # If this fails because `torch.func.hessian` has become right, the warning in the module docstring can go.
    part, params = mlp(0)
    origin, dense = flatten(params), differences(lambda p: part(p)[0], params)
    scale = np.abs(dense).max()
    theirs = torch.func.hessian(lambda at: part(unflatten(at, params))[0])(origin).detach().numpy()
    ours = dense_of(Curvature([(1.0, part)], params))
    assert np.abs(theirs - dense).max() > 1e-3 * scale
    assert np.abs(ours - dense).max() < 1e-6 * scale


def test_quadratic_with_known_spectrum() -> None:
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    values = np.linspace(-3, 20, 30)
    h = torch.from_numpy((q * values) @ q.T)
    curvature = Curvature([(1.0, lambda p: (p["x"] @ h @ p["x"] / 2, None))], {"x": torch.ones(30).double()})
    ritz = lanczos(curvature.matvec, 30, rng, k=3, tol=1e-10)
    np.testing.assert_allclose(ritz.values[:3], values[::-1][:3], rtol=1e-9)


def test_parameters_without_influence_or_curvature_give_zeros() -> None:
    params = {"used": torch.ones(2).double(), "linear": torch.ones(2).double(), "unused": torch.ones(3).double()}
    curvature = Curvature([(1.0, lambda p: (p["used"].square().sum() + p["linear"].sum(), None))], params)
    assert curvature.matvec(np.ones(7)).tolist() == [2, 2, 0, 0, 0, 0, 0]
    assert curvature.gradient.tolist() == [2, 2, 1, 1, 0, 0, 0]
    flat = Curvature([(1.0, lambda p: (p["x"].sum(), None))], {"x": torch.ones(2)})
    assert flat.matvec(np.ones(2, np.float32)).tolist() == [0, 0] and flat.dtype == "float32"


def test_parameters_are_left_as_they_were() -> None:
    part, params = mlp(0)
    before = {n: p.clone() for n, p in params.items()}
    Curvature([(1.0, part)], params).matvec(np.ones(sum(p.numel() for p in params.values())))
    assert all(torch.equal(params[n], before[n]) and not params[n].requires_grad for n in params)
