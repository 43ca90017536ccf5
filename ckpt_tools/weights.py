"""The canonical weights of one checkpoint, read when asked for, shared by all analyzers of a pass."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, TypeVar

import numpy as np

from .arrays import CPU
from .checkpoint import Checkpoint
from .errors import nearest
from .roles import Layout, WeightInfo
from .spectra import Spectrum, singular_values, singular_values_batch, spectrum_of_rows

Array = np.ndarray[Any, np.dtype[Any]]
T = TypeVar("T")

CACHE_BYTES = 256 << 20
BLOCK_BYTES = 32 << 20
SMALL = 1 << 16
"""Elements up to which spectra are computed for a whole block of checkpoints at once."""


class Lazy(Mapping[str, T]):
    """A mapping whose values are made on access and not kept."""

    def __init__(self, names: Sequence[str], make: Callable[[str], T], what: str) -> None:
        self._names = dict.fromkeys(names)
        self._make = make
        self._what = what

    def __getitem__(self, name: str) -> T:
        if name not in self._names:
            raise KeyError(f"no {self._what} {name!r} here.{nearest(name, self._names)}")
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


@dataclass(frozen=True)
class AttentionWeights:
    """One layer's attention by head: `q [H, head_dim, d]`, `k`, `v` `[H_kv, head_dim, d]`, `o [H, d, head_dim]`.

    Head h reads key-value head `h // (H // H_kv)`. `v` and `o` are None where the model has none.
    """

    layer: int
    q: Array
    k: Array
    v: Array | None
    o: Array | None


Key = tuple[int, str, int | None]


class Cache:
    """Tensors that were read, up to `room` bytes; the least recently used go first. Open checkpoints may share one."""

    def __init__(self, room: int = CACHE_BYTES) -> None:
        self._room, self._used = room, 0
        self._kept: OrderedDict[Key, Array] = OrderedDict()

    def get(self, key: Key) -> Array | None:
        """Return a tensor by (owner, name, expert), None when it is not here."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: Key, stored: Array) -> None:
        """Keep a tensor if it fits at all."""
        if _bytes(key, stored) > self._room:
            return
        self._kept[key] = stored
        self._used += _bytes(key, stored)
        while self._used > self._room:
            self._used -= _bytes(*self._kept.popitem(last=False))

    def drop(self, owner: int) -> None:
        """Let go of everything of one owner."""
        for key in [key for key in self._kept if key[0] == owner]:
            self._used -= _bytes(key, self._kept.pop(key))


def _bytes(key: Key, stored: Array) -> int:
    """Return the memory an entry holds: an expert is a broadcast view of one matrix."""
    return int(stored.nbytes if key[2] is None else stored[0].nbytes)


