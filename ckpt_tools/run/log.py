"""Checkpoints appended to a log: one system call each, for steps too short to create files. Format: `checkpoint/log`.

run/log-000020.stlog    records from the first one written into it, step 20, until the file is full
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..checkpoint.log import FRAME_BYTES, PAGE, LogIndex, PageCheck, checksum, frame, scan_folder
from ..checkpoint.steps import folder_step
from ..errors import RunError
from .files import Sync, write_all
from .folders import cannot_write, remove_folder
from .reserve import reserve

ROTATE_BYTES = 2**30
SMALL = 2**16


class LogStore:
    """Appends checkpoints to the last log of a run, or to a new one when it is full or damaged.

    What a killed process left behind the last whole record is cut off first.
    """

    def __init__(self, path: Path, sync: Sync, rotate: int = ROTATE_BYTES) -> None:
        self.path, self.sync, self.rotate = path, sync, rotate
        names = os.listdir(path)
        self._folders = {step: name for name in names if (step := folder_step(name)) is not None}
        logs = scan_folder(path, names)
        self._serial = 1 + max((log.records[-1].serial for log in logs if log.records), default=-1)
        self._descriptor, self._end, self._reserved = -1, 0, 0
        self._file = path
        self._page_check = PageCheck()
        if logs:
            self._continue(logs[-1])

    def _continue(self, log: LogIndex) -> None:
        if log.end < log.size and not log.torn:
            return
        try:
            self._descriptor = os.open(log.path, os.O_WRONLY | os.O_APPEND)
            os.ftruncate(self._descriptor, log.end)
        except OSError as error:
            raise RunError(f"Cannot continue {log.path}: {error.strerror}.") from error
        self._file, self._end = log.path, log.end

    def put(self, step: int, buffers: Sequence[memoryview]) -> None:
        """Append one checkpoint, which from then on counts for its step. Raises RunError; what came before stays."""
        length = sum(map(len, buffers))
        size = FRAME_BYTES + length
        try:
            if self._descriptor < 0 or self._end + size > self.rotate:
                self._begin(step)
            if self._end + size > self._reserved:
                self._reserved = reserve(self._descriptor, self._end, size)
            write_all(self._descriptor, [self._frame(step, length, buffers), *buffers], size)
        except OSError as error:
            self._cut()
            raise cannot_write(self.path, step, error) from error
        self._end += size
        self._serial += 1
        if self._folders and step in self._folders:
            self._supersede(step)
        self.sync.wrote(self._file, self.path)

    def _frame(self, step: int, length: int, buffers: Sequence[memoryview]) -> bytes:
        if len(buffers) == 1:  # from the queue, whose thread has the time to look at every word
            return frame(self._serial, step, length, checksum(buffers[0]))
        if length <= SMALL:
            return frame(self._serial, step, length, checksum(b"".join(buffers)))
        return frame(self._serial, step, length, self._page_check(buffers), PAGE)

    def _begin(self, step: int) -> None:
        self._close_file()
        self._file, self._end, self._reserved = free_name(self.path, step), 0, 0
        self._descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)

    def _cut(self) -> None:
        """Give back reserved room, and the part of a record that fitted on the disk: readers would leave it out."""
        if self._descriptor >= 0:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._end)

    def _supersede(self, step: int) -> None:
        """Remove the folder of a step whose new record is there: it would count before the record."""
        remove_folder(self.path / self._folders.pop(step))

    def close(self) -> None:
        """Close the log and flush what the rule says."""
        self._close_file()
        self.sync.flush()

    def _close_file(self) -> None:
        if self._descriptor >= 0:
            self._cut()
            os.close(self._descriptor)
            self._descriptor = -1


def free_name(path: Path, step: int) -> Path:
    """Return the name of a new log that begins with `step`; a name is taken where a resumed run went back."""
    names = (f"log-{step:06d}{suffix}.stlog" for suffix in ("", *(f"-{n}" for n in range(1, 10_000))))
    return next(path / name for name in names if not (path / name).exists())
