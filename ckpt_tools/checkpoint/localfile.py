"""A local file read at offsets.

`pread` and never mmap: a file truncated while it is mapped kills the process with SIGBUS, and mapped pages count as
memory. Handles are opened on demand, so a thousand listed checkpoints hold no descriptors.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import FormatError, SourceError

_CHUNK = 2**30  # Linux moves at most 0x7ffff000 bytes per call


class LocalFile:
    """A regular file; `size` is its length when it was first opened.

    Raises SourceError when it is missing, unreadable or no regular file, and FormatError when it changes or shrinks
    while it is being read.
    """

    __slots__ = ("_fd", "_stamp", "path", "size")

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