class Weights:
    """The selected canonical weights of one checkpoint. Arrays are read-only and shared, never copied.

    `watch` is told the name of whatever is read or measured, `ahead` may know a spectrum already (None: it does not).
    Spectra of large matrices are computed on `device`.
    """

    watch: Callable[[str], None] | None = None
    ahead: Callable[[str], Spectrum | None] | None = None

    def __init__(
        self,
        checkpoint: Checkpoint,
        layout: Layout,
        names: Sequence[str],
        *,
        cache: Cache | None = None,
        device: str = CPU,
    ) -> None:
        self.checkpoint = checkpoint
        self.layout = layout
        self.names = list(names)
        self.spectra: dict[str, Spectrum] = {}
        self.block = Block([self])
        self._cache, self._device = Cache() if cache is None else cache, device

    def close(self) -> None:
        """Close the checkpoint and let go of what was read."""
        self.checkpoint.close()
        self.block.drop()
        self.block = Block([])
        self._cache.drop(id(self))

    def info(self, name: str) -> WeightInfo:
        """Return what is known of a matrix or vector without reading it."""
        found = self.layout.matrices.get(name) or self.layout.vectors.get(name)
        if found is None:
            raise KeyError(f"no weight {name!r} here.{nearest(name, [*self.layout.matrices, *self.layout.vectors])}")
        return found

    def read(self, name: str) -> Array:
        """Return a canonical matrix `[out, in]` or vector `[n]`, float32 or float64, read-only."""
        if self.watch is not None:
            self.watch(name)
        info = self.info(name)
        array = info.take(self._stored(info))
        array.flags.writeable = False
        return array

    def _stored(self, info: WeightInfo) -> Array:
        key = (id(self), info.tensor, info.expert)
        known = self._cache.get(key)
        if known is not None:
            return known
        if info.expert is None:
            stored = self.checkpoint.read(info.tensor)
        else:
            # `take` indexes the expert axis; a broadcast view keeps its index valid without reading the others.
            one = self.checkpoint.read(info.tensor, slice(info.expert, info.expert + 1))
            stored = np.broadcast_to(one, (info.expert + 1, *one.shape[1:]))
        self._cache.keep(key, stored)
        return stored

    @property
    def nbytes(self) -> int:
        """Memory the selected matrices take once read, in bytes."""
        return sum(4 * prod(self.layout.matrices[name].shape) for name in self.names)

    @cached_property
    def vector_names(self) -> list[str]:
        """Names of the vectors analyzers may see: all, or of a selection of matrices the biases that belong to them."""
        vectors = self.layout.vectors
        if len(self.names) == len(self.layout.matrices):
            return list(vectors)
        return [bias for name in self.names if (bias := self.bias_name(name)) is not None]

    def bias_name(self, name: str) -> str | None:
        """Return the name of the bias that belongs to a matrix, or None."""
        role = self.info(name).role
        candidate = f"{role}.bias" if role else name.removesuffix("weight") + "bias"
        return candidate if candidate in self.layout.vectors else None

    def content_hash(self, *, everything: bool) -> str:
        """Return the SHA-256 over the tensors analyzers may see: selected matrices and vectors, or all tensors."""
        return self.checkpoint.content_hash(None if everything else self.seen_tensors())

    def seen_tensors(self) -> set[str]:
        """Names of the stored tensors behind selected matrices and vectors."""
        return {self.info(name).tensor for name in [*self.names, *self.vector_names]}

    def nonfinite_tensors(self) -> list[str]:
        """Names of the stored tensors behind matrices whose spectrum was asked for and is NaN."""
        broken = [name for name, spectrum in self.spectra.items() if np.isnan(spectrum.values).any()]
        return sorted({self.info(name).tensor for name in broken})

    def spectrum(self, name: str) -> Spectrum:
        """Return the singular values of a matrix, computed once per checkpoint; large ones are streamed by rows."""
        if name not in self.spectra:
            if self.watch is not None:
                self.watch(name)
            rows, columns = self.info(name).shape
            known = self.ahead(name) if self.ahead is not None else None
            if known is not None:
                self.spectra[name] = known
            elif rows * columns <= SMALL:
                self.block.spectrum(name)
            else:
                self.spectra[name] = self._large_spectrum(self.info(name))
        return self.spectra[name]

    def _large_spectrum(self, info: WeightInfo) -> Spectrum:
        rows, columns = info.shape
        streams = info.parts is None and info.expert is None and not info.transpose
        if streams and rows > columns and rows * columns * 4 > BLOCK_BYTES:
            return spectrum_of_rows(lambda: self._blocks(info), info.shape, device=self._device)
        return singular_values(self.read(info.name), device=self._device)

    def _blocks(self, info: WeightInfo) -> Iterator[Array]:
        step = max(1, BLOCK_BYTES // (4 * info.shape[1]))
        for start in range(0, info.shape[0], step):
            rows = slice(start, min(start + step, info.shape[0]))
            yield self.checkpoint.read(info.tensor, rows).reshape(-1, info.shape[1])

    def attention(self) -> Iterator[AttentionWeights]:
        """Yield the attention weights of every layer whose q and k are selected and whose head count is known."""
        for layer in sorted({i for n in self.names if (i := self.layout.matrices[n].layer) is not None}):
            found = self._attention_of(layer)
            if found is not None:
                yield found

    def _attention_of(self, layer: int) -> AttentionWeights | None:
        heads, shared = self.layout.facts.get("n_heads"), self.layout.facts.get("n_kv_heads")
        names = {part: f"layers.{layer}.attn.{part}" for part in "qkvo"}
        if not heads or not shared or names["q"] not in self.names or names["k"] not in self.names:
            return None
        q, k, v, o = (self.read(names[p]) if names[p] in self.names else None for p in "qkvo")
        assert q is not None and k is not None  # both selected, checked above
        return AttentionWeights(
            layer,
            q.reshape(heads, -1, q.shape[1]),
            k.reshape(shared, -1, k.shape[1]),
            None if v is None else v.reshape(shared, -1, v.shape[1]),
            None if o is None else o.reshape(o.shape[0], heads, -1).swapaxes(0, 1),
        )


class Block:
    """Checkpoints of one layout whose small weights are worked on together; it registers with each of its members.

    A block of one takes the same route, so that no digit depends on which checkpoints happen to share a block.
    """

    def __init__(self, members: Sequence[Weights]) -> None:
        self.members = members
        self._stacks: dict[str, Array] = {}
        for member in members:
            member.block = self

    def drop(self) -> None:
        """Let go of what was stacked."""
        self._stacks.clear()

    def stacked(self, name: str) -> Array:
        """Return a weight of every member `[member, ...]`, read-only; a small one is kept for the next analyzer."""
        known = self._stacks.get(name)
        if known is None:
            known = np.stack([member.read(name) for member in self.members])
            known.flags.writeable = False
            if known[0].size <= SMALL:
                self._stacks[name] = known
        return known

    def spectrum(self, name: str) -> None:
        """Compute the spectrum of a matrix in every member that lacks it."""
        lacking = [i for i, member in enumerate(self.members) if name not in member.spectra]
        whole = self.stacked(name)
        found = singular_values_batch(whole if len(lacking) == len(whole) else whole[lacking])
        for at, i in enumerate(lacking):
            self.members[i].spectra[name] = Spectrum(found.values[at], found.error[at], found.route)
