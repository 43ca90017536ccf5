"""From a tree of containers to a source: the weights chosen, their bytes located, what stands beside them noted."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..errors import FormatError
from .facts import config_of, facts_of
from .leaves import place_all
from .magic import UnknownFormat
from .nesting import choose
from .region import Region
from .source import Skip
from .strided import StridedSource

_MAX_CLASSES = 20


class NoWeights(UnknownFormat):
    """A file of a known format that holds no tensors."""


def tree_source(
    region: Region, root: Any, format: str, *, unknown: Collection[str] = (), part: str = ""
) -> StridedSource:
    """Return the weights found in what a file holds, `root`; `unknown` are classes that were kept as inert data.

    Raises NoWeights when there are none, SourceError when `part` is not there, FormatError for a trap.
    """
    where = str(region.path)
    chosen = choose(root, where, part)
    placed = place_all(chosen.leaves.items(), region)
    skipped = [*chosen.skipped, *placed.skipped, *_inert(unknown)]
    if not placed.extents:
        left = f" Left out: {skipped[0].name} ({skipped[0].reason})." if skipped else ""
        unread = f"that can be read, out of {len(chosen.leaves)}" if chosen.leaves else "of a model"
        kind = FormatError if chosen.leaves else NoWeights
        raise kind(f"{where} is a {format} file that holds no tensors {unread}.{left}")
    source = StridedSource(region.file, placed.extents, 0, format=format)
    source.aliases, source.skipped = placed.aliases, skipped
    facts = facts_of(chosen.beside)
    source.metadata = {**facts, "part": ".".join(chosen.path)} if chosen.path else facts
    source.config = config_of(chosen.beside)
    return source


def _inert(unknown: Collection[str]) -> list[Skip]:
    names = sorted(unknown)
    skips = [Skip(name[:200], "a class of the file's own, kept as inert data and never run") for name in names]
    if len(names) > _MAX_CLASSES:
        rest = len(names) - _MAX_CLASSES
        skips[_MAX_CLASSES:] = [Skip("...", f"{rest:,} more classes kept as inert data")]
    return skips
