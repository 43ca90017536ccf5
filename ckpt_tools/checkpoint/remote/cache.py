"""Copies of remote files that cannot be read in parts, on the local disk and within a limit.

A copy is named by its content, so a shard that many revisions share is kept once. It appears under its name only when
it is whole (and has the SHA-256 that the hub gives); a download that was cut goes on where it ended. Before a copy is
made, those used longest ago make room. A copy in use is locked (`flock`), by whichever process, and never removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import FetchError, OptionError, SourceError
from ..localfile import LocalFile
from ..location import RemotePath, open_file
from .reader import Part

DEFAULT_SIZE = 20 * 2**30
FOLDER_VARIABLE, SIZE_VARIABLE = "CKPT_CACHE", "CKPT_CACHE_SIZE"
_PARTIAL = ".partial"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,3})?)\s*([KMGT]?I?)B?", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Return the bytes that `20GB`, `512MiB` or `1000000` says; raises OptionError for other text."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or found[2].upper() not in _UNITS:
        raise OptionError(f"{text!r} is no size; write for example 20GB, 512MiB or a number of bytes.")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def default_folder() -> Path:
    """Return where copies are kept: `CKPT_CACHE`, else `ckpt-tools` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.environ.get(FOLDER_VARIABLE) or os.path.join(home, "ckpt-tools"))


class CachedFile(LocalFile):
    """A copy in the cache; it stays there as long as this object lives, however often it is closed and read again."""

    __slots__ = ("_origin", "_pin", "transferred")

    def __init__(self, path: Path, origin: RemotePath, pin: int, transferred: int) -> None:
        self._origin, self._pin, self.transferred = origin, pin, transferred
        super().__init__(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return _copied, (self._origin,)

    def __del__(self) -> None:
        super().__del__()
        os.close(self._pin)


@dataclass(frozen=True)
class Cache:
    """The copies in a folder, together at most `limit` bytes."""

    folder: Path
    limit: int

    @classmethod
    def of(cls, limit: int | None) -> Cache:
        """Return the user's cache, with the limit of `CKPT_CACHE_SIZE` when none is given."""
        text = os.environ.get(SIZE_VARIABLE, "")
        size = parse_size(text) if text else DEFAULT_SIZE
        return cls(default_folder(), size if limit is None else limit)

    def copy(self, key: str, origin: RemotePath, part: Part, what: str, sha256: str = "") -> CachedFile:
        """Return the copy of a file, made if there is none; `key` stands for the content, `what` in messages.

        Raises FetchError when it cannot be had, is not what its hash says, or does not fit.
        """
        path = self.folder / key / origin.name
        while True:
            pin = _locked(path, fcntl.LOCK_SH)
            if pin is not None:
                os.utime(path, ns=(time.time_ns(), os.fstat(pin).st_mtime_ns))
                return CachedFile(path, origin, pin, part.transferred)
            self._download(path, part, what, sha256)

    def _download(self, path: Path, part: Part, what: str, sha256: str) -> None:
        partial = path.with_name(path.name + _PARTIAL)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _writing(partial, path) as handle:
                if handle is not None:
                    self._make_room(part.size, what, partial)
                    _fill(handle, part, what, sha256)
                    os.replace(partial, path)
        except FileNotFoundError:
            return  # another process made room in this very folder; the caller tries again
        except OSError as error:
            raise SourceError(
                f"{what} cannot be kept in {self.folder}: {error.strerror}. Set {FOLDER_VARIABLE} to another folder."
            ) from None

    def _make_room(self, size: int, what: str, keep: Path) -> None:
        if size > self.limit:
            raise FetchError(
                f"{what} has {size:,} bytes and is of a format that is read from a copy, but copies may take at most "
                f"{self.limit:,}. Raise --cache-size (or {SIZE_VARIABLE})."
            )
        copies = sorted((status.st_atime_ns, status.st_size, path) for path, status in self._copies() if path != keep)
        used = sum(bytes_used for _, bytes_used, _ in copies)
        for _, bytes_used, path in copies:
            if used + size <= self.limit:
                return
            used -= bytes_used if _removed(path) else 0
        if used + size > self.limit:
            raise FetchError(
                f"{what} has {size:,} bytes; {used:,} of the {self.limit:,} that copies may take are in use. "
                f"Raise --cache-size (or {SIZE_VARIABLE})."
            )

    def _copies(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob("*/*"):
            with suppress(FileNotFoundError):
                yield path, path.stat()


def _copied(origin: RemotePath) -> LocalFile:
    return open_file(origin).local()


def _locked(path: Path, how: int) -> int | None:
    """Return a locked handle of a file, None when there is none (any more) or it is in use."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(handle, how)
        if _is(path, handle):
            return handle
    except BlockingIOError:
        pass
    os.close(handle)
    return None


def _is(path: Path, handle: int) -> bool:
    """Return whether a path still leads to the file that a handle was opened for."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _removed(path: Path) -> bool:
    """Remove a copy unless it is in use; return whether it is gone."""
    handle = _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if handle is None:
        return not path.exists()
    path.unlink()
    os.close(handle)
    with suppress(OSError):
        path.parent.rmdir()
    return True


@contextmanager
def _writing(partial: Path, whole: Path) -> Iterator[int | None]:
    """Yield the handle of a partial copy that only one process writes at a time, None once there is a whole one."""
    while not whole.exists():
        handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _is(partial, handle):  # else somebody finished or removed it while we waited
                yield handle
                return
        finally:
            if not os.fstat(handle).st_size and _is(partial, handle):
                partial.unlink()
            os.close(handle)
    yield None


def _fill(handle: int, part: Part, what: str, sha256: str) -> None:
    """Write what is missing of a partial copy and check its hash; without a hash an earlier try is not believed."""
    sha, done = hashlib.sha256(), 0
    if sha256:
        while data := os.pread(handle, 2**20, done):
            sha.update(data)
            done += len(data)
    if done > part.size or not sha256:
        sha, done = hashlib.sha256(), 0
    os.ftruncate(handle, done)
    for chunk in part.chunks(done, part.size - done):
        sha.update(chunk)
        view = memoryview(chunk)
        while view:
            written = os.pwrite(handle, view, done)
            view, done = view[written:], done + written
    if sha256 and sha.hexdigest() != sha256:
        os.ftruncate(handle, 0)
        raise FetchError(f"{what}: the bytes received have SHA-256 {sha.hexdigest()}, the hub says {sha256}.")
