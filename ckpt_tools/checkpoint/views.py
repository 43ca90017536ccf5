"""A checkpoint as it is meant: names without the wrappers that training put around the model, numbers dequantised."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..errors import SourceError
from .quantised import Quantised, dequantise, find_quantised
from .source import Array, TensorInfo, TensorSource

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

# torch.compile, FSDP and activation checkpointing may wrap any module; DataParallel wraps the whole model.
_INNER = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OUTER = "module."


def unwrapped(names: Collection[str]) -> dict[str, str]:
    """Return `{name without wrappers: stored name}`, empty when no name has any or two would become one."""
    bare = {name: _INNER.sub("", name) if "_mod" in name else name for name in names}
    while bare and all(name.startswith(_OUTER) and name != _OUTER for name in bare.values()):
        bare = {stored: name.removeprefix(_OUTER) for stored, name in bare.items()}
    found = {name: stored for stored, name in bare.items()}
    changed = any(name != stored for name, stored in found.items())
    return found if changed and len(found) == len(bare) else {}


def needs_view(tensors: Mapping[str, TensorInfo]) -> tuple[dict[str, str], Quantised | None]:
    """Return the names to change and what is quantised; both are empty for most checkpoints."""
    return unwrapped(tensors.keys()), find_quantised(tensors)


class ViewSource(TensorSource):
    """The tensors of a checkpoint under other names, some of them multiplied by their scales."""

    def __init__(self, inner: Checkpoint, names: Mapping[str, str], quantised: Quantised | None) -> None:
        super().__init__(path=inner.path, format=inner.format)
        self.inner, self._quantised = inner, quantised or Quantised()
        shown = names or {name: name for name in inner.tensors}
        self._stored = {name: stored for name, stored in shown.items() if stored not in self._quantised.hidden}
        self.tensors = {name: self._info(name, stored) for name, stored in self._stored.items()}
        bare = {stored: name for name, stored in names.items()}
        self.aliases = {self._bare(alias): bare.get(stored, stored) for alias, stored in inner.aliases.items()}
        self.skipped = [*inner.skipped, *self._quantised.skipped]
        self.metadata, self.config = inner.metadata, inner.config

    @staticmethod
    def _bare(name: str) -> str:
        return _INNER.sub("", name).removeprefix(_OUTER) if name.startswith(_OUTER) else _INNER.sub("", name)

    def _info(self, name: str, stored: str) -> TensorInfo:
        info = self.inner.tensors[stored]
        if stored not in self._quantised.scaled:
            return TensorInfo(name, info.dtype, info.shape, info.nbytes, info.file, info.encoding)
        return TensorInfo(name, "float32", info.shape, info.nbytes, info.file, f"{info.dtype} with scales")

    def read(self, name: str, rows: slice | None = None) -> Array:
        """Return a tensor or some of its rows, dequantised; see `TensorSource.read`."""
        stored = self._stored[name]
        values = self.inner.read(stored, rows)
        if stored in self._quantised.scaled:
            scale, divisor = self._quantised.scaled[stored]
            shape = self.tensors[name].shape
            first = rows.indices(shape[0])[0] if rows is not None else 0
            values = dequantise(values, first, shape, self.inner.read(scale), divisor)
        self.bytes_read = self.inner.bytes_read
        return values

    def read_into(self, name: str, out: Array, rows: slice | None = None) -> None:
        """Fill `out`; see `TensorSource.read_into`."""
        stored = self._stored[name]
        if stored in self._quantised.scaled:
            values = self.read(name, rows)
            if values.shape != out.shape or values.dtype != out.dtype:
                raise SourceError(f"{self.path}: {name!r} needs a {values.dtype} array of shape {values.shape}.")
            np.copyto(out, values)
            return
        self.inner.read_into(stored, out, rows)
        self.bytes_read = self.inner.bytes_read

    def digest(self, name: str) -> str:
        """Return the SHA-256 of the stored bytes; of a quantised weight, over the digests of numbers and scales."""
        stored = self._stored[name]
        if stored not in self._quantised.scaled:
            return self.inner.digest(stored)
        both = self.inner.digest(stored) + self.inner.digest(self._quantised.scaled[stored][0])
        return hashlib.sha256(both.encode()).hexdigest()

    @property
    def bytes_transferred(self) -> int:
        """Bytes that crossed a network for the checkpoint so far."""
        return self.inner.bytes_transferred

    def expect(self, names: Iterable[str]) -> None:
        """Be told which tensors will be read, so that neighbours can be fetched together."""
        stored = [self._stored[name] for name in names]
        scales = [self._quantised.scaled[name][0] for name in stored if name in self._quantised.scaled]
        self.inner.expect([*stored, *scales])

    def close(self) -> None:
        """Release file handles."""
        self.inner.close()
