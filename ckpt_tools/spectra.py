"""Singular values of weight matrices in float64, each with a bound on its error.

The fast route squares: the eigenvalues of the Gram matrix on the short side, `lambda_i = s_i^2`, cost 2 to 4 times
less than an SVD and need only the small Gram matrix in float64. Squaring loses small values: an eigenvalue is known to

    delta_i = eps * ((8 + sqrt(n) / 2) * lambda_1 + 200 * lambda_i)

(n the short side), hence a singular value to `delta_i / (2 s_i)`. Weyl's inequality gives the form; the constants are
at least 1.6 times the worst seen over flat, power-law, geometric, spiked and clustered spectra, n = 2 to 768, dense and
graded, rounded to float32 and float16 or not. Where some value is not resolved from zero, or the bounds add up to more
than `tol` of the nuclear norm, the singular values come from a decomposition of the matrix itself, good to a few
`eps * s_1`. Eigenvalues are never floored: a spectrum is either resolved or decomposed.

Products `A B` are handled through their small inner dimension: with `A^T A = L L^T`, the squared singular values are
the eigenvalues of `L^T (B B^T) L`; where that is not accurate enough, they are those of `R_A R_B^T` from two QRs.

With a `device` other than "cpu" the Gram route of large matrices is taken there, with the same bounds (`squares`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import blocked
from .arrays import CPU
from .blocked import Array, Blocks, Floats
from .squares import RELATIVE, flat_error, squares_of_rows, squares_of_stack

Bools = NDArray[np.bool_]
Resolved = tuple[Floats, Floats, Bools]

TORCH_FROM = 3000
"""Size from which torch's symmetric eigenvalues are faster than numpy's."""

_EPS = float(np.finfo(np.float64).eps)
_SMALLEST, _LARGEST = 1e-250, 1e250
"""Squares outside lose digits to underflow or overflow."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values `[..., k]`, descending along the last axis; leading axes are a batch.

    `error` has the same shape and bounds the absolute error of each value. `route` says where they come from: "gram",
    "svd", "qr", or "mixed" in a batch. All values and errors of a matrix with a NaN or an infinity are NaN.
    """

    values: Floats
    error: Floats
    route: str

    @property
    def nuclear_error(self) -> Floats:
        """Bound on the relative error of the sum of the values `[...]`; 0 for a zero matrix."""
        total = np.asarray(self.values.sum(axis=-1))
        return np.asarray(np.divide(self.error.sum(axis=-1), total, out=np.zeros_like(total), where=total != 0))


def singular_values(matrix: Array, *, tol: float = 1e-10, exact: bool = False, device: str = CPU) -> Spectrum:
    """Return the `min(m, n)` singular values of a matrix `[m, n]` of any real dtype.

    Beside the input, memory is the Gram matrix and one float64 tile. `exact` skips the Gram route. `tol` limits the
    bound on the relative error of the nuclear norm. Raises ValueError when the array is not 2-D.
    """
    if matrix.ndim != 2:
        raise ValueError(f"Singular values need a 2-D array, got shape {matrix.shape}; see singular_values_batch.")
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    return spectrum_of_rows(lambda: (tall,), tall.shape, tol=tol, exact=exact, device=device)


def spectrum_of_rows(
    blocks: Blocks, shape: Sequence[int], *, tol: float = 1e-10, exact: bool = False, device: str = CPU
) -> Spectrum:
    """Return the singular values of a matrix given as blocks of rows.

    `blocks()` yields the blocks in order and is called again when the Gram route is not accurate enough (then by
    blocked QR). A tall matrix is never resident; a wide one is, in its own dtype. Raises ValueError when the blocks do
    not add up to `shape`.
    """
    m, n = shape
    if m == 0 or n == 0:
        return Spectrum(np.zeros(0), np.zeros(0), "gram")
    if m < n:
        return singular_values(blocked.whole(blocks, (m, n), None), tol=tol, exact=exact, device=device)
    if not exact:
        found = squares_of_rows(blocked.tiles(blocks, (m, n), 1, widen=False), (m, n), device)
        values, error, ok = _resolve(blocked.gram(blocks, (m, n)), tol) if found is None else bounded(found, tol)
        if ok:
            return Spectrum(values, error, "gram")
    return _decompose(blocks, (m, n))


def singular_values_batch(stack: Array, *, tol: float = 1e-10, device: str = CPU) -> Spectrum:
    """Return the singular values `[..., min(m, n)]` of a stack of matrices `[..., m, n]`.

    Each matrix whose Gram route is not accurate enough is decomposed by itself. Raises ValueError below 2-D.
    """
    if stack.ndim < 2:
        raise ValueError(f"A stack of matrices needs at least 2 dimensions, got shape {stack.shape}.")
    tall = stack if stack.shape[-2] >= stack.shape[-1] else stack.swapaxes(-1, -2)
    lead, (m, n) = tall.shape[:-2], tall.shape[-2:]
    if tall.size == 0:
        return Spectrum(np.zeros((*lead, n)), np.zeros((*lead, n)), "gram")
    found = squares_of_stack(tall, device)
    resolved = _resolve(blocked.grams(tall), tol) if found is None else bounded(found, tol)
    return _mended(*resolved, lambda at: _decompose(lambda: (tall[at],), (m, n)))


def product_singular_values(a: Array, b: Array, *, tol: float = 1e-11) -> Spectrum:
    """Return the leading `min(m, r, n)` singular values of `a @ b`, `a` `[..., m, r]` and `b` `[..., r, n]`.

    The product has no others but zeros, and is not formed: work is that of two thin factors and of `r x r` matrices.
    Leading axes broadcast. `tol` is that of `singular_values`; 0 always takes the two QRs. Raises ValueError when the
    inner dimensions differ.
    """
    m, r, n = a.shape[-2], a.shape[-1], b.shape[-1]
    if b.shape[-2] != r:
        raise ValueError(f"Inner dimensions differ: {a.shape} @ {b.shape}.")
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    k = min(m, r, n)
    if k == 0 or math.prod(lead) == 0:
        return Spectrum(np.zeros((*lead, k)), np.zeros((*lead, k)), "gram")
    resolved = _resolve_product(a, b, tol) if k == r else None
    if resolved is None:
        resolved = np.zeros((*lead, k)), np.zeros((*lead, k)), np.zeros(lead, dtype=bool)
    left, right = (np.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (a, b))
    return _mended(*resolved, lambda at: _decompose_product(left[at], right[at]))


def _resolve(gram: Floats, tol: float, scale: Floats | None = None) -> Resolved:
    """Return values, error bounds and whether they may be used, from Gram matrices `[..., n, n]`.

    Rounding is measured against `scale`, by default the largest eigenvalue.
    """
    with np.errstate(all="ignore"):
        # A NaN or an infinity in a matrix reaches the diagonal of its Gram matrix.
        trace = np.einsum("...ii->...", gram)
        if not math.isfinite(trace.sum()):
            gram = np.where(np.isfinite(trace)[..., None, None], gram, 0.0)
        return bounded(_eigenvalues(gram), tol, scale)


def bounded(squares: Floats, tol: float, scale: Floats | None = None) -> Resolved:
    """Return the same from the eigenvalues `[..., n]` of the Gram matrices, ascending."""
    with np.errstate(all="ignore"):
        squares = squares[..., ::-1]
        top = squares[..., 0] if scale is None else scale
        noise = flat_error(squares.shape[-1]) * top
        values = np.sqrt(squares)
        # sqrt(x) - sqrt(x - d) <= 0.51 d / sqrt(x) once d <= x / 50, which `resolved` grants.
        error = (0.51 * noise)[..., None] / values + (0.51 * RELATIVE) * values
        resolved = (squares[..., -1] > 50 * noise) & (top > _SMALLEST) & (top < _LARGEST)
        return values, error, resolved & (np.add.reduce(error, -1) <= tol * np.add.reduce(values, -1))


def _resolve_product(a: Array, b: Array, tol: float) -> Resolved:
    """Return the same for products; where `A^T A` is singular they may not be used."""
    left, right = blocked.grams(a), blocked.grams(b.swapaxes(-1, -2))
    lower, regular = _cholesky(left)
    with np.errstate(all="ignore"):
        core = lower.swapaxes(-1, -2) @ right @ lower
        scale = np.linalg.norm(left, axis=(-2, -1)) * np.linalg.norm(right, axis=(-2, -1))
    values, error, ok = _resolve(core, tol, np.asarray(scale))
    return values, error, ok & regular


def _cholesky(gram: Floats) -> tuple[Floats, Bools]:
    """Return the Cholesky factors `[..., n, n]`, zero where there is none, and where there is one."""
    regular = np.ones(gram.shape[:-2], dtype=bool)
    with suppress(np.linalg.LinAlgError):
        return np.asarray(np.linalg.cholesky(gram)), regular
    lower = np.zeros_like(gram)
    for at in np.ndindex(regular.shape):  # numpy does not say which of them is singular
        try:
            lower[at] = np.linalg.cholesky(gram[at])
        except np.linalg.LinAlgError:
            regular[at] = False
    return lower, regular


def _mended(values: Floats, error: Floats, ok: Bools, decompose: Callable[[tuple[int, ...]], Spectrum]) -> Spectrum:
    """Return the batch with every matrix that is not `ok` decomposed by itself."""
    route = "gram"
    for count, index in enumerate(np.argwhere(~ok), start=1):
        at = tuple(index)
        one = decompose(at)
        values[at], error[at] = one.values, one.error
        route = one.route if count == ok.size else "mixed"
    return Spectrum(values, error, route)


def _eigenvalues(gram: Floats) -> Floats:
    if gram.shape[-1] >= TORCH_FROM:
        with suppress(ImportError):
            import torch

            return np.asarray(torch.linalg.eigvalsh(torch.from_numpy(gram)).numpy(), dtype=np.float64)
    return np.asarray(np.linalg.eigvalsh(gram), dtype=np.float64)


def _decompose(blocks: Blocks, shape: tuple[int, int]) -> Spectrum:
    """Decompose a tall matrix: SVD when it is small or nearly square, else blocked QR and the SVD of its R."""
    m, n = shape
    if m < 2 * n or 8 * m * n <= blocked.TILE_BYTES:
        return _svd(blocked.whole(blocks, shape, np.float64), "svd")
    triangle = np.zeros((0, n))
    with np.errstate(all="ignore"):
        for tile in blocked.tiles(blocks, shape, n):
            triangle = _triangle(np.concatenate([triangle, tile]))
    return _svd(triangle, "qr")


def _decompose_product(a: Array, b: Array) -> Spectrum:
    with np.errstate(all="ignore"):
        left, right = _triangle(a), _triangle(b.T)
        return _svd(left @ right.T, "qr", float(np.linalg.norm(left) * np.linalg.norm(right)))


def _triangle(matrix: Array) -> Floats:
    return np.asarray(np.linalg.qr(matrix.astype(np.float64, copy=False), mode="r"), dtype=np.float64)


def _svd(matrix: Floats, route: str, scale: float | None = None) -> Spectrum:
    k = min(matrix.shape)
    if not np.isfinite(matrix).all():
        return Spectrum(np.full(k, np.nan), np.full(k, np.nan), route)
    values = np.asarray(np.linalg.svd(matrix, compute_uv=False), dtype=np.float64)
    top = float(values[0]) if scale is None else scale
    return Spectrum(values, np.full(k, _EPS * (8 + 2 * math.sqrt(k)) * top), route)
