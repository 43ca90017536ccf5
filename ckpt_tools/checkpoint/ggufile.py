"""GGUF, the format of llama.cpp: typed facts, then a list of tensors, then their data, plain or in quantised blocks.

The header is parsed here, within bounds: the `gguf` package maps the file, believes its counts, and makes an object of
every token of the vocabulary. Its functions turn quantised blocks into numbers. Dimensions are stored fastest first, so
they are reversed; q and k of LLaMA-like models keep llama.cpp's order of rows (rotary halves interleaved).

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..errors import FormatError
from .localfile import ByteFile
from .raw import Extent
from .region import Region
from .source import Array, Skip, TensorSource
from .strided import PackedExtent, StridedSource, place

MAX_TENSORS = 100_000
MAX_FACTS = 100_000
MAX_TEXT = 2**24
_MAX_DIMS = 8
_KEPT_ARRAY = 1_000
_PLAIN = {0: "float32", 1: "float16", 24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "float64", 30: "bfloat16"}
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
_STEP = 2**22


def is_gguf(head: bytes) -> bool:
    """Return whether a file that begins with `head` is GGUF."""
    return head.startswith(b"GGUF")


def open_gguf(file: ByteFile, head: bytes = b"") -> TensorSource:
    """Return the tensors of a GGUF file, its facts as configuration. Raises FormatError for a damaged or hostile one.

    The configuration has the facts under their keys, those of the architecture without its name
    (`llama.block_count` as `block_count`).
    """
    header = _Header(Region.whole(file))
    extents: dict[str, Extent] = {}
    skipped: list[Skip] = []
    for name, kind, shape, start, room in header.tensors():
        extent = _extent(file, f"{file.path}: tensor {name!r}", kind, shape, start, room)
        if name in extents:
            raise FormatError(f"{file.path}: the tensor {name!r} occurs twice.")
        if isinstance(extent, str):
            skipped.append(Skip(name, extent))
        else:
            extents[name] = extent
    source = StridedSource(file, dict(sorted(extents.items(), key=lambda item: item[1].offset)), 0, format="GGUF")
    source.skipped, source.config = skipped, _config(header.facts)
    return source


def _config(facts: Mapping[str, Any]) -> dict[str, Any]:
    prefix = f"{facts.get('general.architecture')}."
    return {key.removeprefix(prefix): value for key, value in facts.items() if not key.startswith("tokenizer.")}


class _Header:
    """Version, facts and tensor list, read in order."""

    def __init__(self, region: Region) -> None:
        self.region, self.at = region, 4
        self._window, self._from = b"", 0
        version = self.number("<I")
        if version not in (2, 3):
            order = "big-endian" if version & 0xFFFF == 0 else f"of version {version}"
            raise FormatError(f"{region.path} is a GGUF file {order}; versions 2 and 3, little-endian, are read.")
        self.count, facts = self.number("<Q"), self.number("<Q")
        # A fact takes 13 bytes at least, a tensor 24.
        if self.count > min(MAX_TENSORS, region.size // 24) or facts > min(MAX_FACTS, region.size // 13):
            raise FormatError(f"{region.path}: its header claims {self.count:,} tensors and {facts:,} facts.")
        self.facts: dict[str, Any] = {}
        for _ in range(facts):
            key = self.text()
            value = self.value(self.number("<I"), 0)
            if value is not None:
                self.facts[key] = value

    def tensors(self) -> Iterator[tuple[str, int, tuple[int, ...], int, int]]:
        """Yield name, type, shape, place in the file and the bytes from there to the file's end."""
        listed = [self._tensor() for _ in range(self.count)]
        alignment = self.facts.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 2**20:
            raise FormatError(f"{self.region.path}: its alignment is {alignment!r:.40}.")
        data = -(-self.at // alignment) * alignment
        for name, kind, shape, offset in listed:
            yield name, kind, shape, data + offset, self.region.size - data - offset

    def _tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        name, dims = self.text(), self.number("<I")
        if dims > _MAX_DIMS:
            raise FormatError(f"{self.region.path}: tensor {name[:80]!r} has {dims:,} dimensions.")
        shape = tuple(self.number("<Q") for _ in range(dims))[::-1]
        return name, self.number("<I"), shape, self.number("<Q")

    def take(self, count: int) -> bytes:
        first = self.at - self._from
        if not 0 <= first <= first + count <= len(self._window):
            self.region.check(self.at, count)
            size = max(count, min(2**17, self.region.size - self.at))
            self._window, self._from, first = self.region.read(self.at, size), self.at, 0
        self.at += count
        return self._window[first : first + count]

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def text(self) -> str:
        count = self.number("<Q")
        if count > MAX_TEXT:
            raise FormatError(f"{self.region.path}: a text of {count:,} bytes in its header; it is not read.")
        return self.take(count).decode("utf-8", "replace")

    def value(self, kind: int, depth: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY and depth < 4:
            return self.array(depth)
        raise FormatError(f"{self.region.path}: a fact in its header is of the unknown type {kind}.")

    def array(self, depth: int) -> list[Any] | None:
        """Return a short array; pass over a long one, which is a vocabulary."""
        kind, count = self.number("<I"), self.number("<Q")
        self.region.check(self.at, count * struct.calcsize(_SCALARS[kind]) if kind in _SCALARS else count * 8)
        if count <= _KEPT_ARRAY:
            return [self.value(kind, depth + 1) for _ in range(count)]
        if kind in _SCALARS:
            self.at += count * struct.calcsize(_SCALARS[kind])
        elif kind == _TEXT:
            for _ in range(count):
                size = self.number("<Q")  # moves `at`, so it must be read before it is added
                self.at += size
        else:
            raise FormatError(f"{self.region.path}: an array of {count:,} arrays in its header; it is not read.")
        return None


def _extent(file: ByteFile, where: str, kind: int, shape: tuple[int, ...], start: int, room: int) -> Extent | str:
    if kind in _PLAIN:
        return place(where, _PLAIN[kind], shape, None, start, room)
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
    except ImportError:
        return "quantised; reading it needs the gguf package: pip install 'ckpt-tools[formats]'"
    try:
        quantised = GGMLQuantizationType(kind)
        quants.dequantize(np.zeros(GGML_QUANT_SIZES[quantised][1], np.uint8), quantised)
    except (ValueError, KeyError):
        return f"its type {kind} is unknown to the gguf package"
    except NotImplementedError:
        return f"its type {quantised.name} cannot be turned into numbers by the gguf package"
    block, nbytes = GGML_QUANT_SIZES[quantised]
    if not shape or shape[-1] % block:
        raise FormatError(f"{where} of shape {list(shape)} has no rows of blocks of {block} ({quantised.name}).")
    packed = prod(shape) // block * nbytes
    checked = place(where, "uint8", (packed,), None, start, room)
    if isinstance(checked, str):
        return checked
    return BlockExtent("float32", shape, start, file, quantised.name.lower(), block, nbytes)


@dataclass(frozen=True, slots=True)
class BlockExtent(PackedExtent):
    """A tensor in blocks of `block` elements that take `block_bytes` bytes each."""

    file: ByteFile | None = None
    kind: str = ""
    block: int = 1
    block_bytes: int = 1

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) // self.block * self.block_bytes

    @property
    def encoding(self) -> str:
        """The name of the quantisation."""
        return self.kind

    def fetch(self, first: int, out: Array) -> int:
        """Dequantise rows; see `PackedExtent`."""
        from gguf import GGMLQuantizationType, quants

        assert self.file is not None
        flat, kind = out.reshape(-1), GGMLQuantizationType[self.kind.upper()]
        step = _STEP // self.block * self.block
        for at in range(0, flat.size, step):
            count = min(step, flat.size - at)
            data = self.file.read(
                self.offset + (first + at) // self.block * self.block_bytes, count // self.block * self.block_bytes
            )
            flat[at : at + count] = quants.dequantize(np.frombuffer(data, np.uint8), kind).reshape(-1)
        return flat.size // self.block * self.block_bytes
