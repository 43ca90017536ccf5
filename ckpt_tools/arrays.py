"""Tensors wherever they are, as numpy arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

CPU = "cpu"
NO_FLOAT64 = ("mps",)
"""Kinds of devices without double precision."""


def to_numpy(tensor: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the numbers of a tensor on any device as an array of its dtype, without gradients.

    One on the CPU shares its memory with the array.
    """
    array: np.ndarray[Any, np.dtype[Any]] = tensor.detach().cpu().numpy()
    return array


def has_float64(device: str) -> bool:
    """Return whether a device, such as "cuda:1", computes in double precision."""
    return device.partition(":")[0] not in NO_FLOAT64
