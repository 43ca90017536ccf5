"""Where a results file goes: checked before the long work, and put in place in one atomic step after it.

The file is built under a temporary name beside its target, flushed to disk and renamed, so that a reader sees the old
file or the new one, never half of either, also when the writer is killed.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ..errors import ResultsError
from .sink import Sink


def check_target(path: str | Path, force: bool = False) -> Path:
    """Return where results would be written (symbolic links followed), having tried that it can be done.

    Cheap; call it before the long work. Raises ResultsError when the folder is missing or not writable, when the file
    exists and `force` is false, or when it exists and is no HDF5 file (which `force` does not overwrite either).
    """
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise ResultsError(f"Cannot write {path}: its folder is missing. Make it first: mkdir -p {target.parent}")
    if target.is_dir():
        raise ResultsError(f"Cannot write {path}: it is a folder. Name a file in it: -o {Path(path) / 'results.h5'}")
    if target.exists():
        _require_replaceable(path, target, force)
    probe = _beside(target)
    try:
        probe.touch(exist_ok=False)
    except OSError as error:
        raise _unwritable(path, error) from error
    probe.unlink()
    return target


def _require_replaceable(path: str | Path, target: Path, force: bool) -> None:
    if not force:
        raise ResultsError(f"{path} exists already. Add --force to replace it, or name another file with -o.")
    if not target.is_file():
        raise ResultsError(f"Cannot write {path}: it is not a regular file. Name another file with -o.")
    try:
        with target.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise _unwritable(path, error) from error
    if start not in (b"", b"\x89HDF\r\n\x1a\n"):
        raise ResultsError(f"{path} is no HDF5 file, so --force does not replace it. Name another or remove it.")


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name[:64]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _unwritable(path: str | Path, error: Exception) -> ResultsError:
    reason = getattr(error, "strerror", None) or error
    return ResultsError(f"Cannot write {path}: {reason}. Free some space or choose a writable place with -o.")


@contextmanager
def replacing(path: str | Path, force: bool = False) -> Iterator[Sink]:
    """Give a file to write to, which takes the place of `path` when the block ends well.

    Raises ResultsError as `check_target` does, and when the disk does not take the file; then nothing is left behind.
    Ctrl-C and SIGTERM wait until the file is in place.
    """
    target = check_target(path, force)
    temporary = _beside(target)
    try:
        with _signals_held():
            with closing(Sink(temporary)) as sink:
                yield sink
                sink.sync()
            os.replace(temporary, target)
            _sync_folder(target.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Deliver signals with a Python handler only after the block.

    HDF5 calls back into `Sink`, and an exception raised there by a handler would leave a file that cannot be closed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    ours = {s: handler for s, handler in handlers.items() if callable(handler)}
    for number in ours:
        signal.signal(number, lambda received, frame: held.append(received))
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        for received in dict.fromkeys(held):
            signal.raise_signal(received)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
