"""From a tree of containers to a source: the weights chosen, their bytes located, what stands beside them noted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..errors import FormatError
from .facts import COUNTERS, config_of, facts_of
from .leaves import Leaf, place_all
from .magic import UnknownFormat
from .nesting import choose
from .raw import Extent
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
    facts = facts_of([*chosen.beside, _counters(chosen.beside, region)])
    source.metadata = {**facts, "part": ".".join(chosen.path)} if chosen.path else facts
    source.config = config_of(chosen.beside)
    return source


def _counters(levels: Sequence[Mapping[Any, Any]], region: Region) -> dict[str, int]:
    """Return the step counters that are tensors of one number."""
    found = {key: level[key] for level in levels for key in COUNTERS if isinstance(level.get(key), Leaf)}
    counters: dict[str, int] = {}
    for key, leaf in found.items():
        extent = leaf.place(key, region)
        if isinstance(extent, Extent) and extent.shape in ((), (1,)):
            number = float(StridedSource(region.file, {key: extent}, 0).read(key).reshape(()))
            counters |= {key: int(number)} if number.is_integer() else {}
    return counters


def _inert(unknown: Collection[str]) -> list[Skip]:
    names = sorted(unknown)
    skips = [Skip(name[:200], "a class of the file's own, kept as inert data and never run") for name in names]
    if len(names) > _MAX_CLASSES:
        rest = len(names) - _MAX_CLASSES
        skips[_MAX_CLASSES:] = [Skip("...", f"{rest:,} more classes kept as inert data")]
    return skips
