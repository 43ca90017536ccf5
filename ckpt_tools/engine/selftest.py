"""Whether a device computes what the CPU does: small problems, their errors, and the largest errors allowed.

Errors are relative to what the rounding of the arithmetic explains, so that 1 is the limit of each:

- a matrix product of inner dimension k, to 2 k u |A| |B| with u the unit roundoff (Higham, Accuracy and Stability of
  Numerical Algorithms, 2002, section 3.5); products in TF32 miss it by far;
- singular values through Gram matrix and eigenvalues on the device, to the bounds that `spectra` states for them;
- loss, gradient and Hessian-vector product of a small network, in norm to `CURVATURE`, some twenty times what the CPU
  loses in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..arrays import has_float64, to_numpy
from ..errors import OptionError
from ..spectra import bounded, singular_values
from ..squares import sent_rows

Array = NDArray[np.float64]

INNER = 64
"""Inner dimension of the products: the longer it is, the less TF32 differs from the limit."""
VOCABULARY, WIDTH = 11, 16
DERIVATIVES = ("loss", "gradient", "Hessian-vector product")
CURVATURE = 100
"""Largest error of derivatives in units of the dtype's rounding, relative to their length."""


@cache
def require_accurate(device: str) -> None:
    """Raise OptionError when a device misses a limit; each device is tried once by each process."""
    missed = [f"{what}: error {error:.2g} of what is allowed" for what, error in errors(device) if not error <= 1]
    if missed:
        raise OptionError(
            f"The device {device} does not compute as the CPU does ({'; '.join(missed)}). Leave --device out, or find "
            "out what is wrong with it: driver, torch build, or the device itself."
        )


def errors(device: str) -> Iterator[tuple[str, float]]:
    """Yield what was tried with its error relative to the largest allowed."""
    for dtype in ("float32", "float64") if has_float64(device) else ("float32",):
        yield f"product in {dtype}", _product(device, dtype)
        for what, error in _derivatives(device, dtype):
            yield f"{what} in {dtype}", error
    if has_float64(device):
        for what, matrix in _matrices():
            yield f"singular values, {what}", _spectrum(device, matrix)


def _product(device: str, dtype: str) -> float:
    import torch

    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.standard_normal(s).astype(dtype)) for s in ((256, INNER), (INNER, 128)))
    found = to_numpy(a.to(device) @ b.to(device)).astype(np.float64)
    exact, scale = (to_numpy(x @ y) for x, y in ((a.double(), b.double()), (a.double().abs(), b.double().abs())))
    allowed = INNER * float(np.finfo(dtype).eps) * scale
    return float((np.abs(found - exact) / allowed).max())


def _derivatives(device: str, dtype: str) -> Iterator[tuple[str, float]]:
    """Yield the errors of loss, gradient and Hessian-vector product."""
    for what, found, exact in zip(DERIVATIVES, _network(device, dtype), _network("cpu", "float64"), strict=True):
        distance = np.linalg.norm(found - exact) / np.linalg.norm(exact)
        yield what, float(distance) / (CURVATURE * float(np.finfo(dtype).eps))


def _network(device: str, dtype: str) -> list[Array]:
    """Return loss, gradient and Hessian-vector product of a network of the parts that language models have."""
    import torch
    from torch.nn.functional import cross_entropy, layer_norm

    rng = np.random.default_rng(2)
    tokens = torch.from_numpy(rng.integers(0, VOCABULARY, (4, 12))).to(device)
    shapes = ((VOCABULARY, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH,), (WIDTH, VOCABULARY))
    drawn = [torch.from_numpy(rng.standard_normal(shape).astype("f4")).to(device) for shape in (*shapes, *shapes)]
    embed, query, value, gain, unembed = params = [t.to(getattr(torch, dtype)).requires_grad_() for t in drawn[:5]]
    x = embed[tokens]
    x = x + torch.softmax(x @ query @ x.mT / WIDTH, -1) @ x @ value
    logits = torch.tanh(layer_norm(x, (WIDTH,), gain)) @ unembed
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    slope = torch.autograd.grad(loss, params, create_graph=True)
    product = torch.autograd.grad(slope, params, [t.to(loss.dtype) for t in drawn[5:]])
    flat = (torch.cat([t.flatten() for t in part]) for part in ([loss], slope, product))
    return [to_numpy(t).astype(np.float64) for t in flat]


def _matrices() -> Iterator[tuple[str, Array]]:
    """Yield tall matrices of known kinds of spectra."""
    rng = np.random.default_rng(1)
    flat = rng.standard_normal((192, 128))
    yield "flat", flat
    yield "graded", flat * np.geomspace(1, 1e-4, 128)
    left, right = np.linalg.qr(flat)[0], np.linalg.qr(rng.standard_normal((128, 128)))[0]
    yield "clustered", (left * np.repeat([1.0, 1e-3], 64)) @ right


def _spectrum(device: str, matrix: Array) -> float:
    """Return the error of singular values relative to the sum of both routes' bounds; infinite where there are none."""
    squares = sent_rows([matrix], device)
    if squares is None:
        return float("inf")
    values, bound, _ = bounded(squares, 1.0)
    exact = singular_values(matrix, exact=True)
    return float((np.abs(values - exact.values) / (bound + exact.error)).max())
