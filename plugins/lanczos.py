"""Eigenvalues, trace and spectral density of a symmetric operator known only by its products with vectors.

`lanczos` builds an orthonormal Krylov basis V with V H V^T = T tridiagonal; eigenpairs (theta, s) of T give Ritz pairs
(theta, V^T s) of H whose residual ||H y - theta y|| is |beta_m s_m| exactly, and some eigenvalue of H lies within it
(Parlett, The Symmetric Eigenvalue Problem, 1998, ch. 13). Every new vector is orthogonalised against all earlier ones,
twice, so that no copies of converged eigenvalues appear.

`slq` is stochastic Lanczos quadrature (Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 38, 2017): for random z of
length one, the Ritz values and the squared first components of their s are nodes and weights of z^T f(H) z.

`hutchinson` averages z^T H z over random signs z (Hutchinson, Commun. Stat. 19, 1990). `deflated_trace` takes the trace
inside a given subspace exactly and samples only the complement; with the subspace from a random sketch of H this is
Hutch++ (Meyer, Musco, Musco and Woodruff, SOSA 2021), `hutch_plus_plus`. All three are unbiased.

Vectors are one-dimensional numpy arrays; nothing here knows where the operator comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[Any]
Matvec = Callable[[Vector], Vector]

SMALL = 1e-3
"""An eigenvalue below this share of the largest magnitude counts as converged by the scale of that share."""


@dataclass(frozen=True, eq=False)
class Ritz:
    """Approximate eigenpairs, values descending: `values [m]`, `residuals [m]`, orthonormal `basis [m, n]`.

    `rotation [m, m]` turns the basis into Ritz vectors, one per column; `converged` says whether the residuals asked
    for were met within the products allowed.
    """

    values: NDArray[np.float64]
    residuals: NDArray[np.float64]
    basis: Vector
    rotation: NDArray[np.float64]
    converged: bool

    def vectors(self, k: int) -> Vector:
        """Return the Ritz vectors `[k, n]` of the k largest values."""
        vectors: Vector = self.rotation[:, :k].T @ self.basis
        return vectors

    @property
    def products(self) -> int:
        """How many products with the operator were spent."""
        return len(self.values)


@dataclass(frozen=True)
class Estimate:
    """A stochastic estimate, its standard error (NaN for a single sample), and the products with the operator spent."""

    value: float
    error: float
    products: int


@dataclass(eq=False)
class _Tridiagonal:
    """T and V so far; `beta[-1]` is what the last vector leaves outside the subspace."""

    alpha: list[float]
    beta: list[float]
    basis: Vector

    def eigh(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return Ritz values descending and the eigenvectors of T, one per column."""
        t = np.diag(self.alpha) + np.diag(self.beta[:-1], 1) + np.diag(self.beta[:-1], -1)
        values, vectors = np.linalg.eigh(t)
        return values[::-1], vectors[:, ::-1]


def _growing(matvec: Matvec, start: Vector, steps: int, rng: np.random.Generator | None) -> Iterator[_Tridiagonal]:
    """Yield the tridiagonal form after each product; with `rng`, an exhausted Krylov space continues elsewhere."""
    size, dtype = start.size, np.promote_types(start.dtype, np.float32)
    steps = min(steps, size)
    basis = np.empty((steps, size), dtype)
    basis[0] = start / np.linalg.norm(start)
    t = _Tridiagonal([], [], basis[:0])
    for m in range(steps):
        w = matvec(basis[m]).astype(dtype)
        t.alpha.append(float(basis[m] @ w))
        w = _outside(basis[: m + 1], w)
        t.basis = basis[: m + 1]
        t.beta.append(float(np.linalg.norm(w)))
        tiny = 100 * np.finfo(dtype).eps * max(map(abs, [*t.alpha, *t.beta]))
        exhausted = m + 1 == size or t.beta[-1] <= tiny
        if exhausted:
            t.beta[-1] = 0.0
        yield t
        if exhausted and (rng is None or m + 1 == size):
            return
        if m + 1 < steps:
            if exhausted:
                w = _outside(t.basis, rng.standard_normal(size).astype(dtype))  # type: ignore[union-attr]
            basis[m + 1] = w / np.linalg.norm(w)


def _outside(basis: Vector, w: Vector) -> Vector:
    """Return w without its part in the subspace; the second pass removes what rounding left of the first."""
    for _ in range(2):
        w = w - (basis @ w) @ basis
    return w


