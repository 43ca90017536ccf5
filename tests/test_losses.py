"""Chunked cross entropy against the plain one, to second order, and the memory it saves."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ckpt_tools.losses import linear_cross_entropy

pytestmark = pytest.mark.slow


def inputs(positions: int = 13, d: int = 4, vocabulary: int = 7) -> tuple[list[Tensor], Tensor]:
    g = torch.Generator().manual_seed(0)
    h, w, b = (
        torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()
        for shape in ((positions, d), (vocabulary, d), (vocabulary,))
    )
    return [h, w, b], torch.randint(0, vocabulary, (positions,), generator=g)


def plain(h: Tensor, w: Tensor, t: Tensor, b: Tensor | None = None) -> Tensor:
    return functional.cross_entropy(functional.linear(h, w, b), t)


def derivatives(loss: Tensor, at: list[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the gradient of 3 * loss and its product with a fixed vector; the factor tests the chain rule."""
    g = torch.Generator().manual_seed(1)
    v = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in at]
    first = torch.autograd.grad(3 * loss.square(), at, create_graph=True)
    return first, torch.autograd.grad(first, at, v, retain_graph=True)


@pytest.mark.parametrize("chunk", [1, 5, 13, 100])
@pytest.mark.parametrize("with_bias", [True, False])
def test_loss_gradient_and_hessian_product_equal_the_plain_ones(chunk: int, with_bias: bool) -> None:
    (h, w, b), t = inputs()
    at, bias = ([h, w, b], b) if with_bias else ([h, w], None)
    # Upstream layers and a tied use of the weight, so that cotangents of every kind flow.
    hidden = torch.tanh(h) + w.mean(0)
    ours, theirs = linear_cross_entropy(hidden, w, t, bias, chunk=chunk), plain(hidden, w, t, bias)
    torch.testing.assert_close(ours, theirs)
    for mine, reference in zip(derivatives(ours, at), derivatives(theirs, at), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12)


def test_numerical_gradients_agree() -> None:
    (h, w, b), t = inputs(5, 3, 4)
    assert torch.autograd.gradcheck(lambda *x: linear_cross_entropy(x[0], x[1], t, x[2], chunk=2), (h, w, b))
    assert torch.autograd.gradgradcheck(lambda *x: linear_cross_entropy(x[0], x[1], t, x[2], chunk=2), (h, w, b))


PEAK = """
import sys, torch
from pathlib import Path
from torch.nn import functional
from ckpt_tools.losses import linear_cross_entropy

def measure(kind, positions, vocabulary):
    h = torch.randn(positions, 16, requires_grad=True)
    w = torch.randn(vocabulary, 16, requires_grad=True)
    t = torch.randint(0, vocabulary, (positions,))
    chunked = kind == "chunked"
    loss = linear_cross_entropy(h, w, t, chunk=16) if chunked else functional.cross_entropy(h @ w.T, t)
    g = torch.autograd.grad(loss, (h, w), create_graph=True)
    for _ in range(2):
        torch.autograd.grad(g, (h, w), (torch.ones_like(h), torch.ones_like(w)), retain_graph=True)
    # Unlike ru_maxrss, this peak does not start at that of the parent process.
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024

print(-measure(sys.argv[1], 64, 2000) + measure(sys.argv[1], 512, 16000))
"""


def test_memory_stays_below_that_of_one_set_of_logits() -> None:
    def peak(kind: str) -> float:
        return float(subprocess.run([sys.executable, "-c", PEAK, kind], check=True, capture_output=True).stdout)

    logits = 512 * 16000 * 4 / 2**20
    # The plain loss holds several arrays of that size.
    assert peak("chunked") < logits < 3 * logits < peak("plain")
