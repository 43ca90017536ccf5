"""What every reader of a file format offers: named tensors, listed without reading them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .location import Location

Array = np.ndarray[Any, np.dtype[Any]]


def as_bytes(array: Array) -> memoryview:
    """Return the bytes of a contiguous array of any shape, sharing its memory."""
    return array.reshape(-1).view(np.uint8).data


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as stored: `dtype` is a name of `dtypes.ITEMSIZE` (`float32`, `bfloat16`, `float8_e4m3fn`, ...).

    `encoding` is empty for plain numbers; else it says how they are quantised (`q4_0`, `int8 with scales`), and `dtype`
    is what reading gives. `nbytes` counts what is stored.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: Location
    encoding: str = ""

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
    the file holds beside tensors worth reading. `metadata` is whatever small facts the format carries (step, epoch),
    `config` the model's configuration as plain data when the file itself has one.
    With `hashing` on, reading a tensor whole, or all its rows in order, also puts its digest into `digests`.
    """

    path: Location
    format: str = ""
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    skipped: list[Skip] = field(default_factory=list)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    bytes_read: int = 0
    hashing: bool = False
    digests: dict[str, str] = field(default_factory=dict)

    @abstractmethod
    def read(self, name: str, rows: slice | None = None) -> Array:
        """Return a tensor, or the given rows of its first axis, up-cast exactly.

        Half, bfloat16 and float8 come as float32; everything else in its own numpy dtype. Raises FormatError when
        the bytes are not there.
        """

    def read_into(self, name: str, out: Array, rows: slice | None = None) -> None:
        """Fill `out`, an array of the shape and dtype that `read` would return; saves the allocation of large ones."""
        np.copyto(out, self.read(name, rows), casting="no")

    def digest(self, name: str) -> str:
        """Return the SHA-256 (hex) of a tensor's bytes as stored, contiguous, little-endian.

        This one hashes what `read` returns: a source that up-casts overrides it.
        """
        if name not in self.digests:
            self.digests[name] = hashlib.sha256(as_bytes(np.ascontiguousarray(self.read(name)))).hexdigest()
        return self.digests[name]

    def table_key(self) -> str:
        """Return a text that is equal for two sources with the same names, dtypes and shapes."""
        return key_of(self.tensors.values())

    @property
    def bytes_transferred(self) -> int:
        """Bytes that crossed a network for this source so far."""
        return 0

    def expect(self, names: Iterable[str]) -> None:  # noqa: B027 - only a remote source gains by it
        """Be told which tensors will be read, so that neighbours can be fetched together."""

    def close(self) -> None:  # noqa: B027 - most readers hold nothing open
        """Release file handles; reading again reopens them."""


def key_of(tensors: Iterable[TensorInfo]) -> str:
    """Return the SHA-256 (hex) of names, dtypes and shapes, whatever their order."""
    table = sorted((info.name, info.dtype, info.shape) for info in tensors)
    return hashlib.sha256(repr(table).encode()).hexdigest()
