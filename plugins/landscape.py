"""The loss around a point in weight space: random perturbations, the worst small step, and slices along directions.

- Loss increase under noise: Delta(sigma) = E[L(theta + sigma e)] - L(theta), e ~ N(0, diag(m^2)). The magnitudes m are
  1 (absolute), the root mean square of each tensor, or of each filter: a row of a canonical matrix, the weights of one
  output (after Li et al., "Visualizing the Loss Landscape of Neural Nets", 2018). Relative magnitudes make the measure
  blind to rescalings that leave the function as it is. Noise comes in pairs +e, -e, which have the same expectation
  and cancel the odd terms; the standard error is over pairs.
- Sharpness-aware increase: L(theta + rho g / ||g||) - L(theta), g the gradient: the first-order worst case within
  distance rho (Foret et al., "Sharpness-Aware Minimization", 2021).
- A slice: L(theta + sum_i c_i d_i) on a grid of c, along random filter-normalised directions or the principal ones of a
  trajectory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Tensors = dict[str, Tensor]
Loss = Callable[[Tensors], float]
Array = NDArray[np.float64]
Scaling = Literal["absolute", "tensor", "filter"]

SCALINGS: tuple[Scaling, ...] = ("absolute", "tensor", "filter")


def magnitudes(params: Mapping[str, Tensor], scaling: Scaling, transposed: Collection[str] = ()) -> Tensors:
    """Return, for each tensor, the standard deviation of unit noise on its entries, broadcastable to its shape.

    Filters lie along the first axis, along the second for names in `transposed`; vectors have one scale.
    """
    return {name: _magnitude(p, scaling, -1 if name in transposed else 0) for name, p in params.items()}


def _magnitude(p: Tensor, scaling: Scaling, axis: int) -> Tensor:
    if scaling == "absolute":
        return p.new_ones(())
    if scaling == "tensor" or p.ndim < 2:
        return p.square().mean().sqrt()
    others = [i for i in range(p.ndim) if i != axis % p.ndim]
    return p.square().mean(others, keepdim=True).sqrt()


def noise(params: Mapping[str, Tensor], rng: np.random.Generator) -> Tensors:
    """Return standard normal noise of the parameters' shapes and dtypes: the same numbers on every device."""
    drawn = {name: torch.from_numpy(rng.standard_normal(tuple(p.shape))).to(p.dtype) for name, p in params.items()}
    return {name: unit.to(params[name].device) for name, unit in drawn.items()}


def shifted(params: Mapping[str, Tensor], direction: Mapping[str, Tensor], by: float) -> Tensors:
    """Return params + by * direction."""
    return {name: p + by * direction[name] for name, p in params.items()}


def loss_increase(
    loss: Loss,
    params: Mapping[str, Tensor],
    rng: np.random.Generator,
    *,
    sigmas: Sequence[float],
    draws: int = 8,
    scalings: Sequence[Scaling] = SCALINGS,
    transposed: Collection[str] = (),
) -> tuple[Array, Array]:
    """Return Delta and its standard error, both `[scaling, sigma]`, from `draws` pairs of noise shared by all."""
    scales = [magnitudes(params, scaling, transposed) for scaling in scalings]
    samples = np.empty((draws, len(scalings), len(sigmas)))
    with torch.no_grad():
        base = loss(dict(params))
        for draw in range(draws):
            unit = noise(params, rng)
            for (i, scale), (j, sigma) in product(enumerate(scales), enumerate(sigmas)):
                e = {name: unit[name] * scale[name] for name in unit}
                up, down = (loss(shifted(params, e, sign * sigma)) for sign in (1, -1))
                samples[draw, i, j] = (up + down) / 2 - base
    return samples.mean(0), samples.std(0, ddof=1) / np.sqrt(draws)


def sharpness_aware(loss: Loss, params: Mapping[str, Tensor], gradient: NDArray[Any], rhos: Sequence[float]) -> Array:
    """Return the loss increase `[rho]` of a step of each length along the flat gradient.

    It is 0 for a gradient that vanishes and NaN for one that is not finite.
    """
    norm = float(np.linalg.norm(gradient))
    if norm == 0 or not np.isfinite(norm):
        return np.full(len(rhos), 0.0 if norm == 0 else np.nan)
    flat = torch.from_numpy(gradient / norm)
    sizes = [p.numel() for p in params.values()]
    pieces = torch.split(flat, sizes)
    direction = {name: d.view_as(params[name]).to(params[name].device) for name, d in zip(params, pieces, strict=True)}
    with torch.no_grad():
        base = loss(dict(params))
        return np.array([loss(shifted(params, direction, rho)) - base for rho in rhos])


def filter_normalised(
    params: Mapping[str, Tensor], rng: np.random.Generator, transposed: Collection[str] = ()
) -> Tensors:
    """Return a random direction whose every filter has the length of that filter of the parameters."""
    unit = noise(params, rng)
    own, wanted = magnitudes(unit, "filter", transposed), magnitudes(params, "filter", transposed)
    return {name: d * (wanted[name] / own[name]) for name, d in unit.items()}


def landscape(
    loss: Loss, params: Mapping[str, Tensor], directions: Sequence[Mapping[str, Tensor]], grid: Sequence[Array]
) -> Array:
    """Return the loss at params + sum_i c_i directions[i], one axis per direction over the values c_i in `grid[i]`."""
    values = np.empty([len(axis) for axis in grid])
    with torch.no_grad():
        for index in np.ndindex(values.shape):
            at = dict(params)
            for direction, axis, i in zip(directions, grid, index, strict=True):
                at = shifted(at, direction, float(axis[i]))
            values[index] = loss(at)
    return values


def principal_directions(offsets: NDArray[Any], count: int = 2) -> tuple[Array, Array, Array]:
    """Return orthonormal directions `[count, n]`, coordinates `[S, count]` and explained shares `[count]`.

    `offsets [S, n]` are the weights of each step minus those of the last (Li et al., 2018, section 7), not centred, so
    that the last step is the origin of the plane. Works on the S x S products of steps.
    """
    gram = offsets.astype(np.float64) @ offsets.T.astype(np.float64)
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1][:count].clip(min=0), vectors[:, ::-1][:, :count]
    lengths = np.sqrt(values)
    directions = (vectors.T @ offsets) / np.where(lengths > 0, lengths, 1)[:, None]
    total = float(np.trace(gram))
    return directions, vectors * lengths, values / total if total else values
