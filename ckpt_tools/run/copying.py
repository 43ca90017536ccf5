"""What packing and unpacking share: where a checkpoint's bytes lie, whether two are equal, what was done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..checkpoint.log import Span, record_span
from ..checkpoint.packed import Entry
from ..checkpoint.source import Skip
from .folders import MODEL_FILE

Progress = Callable[[int, int, str], None]
"""Called with the checkpoints done, their number, and a word on the last one."""


@dataclass
class Copied:
    """What a call did: checkpoints written and their bytes, those that were there already, and what was left alone.

    `damaged` has a sentence for each checkpoint whose bytes are not those that were once written.
    """

    written: int = 0
    bytes: int = 0
    present: int = 0
    skipped: list[Skip] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def silent(done: int, total: int, detail: str) -> None:
    """Report nothing."""


def span_of(entry: Entry) -> Span:
    """Return where the safetensors bytes of a checkpoint in a folder or log lie."""
    if entry.record is not None:
        return record_span(entry.local, entry.record)
    file = entry.local / MODEL_FILE
    return Span(file, 0, file.stat().st_size)


def equal(one: Span, other: Span) -> bool:
    """Return whether two spans hold the same bytes, read from the files."""
    return one.length == other.length and all(a == b for a, b in zip(one.blocks(), other.blocks(), strict=True))
