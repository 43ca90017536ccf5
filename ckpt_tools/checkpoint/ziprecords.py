"""The records of a zip archive: where each lies, from the central directory alone.

Only stored (uncompressed) records can be read at offsets; the compressed ones of npz archives are inflated by their
reader, within the size they declare. The directory is checked for everything that would let two programs see two
different archives: names that occur twice, local headers that disagree, records outside the file.

Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import FormatError
from .region import Region

STORED, DEFLATED = 0, 8
MAX_RECORDS = 300_000
MAX_DIRECTORY = 64 * 2**20
_END, _END64, _LOCATOR, _ENTRY, _LOCAL = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02", b"PK\x03\x04"
_METHODS = {1: "shrunk", 6: "imploded", 9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstd", 95: "xz"}
_INFLATE_STEP = 2**20


@dataclass(frozen=True, slots=True)
class Record:
    """A member of an archive: `size` bytes, of which `packed` are in the file after the header at `header`."""

    name: str
    method: int
    size: int
    packed: int
    header: int
    encrypted: bool

    @property
    def how(self) -> str:
        """How its bytes are kept, in a word."""
        if self.encrypted:
            return "encrypted"
        return {STORED: "stored", DEFLATED: "deflated"}.get(self.method) or _METHODS.get(self.method, "compressed")


def is_zip(head: bytes) -> bool:
    """Return whether a file that begins with `head` is a zip archive."""
    return head.startswith((_LOCAL, _END))


def read_directory(region: Region) -> dict[str, Record]:
    """Return the records of an archive by name, in the order of its directory. Raises FormatError for a damaged one."""
    count, size, offset = _find_end(region)
    if count > MAX_RECORDS or size > MAX_DIRECTORY:
        raise FormatError(f"{region.path}: the zip directory claims {count:,} records, {size:,} bytes; it is not read.")
    data = region.read(offset, size)
    records: dict[str, Record] = {}
    for record in _entries(region, data, count):
        if record.name in records:
            raise FormatError(f"{region.path}: the zip directory has the record {record.name!r} twice.")
        records[record.name] = record
    return records


def _find_end(region: Region) -> tuple[int, int, int]:
    """Return the directory's number of records, size and offset."""
    tail = region.read(max(0, region.size - 65_557), min(region.size, 65_557))
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        raise FormatError(f"{region.path} is a zip archive without its end: the download or the save was cut short.")
    count, size, offset = struct.unpack_from("<HII", tail, at + 10)
    if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR:
        (where,) = struct.unpack_from("<Q", tail, at - 12)
        end = region.read(where, 56)
        if end[:4] != _END64:
            raise FormatError(f"{region.path}: damaged zip archive: its 64-bit end is not where it should be.")
        count, size, offset = struct.unpack_from("<QQQ", end, 32)
    return count, size, offset


def _entries(region: Region, data: bytes, count: int) -> Iterator[Record]:
    at = 0
    for _ in range(count):
        if len(data) < at + 46 or data[at : at + 4] != _ENTRY:
            raise FormatError(f"{region.path}: damaged zip archive: its directory breaks off.")
        flags, method = struct.unpack_from("<HH", data, at + 8)
        packed, size, named, extra, comment = struct.unpack_from("<IIHHH", data, at + 20)
        (header,) = struct.unpack_from("<I", data, at + 42)
        name = data[at + 46 : at + 46 + named].decode("utf-8" if flags & 0x800 else "cp437", "replace")
        more = data[at + 46 + named : at + 46 + named + extra]
        size, packed, header = _wide(more, size, packed, header)
        yield Record(name, method, size, packed, header, bool(flags & 1))
        at += 46 + named + extra + comment


def _wide(extra: bytes, *numbers: int) -> tuple[int, int, int]:
    """Return the numbers with those that need 64 bits taken from the zip64 extra field."""
    at, wide = 0, b""
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            wide = extra[at + 4 : at + 4 + size]
        at += 4 + size
    values = iter([int.from_bytes(wide[i : i + 8], "little") for i in range(0, len(wide) - 7, 8)])
    first, second, third = (next(values, n) if n == 0xFFFFFFFF else n for n in numbers)
    return first, second, third


def locate(region: Region, record: Record) -> Region:
    """Return where the bytes of a stored record lie. Raises FormatError for any other, and for one cut short."""
    if record.method != STORED or record.encrypted or record.size != record.packed:
        raise FormatError(
            f"{region.path}: record {record.name!r} is {record.how}; only stored records are read here, which is how "
            "such archives are written. Unpack it and store it again without compression."
        )
    return _packed(region, record)


def _packed(region: Region, record: Record) -> Region:
    header = region.read(record.header, 30)
    named, extra = struct.unpack_from("<HH", header, 26)
    if header[:4] != _LOCAL or (named != len(record.name) and record.name.isascii()):
        raise FormatError(f"{region.path}: damaged zip archive: record {record.name!r} is not where it should be.")
    return region.part(record.header + 30 + named + extra, record.packed)


class Inflating:
    """A deflated record read forward; going back begins anew. Holds a block besides what is asked for, never more."""

    def __init__(self, region: Region, record: Record) -> None:
        if record.method != DEFLATED or record.encrypted:
            raise FormatError(f"{region.path}: record {record.name!r} is {record.how}, which is not read here.")
        self._region, self._record = region, record
        self._blocks: Iterator[bytes] = iter(())
        self._block, self._at = b"", -1

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes from `offset` of the record's content; FormatError when it ends earlier."""
        if self._at < 0 or offset < self._at:
            self._blocks, self._block, self._at = _inflated(self._region, self._record), b"", 0
        out = bytearray()
        while len(out) < count:
            skip = offset + len(out) - self._at
            out += self._block[skip : skip + count - len(out)]
            if len(out) < count:
                self._at += len(self._block)
                self._block = self._next(offset + count)
        return bytes(out)

    def _next(self, needed: int) -> bytes:
        block = next(self._blocks, None)
        if block is None:
            self._at, name = -1, self._record.name
            raise FormatError(f"{self._region.path}: record {name!r} is truncated: {needed:,} bytes of it are needed.")
        return block


def _inflated(region: Region, record: Record) -> Iterator[bytes]:
    packed, machine, at = _packed(region, record), zlib.decompressobj(-15), 0
    try:
        while not machine.eof and (machine.unconsumed_tail or at < packed.size):
            data = machine.unconsumed_tail
            if not data:
                data = packed.read(at, min(_INFLATE_STEP, packed.size - at))
                at += len(data)
            yield machine.decompress(data, _INFLATE_STEP)
    except zlib.error as error:
        raise FormatError(f"{region.path}: record {record.name!r} is damaged: {error}.") from None
