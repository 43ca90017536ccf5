"""One process at a time changes a run: a lock on its folder, which the system releases when the process dies."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import RunError

_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class RunLock:
    """Held from creation to `release`. Raises RunError when another process, or another writer here, holds it.

    File systems without locks are taken at their word: nothing is checked there.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise RunError(f"{path} is being written by another process. Wait for it to end, or stop it.") from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                self.release()
                raise RunError(f"Cannot lock {path}: {error.strerror}.") from error

    def release(self) -> None:
        """Let others change the run; a later call changes nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.release()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.release()
