"""A remote file as a reader of formats sees it: its first bytes are kept, the rest is fetched when asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from threading import Event
from typing import Any, Protocol

from ...errors import FormatError
from ..localfile import LocalFile
from ..location import RemotePath, open_file
from .pieces import Pieces
from .ranged import NoRanges

FIRST = 2**16
"""Bytes of a file asked for first, while it is not known how long the headers of its kind are."""
_KEPT_HEAD = 2**20
_KEPT_HEADS = 2**26
_LONGEST_HEAD = 2**25


class Part(Protocol):
    """What can be fetched in parts: `HttpFile`, or an object of a file system."""

    size: int

    @property
    def transferred(self) -> int: ...

    def chunks(self, offset: int, count: int, stop: Event | None = None) -> Iterator[bytes]:
        """Yield exactly `count` bytes from `offset`. Raises FetchError."""


class Heads:
    """First bytes of files, kept by content: a shard seen at another step is not asked for its header again."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._needed: dict[str, int] = {}

    def of(self, content: str) -> bytes:
        """Return what is known of a content's beginning."""
        return self._kept.get(content, b"")

    def keep(self, content: str, head: bytes) -> None:
        """Remember a content's beginning; `content` is its hash, or whatever else stands for it."""
        if content and len(head) <= _KEPT_HEAD:
            self._kept[content] = head
            while sum(map(len, self._kept.values())) > _KEPT_HEADS:
                self._kept.popitem(last=False)

    def guess(self, name: str) -> int:
        """Return how many bytes to ask of a file of this name: what the last one turned out to need."""
        return self._needed.get(name, FIRST)

    def needed(self, name: str, count: int) -> None:
        """Remember that `count` bytes of a file of this name were looked at."""
        self._needed[name] = max(count, self._needed.get(name, 0))


class RemoteFile:
    """A file read in ranges; `copy` puts all of it on the local disk, for what cannot be read in ranges."""

    def __init__(
        self,
        path: RemotePath,
        part: Part,
        copy: Callable[[Part], LocalFile],
        heads: Heads,
        *,
        content: str = "",
        head: bytes = b"",
    ) -> None:
        self.path, self.size = path, part.size
        self._part, self._copy, self._heads, self._content = part, copy, heads, content
        self._head = head or heads.of(content)
        self._pieces = Pieces(self._fetch)
        self._whole: LocalFile | None = None

    @property
    def transferred(self) -> int:
        """Bytes that crossed the network for this file so far."""
        return self._part.transferred

    def head(self, count: int) -> bytes:
        """Return the first `count` bytes, or the whole file when it is shorter."""
        self._grow(count)
        return self._head[:count]

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes."""
        self._within(offset, count)
        if offset <= len(self._head) and offset + count <= _LONGEST_HEAD:
            # A header that is read in small steps must not become as many requests.
            self._grow(offset + count, ahead=FIRST if count < FIRST else 0)
            return self._head[offset : offset + count]
        data = bytearray(count)
        self._pieces.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` (contiguous bytes) from `offset`."""
        self._within(offset, len(buffer))
        if offset + len(buffer) <= len(self._head):
            buffer[:] = self._head[offset : offset + len(buffer)]
        else:
            self._pieces.read_into(offset, buffer)

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Be told which `(offset, count)` will be read, so that neighbours are fetched together."""
        known = len(self._head)
        self._pieces.expect((offset, count) for offset, count in ranges if offset + count > known)

    def local(self) -> LocalFile:
        """Return a copy on this machine's disk."""
        return self._copy(self._part)

    def close(self) -> None:
        """Forget what was fetched ahead; reading again fetches again."""
        self._pieces.drop()
        if self._whole is not None:
            self._whole.close()

    def _grow(self, count: int, ahead: int = 0) -> None:
        """Have at least the first `count` bytes; if any must be fetched, `ahead` more."""
        count = min(count, self.size)
        if count > len(self._head):
            guess = count + ahead if self._head else max(count, self._heads.guess(self.path.name))
            more = bytearray(min(guess, self.size) - len(self._head))
            self._fetch(len(self._head), memoryview(more), None)
            self._head += more
            self._heads.keep(self._content, self._head)
        self._heads.needed(self.path.name, count)

    def _fetch(self, offset: int, buffer: memoryview, stop: Event | None) -> None:
        if self._whole is None:
            try:
                done = 0
                for chunk in self._part.chunks(offset, len(buffer), stop):
                    buffer[done : done + len(chunk)] = chunk
                    done += len(chunk)
                return
            except NoRanges:
                self._whole = self._copy(self._part)
        self._whole.read_into(offset, buffer)

    def _within(self, offset: int, count: int) -> None:
        if offset + count > self.size:
            raise FormatError(
                f"{self.path} is truncated: bytes {offset:,} to {offset + count:,} are needed, it has {self.size:,}."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return open_file, (self.path,)


class MemoryFile:
    """A small file that was fetched whole."""

    def __init__(self, path: RemotePath, data: bytes, transferred: int, copy: Callable[[Part], LocalFile]) -> None:
        self.path, self.size, self.transferred = path, len(data), transferred
        self._data, self._copy = data, copy

    def head(self, count: int) -> bytes:
        """Return the first `count` bytes, or the whole file when it is shorter."""
        return self._data[:count]

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes."""
        data = self._data[offset : offset + count]
        if len(data) < count:
            raise FormatError(f"{self.path} is truncated: it has {self.size:,} bytes, {offset + count:,} are needed.")
        return data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        buffer[:] = self.read(offset, len(buffer))

    def chunks(self, offset: int, count: int, stop: Event | None = None) -> Iterator[bytes]:
        """Yield the bytes of a range."""
        yield self._data[offset : offset + count]

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Do nothing: all of it is here."""

    def local(self) -> LocalFile:
        """Return a copy on this machine's disk."""
        return self._copy(self)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open_file, (self.path,)
