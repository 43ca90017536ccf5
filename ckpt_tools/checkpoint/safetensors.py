"""safetensors: an 8-byte length, a JSON header, then all tensors back to back.

Read here rather than by the `safetensors` package: its numpy side knows no bfloat16, it maps files, and it parses every
header anew, which costs four to ten times as much over a trajectory. Nothing of its strictness is lost: a file is
refused unless its tensors cover the data exactly, without overlap, hole, missing or trailing bytes.

Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path
from typing import Any

from ..errors import FormatError
from .dtypes import DTYPES, SAFETENSORS, SUB_BYTE_BITS
from .jsondata import parse_object, short
from .localfile import ByteFile
from .raw import Extent, RawSource, TensorTable
from .source import Skip, key_of

MAX_HEADER = 16 * 2**20
MAX_TENSORS = 100_000
_MAX_CACHED = 2**20
_MAX_DIMS = 64  # numpy's limit
_MAX_BYTES = 2**63 - 1


@dataclass(frozen=True, eq=False)
class Header:
    """A parsed header; one object serves every file whose header has the same bytes."""

    extents: Mapping[str, Extent]
    data_size: int
    metadata: Mapping[str, str]
    aliases: Mapping[str, str]
    skipped: tuple[Skip, ...]

    @cached_property
    def key(self) -> str:
        """`TensorSource.table_key` of the files with this header."""
        return key_of(TensorTable(self.extents, Path()).values())


class SafetensorsSource(RawSource):
    """The tensors of one safetensors file."""

    def __init__(self, file: ByteFile, header: Header, base: int) -> None:
        super().__init__(file, header.extents, base, format="safetensors")
        self.header = header
        self.aliases, self.metadata, self.skipped = header.aliases, header.metadata, list(header.skipped)

    def table_key(self) -> str:
        """Return a text that is equal for two sources with the same names, dtypes and shapes."""
        return self.header.key


def is_safetensors(head: bytes) -> bool:
    """Return whether a file that begins with `head` is (or claims to be) safetensors."""
    return head[8:9] == b"{" and b"\0" in head[:8]  # a length, not eight characters of text


def open_safetensors(
    file: ByteFile, head: bytes = b"", *, base: int = 0, size: int | None = None, max_header: int = MAX_HEADER
) -> SafetensorsSource:
    """Return the tensors of a safetensors file, or of `size` bytes at `base` inside a larger one.

    `head` are bytes already read from `base`. Nothing but the header is read. Raises FormatError for every file that
    the format forbids, before memory is taken for what it claims.
    """
    size = file.size - base if size is None else size
    text = _header_bytes(file, head, base, size, max_header)
    try:
        header = _cached(text) if len(text) <= _MAX_CACHED else parse_header(text)
    except FormatError as error:
        raise FormatError(f"{file.path}: bad safetensors header: {error}.") from None
    have, need = size - 8 - len(text), header.data_size
    if have != need:
        what = f"truncated: {need - have:,} bytes are missing" if have < need else f"followed by {have - need:,} bytes"
        raise FormatError(f"{file.path}: the tensors are {what} (header: {need:,} bytes of data, file: {have:,}).")
    return SafetensorsSource(file, header, base + 8 + len(text))


def _header_bytes(file: ByteFile, head: bytes, base: int, size: int, limit: int) -> bytes:
    if size < 10:
        raise FormatError(f"{file.path}: {size} bytes are too few for a safetensors file; the save was cut short.")
    length = int.from_bytes(head[:8] if len(head) >= 8 else file.read(base, 8), "little")
    if length > size - 8:
        raise FormatError(
            f"{file.path}: truncated or no safetensors file: the header claims {length:,} bytes, "
            f"{size - 8:,} follow its length."
        )
    if length > limit:
        raise FormatError(f"{file.path}: the safetensors header has {length:,} bytes; at most {limit:,} are accepted.")
    if len(head) >= 8 + length:
        return head[8 : 8 + length]
    return head[8:] + file.read(base + max(8, len(head)), 8 + length - max(8, len(head)))


def parse_header(text: bytes, max_tensors: int = MAX_TENSORS) -> Header:
    """Return the checked header; the FormatError of a bad one does not name the file."""
    if not text.startswith(b"{"):
        raise FormatError(f"it begins with {text[:8]!r} instead of '{{'")
    if text.count(b'"data_offsets"') > max_tensors:  # before parsing, which would take a hundred times the memory
        raise FormatError(f"more than {max_tensors:,} tensors")
    fields = parse_object(text)
    metadata = _metadata(fields.pop("__metadata__", None))
    if len(fields) > max_tensors:
        raise FormatError(f"{len(fields):,} tensors; at most {max_tensors:,} are accepted")
    entries = sorted((_entry(name, value) for name, value in fields.items()), key=lambda e: (e.begin, e.end))
    _check_coverage(entries)
    extents = {e.name: Extent(e.dtype, e.shape, e.begin) for e in entries if not e.skip}
    return Header(
        extents=extents,
        data_size=entries[-1].end if entries else 0,
        metadata=metadata,
        # safetensors.torch.save_model leaves a tied tensor out and records {its name: the name it is stored under}.
        aliases={new: old for new, old in metadata.items() if new != "format" and old in extents and new not in fields},
        skipped=tuple(Skip(e.name, e.skip) for e in entries if e.skip),
    )


_cached = lru_cache(maxsize=256)(parse_header)


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    skip: str = ""


def _entry(name: str, value: Any) -> _Entry:
    if not name.isascii():
        _check_text(name)
    if not (isinstance(value, dict) and value.keys() == {"dtype", "shape", "data_offsets"}):
        raise FormatError(f"tensor {short(name)} is not described by dtype, shape and data_offsets")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(code, str):
        raise FormatError(f"tensor {short(name)} has dtype {short(code)}")
    if not _naturals(shape):
        raise FormatError(f"tensor {short(name)} has shape {short(shape)}, expected a list of integers from 0")
    if not (_naturals(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise FormatError(f"tensor {short(name)} has data_offsets {short(offsets)}, expected [begin, end]")
    begin, end = offsets
    skip = _check_size(name, code, shape, end - begin)
    return _Entry(name, SAFETENSORS.get(code, code), tuple(shape), begin, end, skip)


def _check_size(name: str, code: str, shape: list[int], nbytes: int) -> str:
    """Raise when shape and bytes disagree; return why the tensor cannot be read, empty when it can."""
    if len(shape) > _MAX_DIMS:
        return f"it has {len(shape)} dimensions, arrays have at most {_MAX_DIMS}"
    count = prod(shape)
    if code not in SAFETENSORS and code not in SUB_BYTE_BITS:
        return f"its dtype {short(code)} is unknown"
    bits = count * (SUB_BYTE_BITS.get(code) or 8 * DTYPES[SAFETENSORS[code]].stored.itemsize)
    if bits != 8 * nbytes:
        raise FormatError(f"tensor {short(name)} ({code} {short(shape)}) needs {-(-bits // 8):,} bytes, has {nbytes:,}")
    if code in SUB_BYTE_BITS:
        return f"its dtype {code} packs several elements into a byte"
    # numpy refuses (0, 2**62): it multiplies the other axes all the same.
    if 16 * prod(n for n in shape if n) > _MAX_BYTES:
        return f"its shape {short(shape)} is too large for an array"
    return ""


def _check_coverage(entries: list[_Entry]) -> None:
    end, last = 0, None
    for entry in entries:
        if entry.begin < end and last:
            raise FormatError(f"tensors {short(last.name)} and {short(entry.name)} overlap at byte {entry.begin:,}")
        if entry.begin > end:
            raise FormatError(f"a hole of {entry.begin - end:,} bytes lies before tensor {short(entry.name)}")
        end, last = entry.end, entry


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not (isinstance(value, dict) and all(isinstance(text, str) for text in value.values())):
        raise FormatError("__metadata__ must map text to text")
    return value


def _check_text(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise FormatError(f"tensor name {short(name)} is not valid Unicode") from None


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= _MAX_BYTES for n in value)
