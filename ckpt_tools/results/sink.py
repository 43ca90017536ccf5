"""The file object HDF5 writes through, made for the day the disk is full.

When HDF5 cannot write it cannot close the file either: it prints pages of errors and the process ends in a segmentation
fault at exit (h5py 3.16 with HDF5 2.0 on a full tmpfs: every time). So HDF5 is never told: a refused write is kept in
memory, HDF5 closes the file in peace, and `check` raises the first refusal as the OSError it was.
"""

from __future__ import annotations

import os
from pathlib import Path


class Sink:
    """A new file opened for reading and writing, with the methods h5py asks of a file object.

    Raises OSError when it cannot be created. After a refusal call `check` soon: what is refused is held in memory.
    """

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._position = 0
        self._refused: list[tuple[int, bytes]] = []
        self._size = 0
        self._error: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position and return it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def write(self, data: memoryview | bytes) -> int:
        """Write all of `data`, in memory when the disk refuses; return its length."""
        view, at = memoryview(data).cast("B"), self._position
        self._position = at + len(view)
        self._size = max(self._size, self._position)
        try:
            while view and self._error is None:
                done = os.pwrite(self._handle, view, at)
                view, at = view[done:], at + done
        except OSError as error:
            self._error = error
        if view:
            self._refused.append((at, bytes(view)))
        return len(data)

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` from the position on, zeros where nothing was written; return its length."""
        view, start = memoryview(buffer).cast("B"), self._position
        self._position += len(view)
        stored = os.pread(self._handle, len(view), start)
        view[: len(stored)] = stored
        view[len(stored) :] = bytes(len(view) - len(stored))
        for at, data in self._refused:
            low, high = max(at, start), min(at + len(data), self._position)
            if low < high:
                view[low - start : high - start] = data[low - at : high - at]
        return len(view)

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        found = bytearray(size)
        self.readinto(memoryview(found))
        return bytes(found)

    def truncate(self, size: int) -> int:
        """Set the file's length."""
        self._size = size
        try:
            os.ftruncate(self._handle, size)
        except OSError as error:
            self._error = self._error or error
        return size

    def flush(self) -> None:
        """Do nothing: every write went to the system already."""

    def check(self) -> None:
        """Raise the OSError of the first write the disk refused, if any."""
        if self._error is not None:
            raise self._error

    def sync(self) -> None:
        """Wait until the bytes are on the disk; raises OSError when they are not."""
        self.check()
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)
