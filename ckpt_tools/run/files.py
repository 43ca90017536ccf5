"""Put bytes into files: whole or not at all, and on the device when asked."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import OptionError, RunError

_MAX_BUFFERS = 1024


def write_all(descriptor: int, buffers: Sequence[bytes | memoryview], size: int = -1) -> None:
    """Write all buffers, of `size` bytes if known, in as few system calls as it takes: one for most."""
    written = os.writev(descriptor, buffers[:_MAX_BUFFERS])
    if written == size:
        return
    left = list(buffers)
    while left:
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = left[0][written:]
        written = os.writev(descriptor, left[:_MAX_BUFFERS]) if left else 0


def write_new(path: Path, buffers: Sequence[memoryview]) -> None:
    """Create or empty a file and write it; raises OSError as the system does."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        write_all(descriptor, buffers)
    finally:
        os.close(descriptor)


def write_file(path: Path, buffers: Sequence[memoryview]) -> None:
    """Write a file whole under a hidden name and rename it into place. Raises RunError when that fails."""
    draft = path.with_name(f".{path.name}.tmp")
    try:
        write_new(draft, buffers)
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise RunError(f"Cannot write {path}: {error.strerror}.") from error


class Sync:
    """Which files are flushed to the device, and when: `never`, at `close`, or every so many seconds and at close.

    `always` are flushed with the others. A killed process loses nothing without it, a power cut may. Raises
    OptionError for another rule.
    """

    def __init__(
        self, rule: str | float, always: Sequence[Path] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        number = not isinstance(rule, (str, bool)) and rule >= 0
        if not number and rule not in ("never", "close"):
            raise OptionError(f"fsync must be 'never', 'close' or a number of seconds. Got {rule!r} instead.")
        self.rule, self.always = rule, always
        self._every = float(rule) if number else float("inf")
        self._clock, self._last = clock, clock()
        self._paths: dict[Path, None] = {}

    def wrote(self, *paths: Path) -> None:
        """Note files and folders that changed; flush all noted ones when the time has come."""
        if self.rule == "never":
            return
        self._paths.update(dict.fromkeys(paths))
        if self._clock() - self._last >= self._every:
            self.flush()

    def flush(self) -> None:
        """Flush all noted files now. Raises RunError when the device refuses."""
        if self.rule == "never":
            return
        for path in (*self._paths, *(p for p in self.always if p.exists())):
            _flush(path)
        self._paths.clear()
        self._last = self._clock()


def _flush(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RunError(f"Cannot flush {path} to the device: {error.strerror}.") from error
