"""The `.bin` files of llama2.c: sizes, then the arrays of all layers, one kind after the other, without names.

Version 0 begins with seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len; a negative
vocabulary means that the head is stored) and has rotary tables before the head; version 1 has a magic number, a header
of 256 bytes and no tables; version 2 is version 1 with int8 groups. Names are those of the training checkpoint.

Format: https://github.com/karpathy/llama2.c/blob/master/export.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np

from ..errors import FormatError
from .localfile import ByteFile
from .raw import Extent
from .source import Array, Skip, TensorSource
from .strided import PackedExtent, StridedSource

_MAGIC = struct.pack("<I", 0x616B3432)
_HEADER = 256
_STEP = 2**22
_EMBED, _NORM, _OUTPUT = "tok_embeddings.weight", "norm.weight", "output.weight"
_NORMS = ("attention_norm.weight", "ffn_norm.weight")
_ATTENTION = tuple(f"attention.{part}.weight" for part in ("wq", "wk", "wv", "wo"))
_MLP = tuple(f"feed_forward.{part}.weight" for part in ("w1", "w2", "w3"))


class _Sizes(NamedTuple):
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    max_seq_len: int

    @property
    def plausible(self) -> bool:
        """Whether a transformer may have these sizes; nothing else tells version 0 from arbitrary bytes."""
        limits = (2**16, 2**18, 2**10, 2**10, 2**10, 2**22, 2**22)
        if not all(1 <= size <= limit for size, limit in zip(self, limits, strict=True)):
            return False
        heads = self.dim % self.n_heads == 0 and self.n_heads % self.n_kv_heads == 0
        return heads and self.dim // self.n_heads % 2 == 0 and self.hidden_dim >= self.dim // 8

    def shape(self, kind: str) -> tuple[int, ...]:
        """Return the shape of a weight by the end of its name."""
        if kind in (_EMBED, _OUTPUT):
            return self.vocab_size, self.dim
        if kind in (*_NORMS, _NORM):
            return (self.dim,)
        shared = self.dim // self.n_heads * self.n_kv_heads
        rows = {"wk": shared, "wv": shared, "w1": self.hidden_dim, "w3": self.hidden_dim}
        part = kind.split(".")[1]
        return rows.get(part, self.dim), self.hidden_dim if part == "w2" else self.dim


def is_llama2c(head: bytes) -> bool:
    """Return whether a file that begins with `head` is, or for want of a magic number may be, of llama2.c."""
    if head.startswith(_MAGIC):
        return True
    found = _old_sizes(head)
    return found is not None and found[0].plausible


def open_llama2c(file: ByteFile, head: bytes) -> TensorSource:
    """Return the weights of a llama2.c file. Raises FormatError when sizes and file do not agree."""
    if head.startswith(_MAGIC):
        return _open_new(file, head)
    found = _old_sizes(head)
    if found is None:
        raise FormatError(f"{file.path} is truncated: a llama2.c file begins with seven sizes.")
    sizes, tied = found
    order = [_EMBED, *_kind(sizes, _NORMS[:1]), *_kind(sizes, _ATTENTION), *_kind(sizes, _NORMS[1:])]
    order += [*_kind(sizes, _MLP), _NORM, "rotary tables"]
    extents, end = _lay(file, sizes, [*order, *([] if tied else [_OUTPUT])], 28)
    del extents["rotary tables"]
    tables = [Skip("freqs_cos, freqs_sin", "rotary tables, not trained")]
    return _source(file, sizes, extents, end, tied, "llama2.c", tables)


def _old_sizes(head: bytes) -> tuple[_Sizes, bool] | None:
    """Return the sizes at the beginning of version 0, and whether the head is tied."""
    if len(head) < 28:
        return None
    *sizes, vocabulary, length = struct.unpack("<7i", head[:28])
    return _Sizes._make((*sizes, abs(vocabulary), length)), vocabulary > 0


def _open_new(file: ByteFile, head: bytes) -> TensorSource:
    if len(head) < _HEADER:
        raise FormatError(f"{file.path} is truncated: a llama2.c file has a header of {_HEADER} bytes.")
    version, *stored, tied, group = struct.unpack("<i7iBi", head[4:41])
    sizes = _Sizes._make(stored)
    if version not in (1, 2) or not sizes.plausible or (version == 2 and not 0 < group <= sizes.dim):
        raise FormatError(f"{file.path} is a llama2.c file of version {version} whose header makes no sense.")
    norms = [*_kind(sizes, _NORMS), _NORM]
    order = [_EMBED, *_kind(sizes, _ATTENTION), *_kind(sizes, _MLP), *([] if tied else [_OUTPUT])]
    extents, end = _lay(file, sizes, norms, _HEADER)
    rest, end = _lay(file, sizes, order, end, group if version == 2 else 0)
    return _source(file, sizes, {**extents, **rest}, end, bool(tied), f"llama2.c (version {version})", [])


def _kind(sizes: _Sizes, kinds: tuple[str, ...]) -> Iterator[str]:
    return (f"layers.{layer}.{kind}" for kind in kinds for layer in range(sizes.n_layers))


def _lay(file: ByteFile, sizes: _Sizes, names: list[str], at: int, group: int = 0) -> tuple[dict[str, Extent], int]:
    """Return where the tensors lie that follow each other from byte `at`, and where they end."""
    extents: dict[str, Extent] = {}
    for name in names:
        kind = name.split(".", 2)[2] if name.startswith("layers.") else name
        shape = sizes.shape(kind) if "." in kind else (2, sizes.max_seq_len, sizes.dim // sizes.n_heads // 2)
        if group and prod(shape) % group:
            raise FormatError(f"{file.path}: {name!r} does not divide into the groups of {group} its header claims.")
        extent = GroupExtent("float32", shape, at, file, group) if group else Extent("float32", shape, at)
        extents[name] = extent
        at += extent.nbytes
    return extents, at


def _source(
    file: ByteFile, sizes: _Sizes, extents: dict[str, Extent], end: int, tied: bool, name: str, skipped: list[Skip]
) -> TensorSource:
    if end != file.size:
        raise FormatError(f"{file.path} looks like a {name} file, which has {end:,} bytes, not {file.size:,}.")
    source = StridedSource(file, extents, 0, format=name)
    source.skipped, source.config = skipped, {**sizes._asdict(), "tie_word_embeddings": tied}
    source.aliases = {_OUTPUT: _EMBED} if tied else {}
    return source


@dataclass(frozen=True, slots=True)
class GroupExtent(PackedExtent):
    """int8 values, then one float32 scale per group of them."""

    file: ByteFile | None = None
    group: int = 1

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) + 4 * prod(self.shape) // self.group

    @property
    def encoding(self) -> str:
        """Name of the quantisation."""
        return "int8 groups"

    def fetch(self, first: int, out: Array) -> int:
        """Multiply values and scales; see `PackedExtent`."""
        assert self.file is not None
        flat, scales_at = out.reshape(-1), self.offset + prod(self.shape)
        for at in range(0, flat.size, _STEP):
            low, high = first + at, first + min(at + _STEP, flat.size)
            groups = range(low // self.group, -(-high // self.group))
            values = np.frombuffer(self.file.read(self.offset + low, high - low), np.int8)
            scales = np.frombuffer(self.file.read(scales_at + 4 * groups.start, 4 * len(groups)), "<f4")
            which = np.arange(low, high) // self.group - groups.start
            np.multiply(values, scales[which], out=flat[at : at + high - low])
        return flat.size + 4 * flat.size // self.group
