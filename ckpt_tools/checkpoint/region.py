"""A part of a file that stands for a file of its own: an archive inside an archive, a record, a chunk."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import FormatError
from .localfile import ByteFile
from .location import Location


@dataclass(frozen=True, slots=True)
class Region:
    """`size` bytes from `base` of a file; offsets given to its methods count from `base`, and never leave it."""

    file: ByteFile
    base: int
    size: int

    @classmethod
    def whole(cls, file: ByteFile) -> Region:
        """Return the region of a whole file."""
        return cls(file, 0, file.size)

    @property
    def path(self) -> Location:
        """The file's path, for messages."""
        return self.file.path

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes; raises FormatError when they are not all inside, before any is read."""
        self.check(offset, count)
        return self.file.read(self.base + offset, count)

    def head(self, count: int) -> bytes:
        """Return the first `count` bytes, or all when there are fewer."""
        return self.file.read(self.base, min(count, self.size))

    def part(self, offset: int, size: int) -> Region:
        """Return a region of this region."""
        self.check(offset, size)
        return Region(self.file, self.base + offset, size)

    def check(self, offset: int, count: int) -> None:
        """Raise FormatError when `count` bytes from `offset` are not all inside."""
        if offset < 0 or count < 0 or offset + count > self.size:
            where = f" of the part at byte {self.base:,}" if self.base else ""
            raise FormatError(
                f"{self.path} is truncated or damaged: bytes {offset:,} to {offset + count:,}{where} are needed, "
                f"it has {self.size:,}."
            )
