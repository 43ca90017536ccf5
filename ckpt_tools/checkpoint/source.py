"""What every reader of a file format offers: named tensors, listed without reading them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as stored: `dtype` is a name of `dtypes.ITEMSIZE` (`float32`, `bfloat16`, `float8_e4m3fn`, ...)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: Path

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Skip:
    """Something that was left out, and why."""

    name: str
    reason: str


@dataclass
class TensorSource(ABC):
    """One file (or one format's folder) of tensors.

    `tensors` is in file order. `aliases` maps a tied name to the name it shares storage with. `skipped` lists what
    the file holds beside tensors worth reading. `metadata` is whatever small facts the format carries (step, epoch).
    """

    path: Path
    format: str = ""
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    skipped: list[Skip] = field(default_factory=list)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    bytes_read: int = 0

    @abstractmethod
    def read(self, name: str, rows: slice | None = None) -> np.ndarray[Any, Any]:
        """Return a tensor, or the given rows of its first axis, up-cast exactly.

        Half, bfloat16 and float8 come as float32; everything else in its own numpy dtype. Raises FormatError when
        the bytes are not there.
        """

    def close(self) -> None:  # noqa: B027 - most readers hold nothing open
        """Release file handles; reading again reopens them."""
