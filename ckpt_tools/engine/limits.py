"""A time limit on one unit."""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class UnitTimeout(Exception):
    """A unit took longer than `--timeout`."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise UnitTimeout in the block after so many seconds; no limit for None. A call into compiled code ends first.

    In a process's main thread an alarm signal does it, which ends a sleep too; in other threads an exception is sent,
    which comes when the next Python instruction is run.
    """
    if seconds is None:
        yield
    elif threading.current_thread() is threading.main_thread():
        with _alarm(seconds):
            yield
    else:
        with _sent(seconds):
            yield


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise UnitTimeout(_text(seconds))

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _sent(seconds: float) -> Iterator[None]:
    thread = ctypes.c_ulong(threading.get_ident())
    turn, over = threading.Lock(), False

    def stop() -> None:
        with turn:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(UnitTimeout))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    except UnitTimeout:
        raise UnitTimeout(_text(seconds)) from None
    finally:
        with turn:
            over = True
        timer.cancel()


def _text(seconds: float) -> str:
    return f"took longer than {seconds:g} s (--timeout)"
