"""The append log of a run: checkpoints one after another in one file, for steps too short to create files at each.

A log is a row of records, a record a frame of 48 bytes (little-endian) and then the exact bytes of a safetensors file:

    magic   8  CKPTLOG1
    serial  8  counts the records of a run: of two records of one step the later one counts
    step    8
    length  8  bytes that follow the frame
    every   4  1, or 512 where steps are so short that one word of each page of 4096 bytes must do
    check   4  CRC-32 of the 8-byte words 0, every, 2 every, ... of the bytes that follow
    zero    4
    crc     4  CRC-32 of the 44 bytes before

Only frames are read to list a log, so a record is found whole when its frame is intact and the file reaches its end.
`check` is compared by whoever reads a record whole (`record_fault`), not by each lazy read of a tensor. Of all words it
would cost as much as the write itself, twice what a 6 ms step can spare; and what a crash loses, it loses in pages.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import FormatError, SourceError
from .localfile import LocalFile
from .magic import HEAD
from .safetensors import SafetensorsSource, open_safetensors
from .source import Skip

MAGIC = b"CKPTLOG1"
_FIELDS = struct.Struct("<8s3Q3I")
_CRC = struct.Struct("<I")
FRAME_BYTES = _FIELDS.size + _CRC.size
_LEAST = 10  # the shortest safetensors file: a length and "{}"
_NAME = re.compile(r"log-\d{1,18}(?:-\d{1,9})?\.stlog", re.ASCII)
_MAX_STEP = 10**18
_CHUNK = 2**20
_WORD = 8
PAGE = 512
"""Words in a page of 4096 bytes."""


class Record(NamedTuple):
    """One checkpoint in a log: its safetensors bytes are `length` bytes at `offset`."""

    serial: int
    step: int
    offset: int
    length: int
    every: int
    check: int


@dataclass(frozen=True)
class LogIndex:
    """What a log holds, in the order written. Bytes from `end` to `size` are no whole record.

    `torn` says that a record was cut short there, as a kill or a full disk leaves it, or is just being written; other
    bytes there are damage.
    """

    path: Path
    records: Sequence[Record]
    end: int
    size: int
    torn: bool

    @property
    def skip(self) -> Skip | None:
        """What could not be read, if anything."""
        if self.end == self.size:
            return None
        kind = "a record cut short or still being written" if self.torn else "damaged: no record begins there"
        return Skip(self.path.name, f"its last {self.size - self.end:,} bytes, from {self.end:,} on, are {kind}")


class LogFile(LocalFile):
    """A log may grow while it is read; what has been listed stays where it is."""

    __slots__ = ()

    @staticmethod
    def stamp(status: os.stat_result) -> tuple[int, ...]:
        """Return what must not change while the file is in use."""
        return status.st_dev, status.st_ino


def is_log_name(name: str) -> bool:
    """Return whether a run's file of that name is an append log."""
    return _NAME.fullmatch(name) is not None


def is_log(head: bytes) -> bool:
    """Return whether a file that begins with `head` is an append log."""
    return head.startswith(MAGIC)


def frame(serial: int, step: int, length: int, check: int, every: int = 1) -> bytes:
    """Return the frame of a record; `check` is the checksum of every so many of its words."""
    fields = _FIELDS.pack(MAGIC, serial, step, length, every, check, 0)
    return fields + _CRC.pack(zlib.crc32(fields))


def checksum(data: memoryview | bytes, every: int = 1, check: int = 0) -> int:
    """Return the CRC-32 of the 8-byte words 0, `every`, 2 `every`, ... (the last may be short), going on from `check`.

    Data in several blocks may be given one after the other when all but the last are whole pages.
    """
    if every == 1:
        return zlib.crc32(data, check)
    return zlib.crc32(b"".join(data[at : at + _WORD] for at in range(0, len(data), _WORD * every)), check)


