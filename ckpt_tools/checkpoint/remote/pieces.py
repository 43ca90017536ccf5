"""Ranges of a file that are about to be read, fetched in larger pieces and ahead of their use.

A request costs a round trip whatever its size, so neighbours travel together; a long range is cut, so that several
connections share it and memory stays bounded.
"""

from __future__ import annotations

import os
from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from threading import Event, Lock

GAP = 2**15
"""Bytes between two ranges that are fetched and dropped rather than asked around: less than a round trip is worth."""
JOINED = 2**22
"""Bytes up to which neighbours are joined: what is wasted at most when only one of them is read after all."""
PIECE = 2**23
AHEAD = 2
KEPT = 6
CONNECTIONS = 4

Fetch = Callable[[int, memoryview, Event], None]


def join(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return `(start, stop)` of the pieces that cover the ranges `(offset, count)`, ascending."""
    joined: list[tuple[int, int]] = []
    for offset, count in sorted(ranges):
        start, stop = joined[-1] if joined else (0, -GAP - 1)
        if offset - stop <= GAP and max(stop, offset + count) - start <= JOINED:
            joined[-1] = (start, max(stop, offset + count))
        elif count:
            joined.append((offset, offset + count))
    return [(at, min(at + PIECE, stop)) for start, stop in joined for at in range(start, stop, PIECE)]


class Pieces:
    """The pieces of one file; `fetch(offset, buffer, stop)` fills a buffer and gives up when `stop` is set."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._pieces: list[tuple[int, int]] = []
        self._held: OrderedDict[tuple[int, int], Future[memoryview]] = OrderedDict()
        self._last = -1
        self._stop = Event()
        self._lock = Lock()

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Plan the pieces of ranges `(offset, count)` that are not planned yet; nothing is fetched."""
        with self._lock:
            for piece in join(r for r in ranges if self._find(r[0]) < 0):
                insort(self._pieces, piece)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`: from pieces where some are planned, else by requests of its own."""
        done = 0
        while done < len(buffer):
            piece, data = self._piece_at(offset + done, len(buffer) - done)
            if data is None:
                self._directly(offset + done, buffer[done:])
                return
            skip = offset + done - piece[0]
            part = data.result()[skip : skip + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)

    def drop(self) -> None:
        """Forget what was fetched and stop what is being fetched."""
        with self._lock:
            self._stop.set()
            for data in self._held.values():
                data.cancel()
            self._held.clear()
            self._stop, self._last = Event(), -1

    def _find(self, offset: int) -> int:
        """Return the index of the piece that holds a byte, -1 if none is planned."""
        at = bisect_right(self._pieces, (offset, 2**63)) - 1
        return at if at >= 0 and offset < self._pieces[at][1] else -1

    def _piece_at(self, offset: int, count: int) -> tuple[tuple[int, int], Future[memoryview] | None]:
        with self._lock:
            at = self._find(offset)
            if at < 0:
                return (0, 0), None
            piece = self._pieces[at]
            if piece not in self._held and count >= 2 * PIECE:
                return piece, None  # it goes straight into the reader's memory
            data = self._started(piece)
            self._start_next(at)
            return piece, data

    def _start_next(self, at: int) -> None:
        """Fetch ahead when the reader goes through the pieces in order, or through a range that was cut."""
        for next_at in range(at + 1, min(at + 1 + AHEAD, len(self._pieces))):
            if at == self._last + 1 or self._pieces[next_at - 1][1] == self._pieces[next_at][0]:
                self._started(self._pieces[next_at])
        self._last = at
        while len(self._held) > KEPT:
            self._held.popitem(last=False)

    def _started(self, piece: tuple[int, int]) -> Future[memoryview]:
        if piece not in self._held:
            self._held[piece] = _pool(os.getpid()).submit(self._fetched, piece, self._stop)
        self._held.move_to_end(piece)
        return self._held[piece]

    def _fetched(self, piece: tuple[int, int], stop: Event) -> memoryview:
        buffer = memoryview(bytearray(piece[1] - piece[0]))
        self._fetch(piece[0], buffer, stop)
        return buffer

    def _directly(self, offset: int, buffer: memoryview) -> None:
        if len(buffer) < 2 * PIECE:
            self._fetch(offset, buffer, self._stop)
            return
        stop, pool = Event(), _pool(os.getpid())
        starts = range(0, len(buffer), PIECE)
        parts = [pool.submit(self._fetch, offset + at, buffer[at : at + PIECE], stop) for at in starts]
        try:
            for part in parts:
                part.result()
        finally:
            stop.set()
            for part in parts:
                part.cancel()


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Return the threads that fetch; those of a parent process do not survive a fork, hence the key."""
    return ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="ckpt-fetch")