def lanczos(
    matvec: Matvec,
    size: int,
    rng: np.random.Generator,
    *,
    k: int = 1,
    tol: float = 1e-2,
    max_products: int = 100,
    dtype: Any = np.float64,
) -> Ritz:
    """Return Ritz pairs of which the k largest have residual <= tol * |value|.

    Values below `SMALL` times the largest magnitude need only tol * SMALL * that magnitude. Stops unconverged after
    `max_products`. A multiple eigenvalue is found once, unless the Krylov space is exhausted before. An operator that
    gives NaN has one value, NaN.
    """
    start = rng.standard_normal(size).astype(dtype)
    k = min(k, size)
    values = rotation = residuals = np.empty(0)
    t, converged = _Tridiagonal([], [], start[None, :][:0]), False
    for t in _growing(matvec, start, max_products, rng):
        if not np.isfinite(t.alpha[-1]):
            unknown = np.full(1, np.nan)
            return Ritz(unknown, unknown, t.basis[:0], np.ones((0, 1)), False)
        values, rotation = t.eigh()
        residuals = np.abs(t.beta[-1] * rotation[-1])
        scale = np.maximum(np.abs(values[:k]), SMALL * np.abs(values).max())
        # In an exhausted space all residuals are zero, yet larger values may lie outside it: look there once.
        grown = t.beta[-1] > 0 or len(values) == size or 0.0 in t.beta[:-1]
        converged = len(values) >= k and grown and bool(np.all(residuals[:k] <= tol * scale))
        if converged:
            break
    return Ritz(values, residuals, t.basis, rotation, converged)


def slq(
    matvec: Matvec, size: int, rng: np.random.Generator, *, probes: int = 8, steps: int = 32, dtype: Any = np.float64
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return nodes and weights `[probes, steps]` of the spectral density, weights of a probe summing to 1.

    A probe whose Krylov space ends early has NaN nodes of weight 0.
    """
    nodes, weights = np.full((probes, steps), np.nan), np.zeros((probes, steps))
    for p in range(probes):
        values, rotation = np.empty(0), np.empty((1, 0))
        for t in _growing(matvec, _signs(rng, size, dtype), steps, None):
            if not np.isfinite(t.alpha[-1]):
                break
            values, rotation = t.eigh()
        nodes[p, : len(values)] = values
        weights[p, : len(values)] = rotation[0] ** 2
    return nodes, weights


def density(
    nodes: NDArray[np.float64], weights: NDArray[np.float64], grid: NDArray[np.float64], width: float
) -> NDArray[np.float64]:
    """Return the spectral density on `grid`, each node broadened to a Gaussian of standard deviation `width`."""
    kept = weights > 0
    z = (grid[:, None] - nodes[kept][None, :]) / width
    bumps = np.exp(-0.5 * z**2) / (width * np.sqrt(2 * np.pi))
    found: NDArray[np.float64] = bumps @ weights[kept] / len(weights)
    return found


def hutchinson(
    matvec: Matvec, size: int, rng: np.random.Generator, *, probes: int = 10, dtype: Any = np.float64
) -> Estimate:
    """Return the trace as the mean of z^T H z over random signs z."""
    return deflated_trace(matvec, np.empty((0, size), dtype), 0.0, rng, probes=probes)


def deflated_trace(
    matvec: Matvec, basis: Vector, inside: float, rng: np.random.Generator, *, probes: int = 10
) -> Estimate:
    """Return `inside`, the trace within the orthonormal `basis [m, n]`, plus a sampled trace of the complement.

    The error is that of the samples; it is 0 when the basis spans the whole space.
    """
    samples = []
    for _ in range(probes if len(basis) < basis.shape[1] else 0):
        z = _signs(rng, basis.shape[1], basis.dtype)
        z = z - (basis @ z) @ basis
        samples.append(float(z @ matvec(z)))
    if not samples:
        return Estimate(inside, 0.0, 0)
    error = float(np.std(samples, ddof=1) / np.sqrt(probes)) if probes > 1 else float("nan")
    return Estimate(inside + float(np.mean(samples)), error, probes)


def hutch_plus_plus(
    matvec: Matvec, size: int, rng: np.random.Generator, *, products: int = 30, dtype: Any = np.float64
) -> Estimate:
    """Return the trace with a third of the products for a sketch, a third for the trace inside it, a third outside."""
    third = max(1, products // 3)
    sketch = np.stack([matvec(_signs(rng, size, dtype)) for _ in range(min(third, size))], axis=1)
    basis = np.linalg.qr(sketch)[0].T.astype(dtype)
    inside = sum(float(q @ matvec(q)) for q in basis)
    rest = deflated_trace(matvec, basis, inside, rng, probes=third)
    return Estimate(rest.value, rest.error, rest.products + 2 * len(basis))


def _signs(rng: np.random.Generator, size: int, dtype: Any) -> Vector:
    signs: Vector = rng.integers(0, 2, size).astype(dtype) * 2 - 1
    return signs
