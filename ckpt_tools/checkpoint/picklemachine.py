"""The stack machine that reads pickles: a stream of bytes, a stack, a memo, and what a call may become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import FormatError
from .inert import Blob, Builder, Global, Instance, Persistent
from .region import Region

MAX_BYTES = 64 * 2**20
BLOB = 2**8
"""Byte strings of at least this length stay in the file."""
_WINDOW = 2**17
_INT64 = 2**63
_MAX_TUPLE_KEY = 16


class Stream:
    """Sequential reading of a region in windows."""

    __slots__ = ("_data", "_first", "_left", "_pos", "_region")

    def __init__(self, region: Region, start: int, max_bytes: int) -> None:
        self._region, self._first, self._left = region, start, max_bytes
        self._data, self._pos = b"", 0

    @property
    def at(self) -> int:
        return self._first + self._pos

    def take(self, count: int) -> bytes:
        end = self._pos + count
        if end > len(self._data):
            self._fill(count)
            end = count
        data = self._data[self._pos : end]
        self._pos = end
        return data

    def byte(self) -> int:
        if self._pos >= len(self._data):
            self._fill(1)
        self._pos += 1
        return self._data[self._pos - 1]

    def line(self) -> bytes:
        found = self._data.find(b"\n", self._pos)
        if found < 0:
            self._fill(min(_WINDOW, self._region.size - self.at))
            found = self._data.find(b"\n", self._pos)
        if found < 0:
            raise ValueError("a line of text does not end")
        return self.take(found + 1 - self._pos)[:-1]

    def text(self, count: int) -> str:
        return self.take(count).decode("utf-8", "backslashreplace")

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def skip(self, count: int) -> Blob:
        """Pass over bytes that stay in the file."""
        at = self.at
        self._region.check(at, count)
        if self._pos + count <= len(self._data):
            self._pos += count
        else:
            self._first, self._data, self._pos = at + count, b"", 0
        return Blob(self._region.base + at, count)

    def _fill(self, count: int) -> None:
        at = self.at
        self._region.check(at, count)
        size = max(count, min(_WINDOW, self._region.size - at))
        kept = len(self._data) - self._pos
        self._left -= size - kept
        if self._left < -_WINDOW:
            raise FormatError(f"{self._region.path}: the pickle is too large to be a list of tensors; it is not read.")
        self._data, self._first, self._pos = self._region.read(at, size), at, 0


class Machine:
    """The stack machine."""

    def __init__(self, stream: Stream, builders: Mapping[str, Builder], persistent: Persistent | None) -> None:
        self.stream, self.builders, self.persistent = stream, builders, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.unknown: set[str] = set()
        self.copied = 0

    def to_mark(self) -> list[Any]:
        """Take everything down to the last mark off the stack."""
        mark = self.marks.pop()
        taken = self.stack[mark:]
        del self.stack[mark:]
        return taken

    def blob(self, count: int) -> None:
        """Push a byte string, or where it lies when it is long."""
        self.stack.append(self.stream.take(count) if count < BLOB else self.stream.skip(count))

    def call(self, function: Any, args: Any) -> Any:
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise ValueError("it calls something that is no name")
        name = str(function)
        builder = self.builders.get(name)
        if builder is not None:
            # A builder may copy its arguments, and one long argument can be given to millions of calls.
            self.copied += sum(len(arg) for arg in args if isinstance(arg, (str, bytes)))
            self.copied += sum(8 * len(arg) for arg in args if isinstance(arg, (list, dict, tuple)))
            if self.copied > 2 * MAX_BYTES:
                raise ValueError("it repeats itself too often")
            return builder(name, args)
        self.unknown.add(name)
        return Instance(name, args)

    def extend(self, target: Any, values: list[Any]) -> None:
        kept = target
        if isinstance(target, Instance):
            kept = target.values = target.values or []
        if not isinstance(kept, list):
            raise ValueError("it appends to something that is no list")
        kept += values

    def fill(self, target: Any, flat: list[Any]) -> None:
        kept = target
        if isinstance(target, Instance):
            kept = target.items = target.items or {}
        if not isinstance(kept, dict) or len(flat) % 2:
            raise ValueError("it puts items into something that is no dict")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            kept[_key(key)] = value


def _key(value: Any) -> Any:
    """Return what stands for a key. Keys that an attacker can make collide by the thousand are refused or turned."""
    if type(value) is int and not -_INT64 <= value < _INT64:
        raise ValueError("a key is a number of more than 64 bits")
    if isinstance(value, tuple):
        if len(value) > _MAX_TUPLE_KEY or not all(map(_is_short, value)):
            raise ValueError("a key is a tuple of something else than a few words and numbers")
        return repr(value)
    if value is None or isinstance(value, (str, bytes, int, float, Global, Instance)):
        return value
    raise ValueError("a key is neither a text nor a number")


def _is_short(value: Any) -> bool:
    return value is None or isinstance(value, (int, float)) or (isinstance(value, str) and len(value) < BLOB)
