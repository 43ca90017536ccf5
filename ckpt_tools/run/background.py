"""Save in the background: copies of large checkpoints wait in a bounded queue for a thread that writes them.

The copy is mandatory, since training changes the tensors at once, and is all that the loop waits for. A thread pays
only where writing takes much longer than handing over: for small models it fights the loop for the interpreter.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .store import Store

MAX_WAITING = 64
MEMORY_SHARE = 0.25

Array = np.ndarray[Any, np.dtype[np.uint8]]
Fill = Callable[[Array], None]


class SaveQueue:
    """Writes copies of checkpoints to a store from one thread, in the order given.

    At most `limit` bytes of copies exist, one checkpoint in any case: `put` waits for room. An error of the store is
    raised by the next call of `put` or `close`, and nothing is written after it.
    """

    def __init__(self, store: Store, limit: int | None = None) -> None:
        self.store, self.limit = store, limit
        self._waiting: deque[tuple[int, Array]] = deque()
        self._free: list[Array] = []
        self._made = 0
        self._busy = self._closing = False
        self._error: Exception | None = None
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, step: int, size: int, fill: Fill) -> None:
        """Let `fill` copy a checkpoint of `size` bytes into a buffer, and have it written as soon as possible."""
        buffer = self._buffer(size)
        try:
            fill(buffer)
        except BaseException:
            self._free.append(buffer)
            raise
        with self._change:
            self._start()
            self._waiting.append((step, buffer))
            self._change.notify_all()

    def _buffer(self, size: int) -> Array:
        with self._change:
            limit = self.limit if self.limit is not None else default_limit(size)
            while not self._free and self._made and (self._made + 1) * size > limit and self._error is None:
                self._change.wait()
            self._raise()
            if self._free:
                return self._free.pop()
            self._made += 1
        return np.empty(size, np.uint8)

    def drain(self) -> None:
        """Wait until everything is written. Raises the store's error."""
        with self._change:
            while (self._waiting or self._busy) and self._error is None:
                self._change.wait()
            self._raise()

    def close(self) -> None:
        """Write what waits, end the thread and close the store. Raises the store's error."""
        try:
            self.drain()
        finally:
            with self._change:
                self._closing = True
                self._change.notify_all()
            atexit.unregister(self.drain)
            if self._thread is not None:
                self._thread.join()
            self.store.close()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _start(self) -> None:
        if self._thread is None:
            # A daemon, or leaving the interpreter would wait for a thread that waits for work.
            self._thread = threading.Thread(target=self._work, name="ckpt-save", daemon=True)
            self._thread.start()
            atexit.register(self.drain)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            step, buffer = job
            try:
                self.store.put(step, [buffer.data])
            except Exception as error:  # whatever it is belongs to the training loop, not to this thread
                self._error = error
            with self._change:
                self._free.append(buffer)
                self._busy = False
                self._change.notify_all()

    def _next(self) -> tuple[int, Array] | None:
        with self._change:
            while not self._waiting and not self._closing:
                self._change.wait()
            if not self._waiting or self._error is not None:
                return None
            self._busy = True
            return self._waiting.popleft()


def default_limit(size: int) -> int:
    """Return how many bytes of copies may wait: a quarter of the available memory, and at most 64 checkpoints."""
    return min(MAX_WAITING * size, int(MEMORY_SHARE * available_memory()))


def available_memory() -> int:
    """Return the bytes that can be had without swapping; what is merely free shrinks with every file written."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
