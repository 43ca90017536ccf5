"""A file read at offsets: what every reader asks of one, and the local kind.

`pread` and never mmap: a file truncated while it is mapped kills the process with SIGBUS, and mapped pages count as
memory. Handles are opened on demand, so a thousand listed checkpoints hold no descriptors.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..errors import FormatError, SourceError

if TYPE_CHECKING:
    from .location import Location

_CHUNK = 2**30  # Linux moves at most 0x7ffff000 bytes per call


class ByteFile(Protocol):
    """Bytes at offsets, local or remote; `transferred` are those that crossed a network for it."""

    @property
    def path(self) -> Location: ...
    @property
    def size(self) -> int: ...
    @property
    def transferred(self) -> int: ...

    def head(self, count: int) -> bytes:
        """Return the first `count` bytes, or the whole file when it is shorter."""

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` (contiguous bytes) from `offset`."""

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Be told which `(offset, count)` will be read, so that neighbours can be fetched together."""

    def local(self) -> LocalFile:
        """Return the file as one on this machine's disk, copied there first if need be."""

    def close(self) -> None:
        """Release what is held; reading again reopens the file if it is still the same one."""


class LocalFile:
    """A regular file; `size` is its length when it was first opened.

    Raises SourceError when it is missing, unreadable or no regular file, and FormatError when it changes or shrinks
    while it is being read.
    """

    __slots__ = ("_fd", "_stamp", "path", "size")
    transferred = 0

    def __init__(self, path: Path) -> None:
        self._fd = -1
        self._stamp: tuple[int, ...] | None = None
        self.path = path
        self.size = self._open().st_size

    def _open(self) -> os.stat_result:
        try:
            # Without O_NONBLOCK, opening a named pipe would wait for ever.
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
            status = os.fstat(fd)
        except OSError as error:
            raise SourceError(f"Cannot read {self.path}: {error.strerror}.") from None
        stamp = self.stamp(status)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise SourceError(f"Cannot read {self.path}: it is not a regular file.")
        if self._stamp not in (None, stamp):
            os.close(fd)
            raise FormatError(f"{self.path} was replaced or rewritten while it was in use; open it again.")
        self._fd, self._stamp = fd, stamp
        return status

    @staticmethod
    def stamp(status: os.stat_result) -> tuple[int, ...]:
        """Return what must not change while the file is in use."""
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def head(self, count: int) -> bytes:
        """Return the first `count` bytes, or the whole file when it is shorter."""
        return self._pread(count, 0)

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes."""
        data = self._pread(count, offset)
        if len(data) < count:
            raise self._short(offset, count, len(data))
        return data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` (contiguous bytes) from `offset`."""
        if self._fd < 0:
            self._open()
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(self._fd, [buffer[done : done + _CHUNK]], offset + done)
            except OSError as error:
                raise SourceError(f"Cannot read {self.path}: {error.strerror}.") from None
            if not got:
                raise self._short(offset, len(buffer), done)
            done += got

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Do nothing: the system reads ahead by itself."""

    def local(self) -> LocalFile:
        """Return the file itself."""
        return self

    def _pread(self, count: int, offset: int) -> bytes:
        if self._fd < 0:
            self._open()
        try:
            return os.pread(self._fd, count, offset)
        except OSError as error:
            raise SourceError(f"Cannot read {self.path}: {error.strerror}.") from None

    def _short(self, offset: int, count: int, got: int) -> FormatError:
        return FormatError(
            f"{self.path} is truncated: bytes {offset:,} to {offset + count:,} are needed, "
            f"it ends at {offset + got:,} (it had {self.size:,} when opened)."
        )

    def close(self) -> None:
        """Release the handle; reading again reopens the file if it is still the same one."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[LocalFile], tuple[Path]]:
        return type(self), (self.path,)
