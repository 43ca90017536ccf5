"""End a run in order when its process is told to: SIGTERM, as batch systems send it, and leaving the interpreter."""

from __future__ import annotations

import os
import signal
import threading
import weakref
from contextlib import suppress
from types import FrameType

from ..errors import RunError
from .writer import RunWriter

_open: weakref.WeakSet[Terminator] = weakref.WeakSet()


class Terminator:
    """Closes a run as "interrupted" on SIGTERM, then lets the signal do what it would have done.

    Only where nobody else handles the signal, in the main thread. While `busy` is set a signal waits for `end`.
    """

    def __init__(self, run: RunWriter) -> None:
        self.run, self._process = run, os.getpid()
        self.busy = self.asked = False
        _open.add(self)
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _on_signal)

    def end(self) -> None:
        """Do what a signal asked for while `busy` was set."""
        self.busy = False
        if self.asked:
            _terminate()

    def ask(self) -> bool:
        """Return whether the run may be closed now; if not, `end` will close it."""
        self.asked = self.busy
        return not self.busy

    def interrupt(self) -> None:
        """Close the run as interrupted, unless a forked process asks, whose run it is not."""
        if os.getpid() == self._process:
            with suppress(RunError):
                self.run.finish("interrupted")

    def release(self) -> None:
        """Leave the signal alone from now on."""
        _open.discard(self)
        if not _open and threading.current_thread() is threading.main_thread():
            with suppress(ValueError):
                if signal.getsignal(signal.SIGTERM) is _on_signal:
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if all([terminator.ask() for terminator in _open]):
        _terminate()


def _terminate() -> None:
    for terminator in list(_open):
        terminator.asked = False
        terminator.interrupt()
    if threading.current_thread() is threading.main_thread():  # elsewhere the signal comes back to it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
