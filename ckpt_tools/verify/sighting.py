"""What is kept of one checkpoint to compare it with others: a few bytes per tensor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from ..checkpoint import Checkpoint, TensorInfo
from ..checkpoint.aliases import stored_number
from ..errors import SourceError

_DECODER = json.JSONDecoder()
_DIGITS = 16
_FLOATS = ("float", "bfloat")
_FEW, _FEW_COARSE = 64, 4096


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor as a checkpoint holds it; `telling` when equal bytes at two steps mean a copy."""

    dtype: str
    shape: tuple[int, ...]
    file: str
    telling: bool = False


class Digests(Mapping[str, str]):
    """Digests by tensor in eight bytes each, by ascending `names`; `data` are their bytes."""

    SIZE = _DIGITS // 2
    __slots__ = ("data", "names")

    def __init__(self, names: Mapping[str, int], data: bytes) -> None:
        self.names, self.data = names, data

    @classmethod
    def of(cls, digests: Mapping[str, str]) -> Mapping[str, str]:
        """Return the same digests, small where they are what this packs."""
        if isinstance(digests, cls) or any(len(digest) != _DIGITS for digest in digests.values()):
            return digests
        names = _positions(tuple(digests))
        return cls(names, bytes.fromhex("".join([digests[name] for name in names])))

    def __getitem__(self, name: str) -> str:
        at = self.SIZE * self.names[name]
        return self.data[at : at + self.SIZE].hex()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@lru_cache(maxsize=64)
def _positions(names: tuple[str, ...]) -> Mapping[str, int]:
    return {name: at for at, name in enumerate(sorted(names))}


@lru_cache(maxsize=64)
def _parsed(text: str) -> Mapping[str, Held]:
    """Return what a checkpoint holds; one object for all checkpoints that hold the same."""
    tensors = json.loads(text)
    return {name: Held(dtype, tuple(shape), file, tells) for name, (dtype, shape, file, tells) in tensors.items()}


@dataclass(frozen=True, slots=True)
class Sighting:
    """One checkpoint: its tensors, digests of some or all of them, which are not finite, and the step stored inside.

    Small, picklable, and JSON-able through `text` and `parse`, so that it can come from another process or a journal.
    """

    tensors: Mapping[str, Held]
    digests: Mapping[str, str]
    nonfinite: tuple[str, ...] = ()
    stored: int | None = None

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        names: Iterable[str] | None = None,
        *,
        unit: str = "step",
        nonfinite: Iterable[str] = (),
        digests: Mapping[str, str] | None = None,
    ) -> Self:
        """Return what is seen of an open checkpoint. `names` are the tensors to compare (default: all).

        A digest that is not known yet is computed, which reads the tensor; `digests` are taken instead when given.
        `nonfinite` names tensors found to hold NaN or infinity, `unit` says which number inside counts, step or epoch.
        """
        chosen = list(checkpoint.tensors) if names is None else list(names)
        known = digests if digests is not None else {name: checkpoint.digest(name) for name in chosen}
        return cls(
            {info.name: _held(info) for info in checkpoint.tensors.values()},
            {name: digest[:_DIGITS] for name, digest in known.items()},
            tuple(nonfinite),
            stored_number(checkpoint.metadata, unit),
        )

    @classmethod
    def listed(cls, checkpoint: Checkpoint, *, unit: str = "step") -> Self:
        """Return what a server's listing shows of a checkpoint: the SHA-256 of whole files, in place of tensors.

        Raises SourceError where none is listed.
        """
        hashes = checkpoint.metadata.get("sha256")
        if not isinstance(hashes, dict) or not hashes:
            raise SourceError(f"{checkpoint.path}: no hashes of files are listed there; read at least a sample.")
        files = {name: Held("file", (), name, True) for name in hashes}
        return cls(
            files, {n: digest[:_DIGITS] for n, digest in hashes.items()}, (), stored_number(checkpoint.metadata, unit)
        )

    def text(self) -> str:
        """Return the sighting as JSON."""
        tensors = {n: [h.dtype, list(h.shape), h.file, h.telling] for n, h in self.tensors.items()}
        return json.dumps([tensors, dict(self.digests), list(self.nonfinite), self.stored], separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the sighting that `text` gave."""
        _, end = _DECODER.raw_decode(text, 1)
        digests, nonfinite, stored = json.loads(f"[{text[end + 1 :]}")
        return cls(_parsed(text[1:end]), Digests.of(digests), tuple(nonfinite), stored)

    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return `{tensor: (dtype, shape)}`."""
        return {name: (held.dtype, held.shape) for name, held in self.tensors.items()}


def _held(info: TensorInfo) -> Held:
    return Held(info.dtype, info.shape, info.file.name, telling(info))


def telling(info: TensorInfo) -> bool:
    """Return whether equal bytes at two steps mean a copy: floats of enough entries that chance cannot repeat them.

    Few coarse entries may round back to what they were, and short vectors may be clipped or unused.
    """
    if not info.dtype.startswith(_FLOATS):
        return False
    coarse = info.nbytes < 4 * info.size
    return (info.size >= _FEW_COARSE and len(info.shape) > 1) if coarse else info.size >= _FEW
