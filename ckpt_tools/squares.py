"""Squared singular values on a torch device: float64 Gram matrices and their eigenvalues, checked before they count.

A device's eigenvalue solver is not ours to vouch for, so what it returns must keep two sums that are known otherwise,
sum_i lambda_i = tr G and sum_i lambda_i^2 = ||G||_F^2, within the error that `spectra` states for every lambda_i. Where
it does not, where memory runs out or the solver gives up, there is no answer, and the CPU computes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .arrays import CPU, has_float64, to_numpy

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]
Floats = NDArray[np.float64]

WORTH = 1e9
"""Multiplications, m n^2 of a tall matrix, from which it is sent to a device; reckoned, not measured."""
STACK_BYTES = 1 << 30
"""Bytes of float64 of a stack that are on a device at once."""

_EPS = float(np.finfo(np.float64).eps)
RELATIVE = 200 * _EPS
"""Error of an eigenvalue relative to itself."""


def flat_error(n: int) -> float:
    """Return the error of every eigenvalue of an `n x n` Gram matrix relative to the largest one."""
    return _EPS * (8 + 0.5 * math.sqrt(n))


def squares_of_rows(tiles: Iterable[Array], shape: tuple[int, int], device: str) -> Floats | None:
    """Return the squared singular values `[n]`, ascending, of a tall matrix given in tiles of rows.

    They are zeros for a matrix with a NaN or an infinity. None where the CPU should compute them.
    """
    return sent_rows(tiles, device) if _pays(shape, device) else None


def sent_rows(tiles: Iterable[Array], device: str) -> Floats | None:
    """Return the same for a matrix of any size."""
    gram = None
    try:
        for tile in tiles:
            rows = _sent(tile, device)
            gram = rows.mT @ rows if gram is None else gram.addmm_(rows.mT, rows)
        return None if gram is None else _eigenvalues(gram)
    except _failures():
        return None


def squares_of_stack(tall: Array, device: str) -> Floats | None:
    """Return the same for a stack of tall matrices `[..., m, n]`, several at once: `[..., n]`."""
    m, n = tall.shape[-2:]
    if not _pays((m, n), device):
        return None
    flat, size = tall.reshape(-1, m, n), max(1, STACK_BYTES // (8 * m * n))
    found = []
    try:
        for start in range(0, len(flat), size):
            rows = _sent(flat[start : start + size], device)
            found.append(_eigenvalues(rows.mT @ rows))
    except _failures():
        return None
    if any(part is None for part in found):
        return None
    return np.concatenate([part for part in found if part is not None]).reshape(*tall.shape[:-2], n)


def _pays(shape: tuple[int, int], device: str) -> bool:
    """Return whether to send a matrix; its shape alone decides, so that no digit depends on what comes along."""
    return device != CPU and has_float64(device) and shape[0] * shape[1] ** 2 >= WORTH


def _failures() -> tuple[type[Exception], ...]:
    """Return what a device raises for a matrix that is too much for it."""
    import torch

    return torch.OutOfMemoryError, torch.linalg.LinAlgError  # type: ignore[attr-defined]


def _sent(tile: Array, device: str) -> Tensor:
    """Return a tile in float64 on the device; float32 is widened there, which halves what is sent."""
    import torch

    known = tile if tile.dtype in (np.float32, np.float64) else tile.astype(np.float64)
    across = known.strides[-2] < known.strides[-1]  # a copy in the order of the original is several times faster
    sent = torch.tensor(known.swapaxes(-1, -2) if across else known).to(device).double()
    return sent.mT if across else sent


def _eigenvalues(gram: Tensor) -> Floats | None:
    """Return the eigenvalues `[..., n]` of Gram matrices, None when any of them keeps its sums too badly."""
    import torch

    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    gram = torch.where(trace.isfinite()[..., None, None], gram, 0.0)
    squares: Floats = to_numpy(torch.linalg.eigvalsh(gram))
    sums = (to_numpy(gram.diagonal(dim1=-2, dim2=-1).sum(-1)), to_numpy(torch.linalg.matrix_norm(gram)) ** 2)
    return squares if _keeps(squares, *sums) else None


def _keeps(squares: Floats, trace: Array, norm: Array) -> bool:
    """Return whether eigenvalues add up to the trace, and their squares to the squared norm, within their errors."""
    with np.errstate(all="ignore"):
        error = flat_error(squares.shape[-1]) * squares[..., -1:] + RELATIVE * np.abs(squares)
        first = np.abs(squares.sum(-1) - trace) <= error.sum(-1)
        second = np.abs(np.square(squares).sum(-1) - norm) <= (error * (2 * np.abs(squares) + error)).sum(-1)
    return bool(np.all(first & second))