class PageCheck:
    """The checksum of one word in each page of memory in parts; where to look is kept for the same list of parts.

    Parts that end within a word are joined with those behind them, so they should come last.
    """

    def __init__(self) -> None:
        self._parts: Sequence[memoryview] = ()
        self._words: list[memoryview] = []
        self._tail: Sequence[memoryview] = ()
        self._skip = 0

    def __call__(self, parts: Sequence[memoryview]) -> int:
        if parts is not self._parts:
            self._parts = parts
            self._look()
        # No numpy: in a training loop its code is never in the cache, and a call of 5 us takes 60.
        check = zlib.crc32(b"".join(map(memoryview.tobytes, self._words)))
        return checksum(b"".join(self._tail)[self._skip :], PAGE, check) if self._tail else check

    def _look(self) -> None:
        offset, self._words, self._tail = 0, [], ()
        for at, part in enumerate(self._parts):
            self._skip = -offset % (PAGE * _WORD)
            if len(part) % _WORD:
                self._tail = self._parts[at:]
                return
            if len(part) > self._skip:
                self._words.append(part.cast("B").cast("Q")[self._skip // _WORD :: PAGE])
            offset += len(part)


def scan(path: Path) -> LogIndex:
    """Return the index of a log, reading its frames only. Raises SourceError when the file cannot be read."""
    with closing(LogFile(path)) as file:
        records: list[Record] = []
        end, size = 0, file.size
        while (record := _record_at(file, end, size)) and record.offset + record.length <= size:
            records.append(record)
            end = record.offset + record.length
        torn = record is not None or size - end < FRAME_BYTES
        return LogIndex(path, records, end, size, torn)


def _record_at(file: LocalFile, at: int, size: int) -> Record | None:
    if size - at < FRAME_BYTES:
        return None
    data = file.read(at, FRAME_BYTES)
    magic, serial, step, length, every, check, _ = _FIELDS.unpack_from(data)
    if magic != MAGIC or _CRC.unpack_from(data, _FIELDS.size)[0] != zlib.crc32(data[: _FIELDS.size]):
        return None
    if length < _LEAST or step > _MAX_STEP or every not in (1, PAGE):
        return None
    return Record(serial, step, at + FRAME_BYTES, length, every, check)


def scan_if_log(path: Path) -> LogIndex | None:
    """Return the index of a file that is a log by its first bytes, None of any other."""
    with closing(LocalFile(path)) as file:
        known = is_log(file.head(len(MAGIC)))
    return scan(path) if known else None


def scan_folder(folder: Path, names: Iterable[str]) -> list[LogIndex]:
    """Return the indices of the logs among the names in a folder, in the order in which they were written."""
    found = [scan(folder / name) for name in sorted(filter(is_log_name, names))]
    return sorted(found, key=lambda index: index.records[0].serial if index.records else -1)


def latest(indices: Iterable[LogIndex]) -> Iterator[tuple[Path, Record]]:
    """Yield the record that counts of each step, and the log it lies in."""
    found: dict[int, tuple[Path, Record]] = {}
    for index in indices:
        for record in index.records:
            if record.step not in found or found[record.step][1].serial < record.serial:
                found[record.step] = index.path, record
    yield from found.values()


def open_record(path: Path, record: Record) -> SafetensorsSource:
    """Return the tensors of one record. Raises FormatError when its safetensors header is bad."""
    file = LogFile(path)
    try:
        head = file.read(record.offset, min(record.length, HEAD))
        return open_safetensors(file, head, base=record.offset, size=record.length)
    finally:
        file.close()


def open_log(file: LocalFile, head: bytes) -> SafetensorsSource:
    """Return the tensors of a log that holds a single checkpoint; raises SourceError for any other."""
    index = scan(file.path)
    if len(index.records) == 1:
        return open_record(file.path, index.records[0])
    raise SourceError(
        f"{file.path} is a log of {len(index.records):,} checkpoints, not one of them. "
        "Open it, or the run it belongs to, as a trajectory."
    )


class Span(NamedTuple):
    """Bytes of a file: a record's, or a whole file's."""

    path: Path
    offset: int
    length: int

    def blocks(self) -> Iterator[memoryview]:
        """Yield the bytes in blocks of whole pages but for the last; each replaces the one before."""
        with closing(LogFile(self.path)) as file:
            block = memoryview(bytearray(min(_CHUNK, self.length)))
            for at in range(0, self.length, max(1, len(block))):
                part = block[: min(len(block), self.length - at)]
                file.read_into(self.offset + at, part)
                yield part

    def checksum(self, every: int = 1) -> int:
        """Return the checksum of every so many words."""
        check = 0
        for part in self.blocks():
            check = checksum(part, every, check)
        return check


def record_span(path: Path, record: Record) -> Span:
    """Return where the safetensors bytes of a record lie."""
    return Span(path, record.offset, record.length)


def record_fault(path: Path, record: Record) -> str:
    """Return what is wrong with a record read whole, "" when its bytes are those that were written."""
    try:
        if record_span(path, record).checksum(record.every) != record.check:
            return f"{path}, step {record.step}: the bytes from {record.offset:,} on are not those that were written"
        open_record(path, record)
    except FormatError as error:
        return str(error).rstrip(".")
    return ""
