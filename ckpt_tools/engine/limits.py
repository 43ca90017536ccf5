"""A time limit on one unit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class UnitTimeout(Exception):
    """A unit took longer than `--timeout`."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise UnitTimeout in the block after so many seconds; no limit for None.

    It works through an alarm signal, so only in a process's main thread, and a call into compiled code ends first.
    """
    if seconds is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a time limit needs the main thread of its process")

    def stop(number: int, frame: FrameType | None) -> None:
        raise UnitTimeout(f"took longer than {seconds:g} s (--timeout)")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
