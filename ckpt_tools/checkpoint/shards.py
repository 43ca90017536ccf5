"""Weights cut into shards by an index: `{"weight_map": {tensor: shard file}}`.

The index is a stranger's text that names files, so a shard must be a plain name, and must lie in the folder itself or,
as the Hugging Face cache arranges it, be a link into the `blobs` folder of the same repository.

Layout of the cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from ..errors import FormatError
from .checkpoint import Opened
from .jsondata import parse_object, read_small
from .location import Location
from .magic import describe
from .source import Skip, TensorSource

_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>\d{1,9})-of-(?P<total>\d{1,9})(?P<ext>\..*)?", re.ASCII)
_FORBIDDEN = re.compile(r"[/\\:\x00-\x1f\x7f]")


def open_shards(
    folder: Location, index: str, present: Collection[str], open_source: Callable[[Location], TensorSource]
) -> Opened:
    """Return the shards that the folder's file `index` names, all of them or none.

    Raises FormatError that names the shard which is missing, lies elsewhere, or lacks a tensor it should hold. Tensors
    that a shard holds beside the index are skipped with that reason.
    """
    weight_map = read_index(folder / index)
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        check_name(folder / index, shard)
    _check_present(folder / index, weight_map, present)
    for shard in shards:
        check_inside(folder, shard)
    sources = {shard: open_source(folder / shard) for shard in shards}
    _check_held(folder / index, weight_map, sources)
    extra = [
        Skip(name, f"{shard} holds it, but {index} does not list it there")
        for shard, source in sources.items()
        for name in source.tensors
        if weight_map.get(name) != shard
    ]
    owner = {
        name: sources[shard] for shard in shards for name in sources[shard].tensors if weight_map.get(name) == shard
    }
    kinds = " + ".join(sorted({source.format for source in sources.values()}))
    return Opened(list(sources.values()), f"sharded {kinds}", owner, extra)


def read_index(path: Location) -> Mapping[str, str]:
    """Return the index's `{tensor name: shard file name}`, checked to be text; errors name the index."""
    data = read_small(path)
    try:
        return _weight_map(data)
    except FormatError as error:
        kind = describe(data[:512])
        raise FormatError(f"{path}: {error}." if kind == "JSON text" else f"{path} is {kind}.") from None


@lru_cache(maxsize=8)
def _weight_map(data: bytes) -> Mapping[str, str]:
    weight_map = parse_object(data).get("weight_map")
    if not (isinstance(weight_map, dict) and weight_map and all(isinstance(v, str) for v in weight_map.values())):
        raise FormatError("an index of shards needs 'weight_map', an object that maps tensor names to file names")
    return MappingProxyType(weight_map)


def check_name(index: Location, shard: str) -> None:
    """Raise FormatError when what an index names is not the plain name of a file beside it."""
    if shard in ("", ".", "..") or _FORBIDDEN.search(shard):
        raise FormatError(f"{index} names the shard {shard!r}; a shard must be the plain name of a file beside it.")


def _check_present(index: Location, weight_map: Mapping[str, str], present: Collection[str]) -> None:
    counts = Counter(weight_map.values())
    missing = sorted(set(counts) - set(present))
    if missing:
        listed = ", ".join(f"{name} ({counts[name]} tensors)" for name in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        lost = sum(counts[name] for name in missing)
        raise FormatError(
            f"{index.parent}: {len(missing)} of {len(counts)} shards missing: {listed}{more}. "
            f"{lost} of the {len(weight_map)} tensors of {index.name} are in them; copy or download them again."
        )


def check_inside(folder: Location, name: str) -> None:
    """Raise FormatError when a file of the folder is a link to a place that is not its own."""
    path = folder / name
    if not (isinstance(folder, Path) and isinstance(path, Path) and path.is_symlink()):
        return
    real, root = path.resolve(), folder.resolve()
    if real.parent == root or (real.parent in _blob_folders(root) and _BLOB.fullmatch(real.name)):
        return
    raise FormatError(f"{path} is a link that leaves its folder, to {real}. Put the file itself there to use it.")


def _blob_folders(root: Path) -> list[Path]:
    return [parent.parent / "blobs" for parent in root.parents if parent.name == "snapshots"]


def _check_held(index: Location, weight_map: Mapping[str, str], sources: Mapping[str, TensorSource]) -> None:
    held = {shard: {*source.tensors, *(s.name for s in source.skipped)} for shard, source in sources.items()}
    for name, shard in weight_map.items():
        if name not in held[shard]:
            where = next((f"; it is in {other}" for other, names in held.items() if name in names), "")
            raise FormatError(
                f"{index} says that {shard} holds tensor {name!r}, which it does not{where}. "
                "Index and shards are not from the same save."
            )


def numbered(names: Collection[str]) -> list[re.Match[str]] | None:
    """Return how the names fit `stem-00001-of-00004.ext`, None unless all of them belong to one such series."""
    matches = [m for m in map(_NUMBERED.fullmatch, sorted(names)) if m]
    series = {(m["stem"], int(m["total"]), m["ext"]) for m in matches}
    return matches if len(series) == 1 and len(matches) == len(names) else None


def merge_numbered(folder: Location, found: Mapping[str, TensorSource]) -> Opened | None:
    """Return files named `stem-00001-of-00004.ext` as one, or the only file; None when `found` (by name) is neither.

    Raises FormatError when some of the numbers are missing.
    """
    matches = numbered(found)
    if matches is None:
        source = next(iter(found.values()))
        return Opened([source], source.format) if len(found) == 1 else None
    by_number = {int(m["number"]): found[m[0]] for m in matches}
    total = int(matches[0]["total"])
    missing = next((number for number in range(1, total + 1) if number not in by_number), None)
    if missing is not None:
        raise FormatError(
            f"{folder}: {total - len(by_number):,} of {total:,} shards missing beside {matches[0][0]}, "
            f"number {missing} first."
        )
    sources = [by_number[number] for number in sorted(by_number)]
    return Opened(sources, f"sharded {sources[0].format} without index")
