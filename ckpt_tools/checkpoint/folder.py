"""A folder that holds one checkpoint: which of its files are the weights, and what is said beside them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import CkptError, FormatError, SourceError
from .checkpoint import Opened
from .jsondata import parse_object, read_object, read_small
from .location import Location, RemotePath
from .log import scan_folder
from .magic import UnknownFormat
from .parallel import open_parallel
from .shards import merge_numbered, numbered, open_shards
from .source import Skip, TensorSource
from .steps import count_steps

CONFIG, RUN = "config.json", "run.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "flax_model.msgpack", "tf_model.h5")
"""Names by which libraries find a model's weights; with several of them in a folder, the first is read."""
INDICES = tuple(f"{name}.index.json" for name in WEIGHTS)
INDEX = re.compile(r"(.+)\.index\.json")
_STATE = re.compile(r"(optimizer|scheduler|scaler|rng_state|random_states|training_args|trainer_state|probe)(?![a-z])")
_WEIGHT_LIKE = re.compile(r".*\.(safetensors|bin|pt|pth|ckpt|h5|hdf5|keras|msgpack|gguf|npz|index\.json)")
_SNIFFED = 200
_PEEKED = 4

OpenSource = Callable[[Location], TensorSource]


def open_folder(
    folder: Location,
    names: Collection[str],
    open_source: OpenSource,
    run: Mapping[str, Any] | None = None,
    part: str = "",
) -> Opened:
    """Return the weights in `folder`, whose listing is `names`.

    A file of a usual name (`model.safetensors`, ...) or its index of shards comes first, then any index, then what
    frameworks lay out as a folder, then whatever file is found to hold weights. `run` is the run.json this checkpoint
    belongs to (default: the one beside the folder, if any); it gives configuration and ties where the folder has none.
    Raises SourceError when the choice is not clear, FormatError when nothing can be read.
    """
    opened = _open_weights(folder, names, open_source, part)
    opened.skipped += list(_left_out(names, opened))
    if CONFIG in names:
        _add_config(opened, folder / CONFIG)
    run = run if run is not None else _run_beside(folder, CONFIG in names)
    if run:
        add_run(opened, run)
    return opened


def _open_weights(folder: Location, names: Collection[str], open_source: OpenSource, part: str) -> Opened:
    for name, index in zip(WEIGHTS, INDICES, strict=True):
        if name in names:
            source = open_source(folder / name)
            return Opened([source], source.format)
        if index in names:
            return open_shards(folder, index, names, open_source)
    indices = sorted(name for name in names if INDEX.fullmatch(name))
    if len(indices) > 1:
        raise _ambiguous(folder, indices, "indices of shards")
    if indices:
        return open_shards(folder, indices[0], names, open_source)
    opened = open_parallel(folder, names, open_source, part)
    if opened is not None:
        return opened
    _refuse_trajectory(folder, names)
    return _open_found(folder, names, open_source)


def _open_found(folder: Location, names: Collection[str], open_source: OpenSource) -> Opened:
    """Try every file, since content decides: the only one with weights, or a complete numbered set, is opened."""
    candidates = [n for n in names if not n.startswith(".") and not _STATE.match(n) and (folder / n).is_file()]
    candidates.sort(key=lambda name: (not _WEIGHT_LIKE.fullmatch(name), name))
    if isinstance(folder, RemotePath):
        candidates = _worth_fetching(folder, candidates)
    found: dict[str, TensorSource] = {}
    refused: dict[str, str] = {}
    for name in candidates[:_SNIFFED]:
        try:
            found[name] = open_source(folder / name)
        except UnknownFormat as error:
            refused[name] = str(error).removeprefix(f"{folder}/")
    if not found:
        raise _nothing_found(folder, names, list(refused.values()))
    opened = merge_numbered(folder, found)
    if opened is None:
        raise _ambiguous(folder, found, "files with weights")
    opened.skipped += [Skip(name, text) for name, text in refused.items() if _WEIGHT_LIKE.fullmatch(name)]
    return opened


def _worth_fetching(folder: RemotePath, candidates: list[str]) -> list[str]:
    """Return those that are named like weights: to look into a remote file may mean to download all of it."""
    likely = [name for name in candidates if _WEIGHT_LIKE.fullmatch(name)]
    if len(likely) > 1 and numbered(likely) is None:
        raise _ambiguous(folder, likely, "files that are named like weights")
    return likely or candidates[:_PEEKED]


def _nothing_found(folder: Location, names: Collection[str], refused: list[str]) -> SourceError:
    if not names:
        return SourceError(f"{folder} is an empty folder; expected a checkpoint or step folders in it.")
    folders = [name for name in sorted(names) if not name.startswith(".") and (folder / name).is_dir()]
    hint = f" Perhaps one of its folders is meant: {_some(folders)}." if folders else ""
    if not refused:
        return SourceError(f"{folder} holds no weights and no step folders.{hint or f' Only {_some(sorted(names))}.'}")
    more = f" ({len(refused) - 1} more files hold no weights either)" if len(refused) > 1 else ""
    return FormatError(f"{folder} holds no weights that can be read: {refused[0]}{more}{hint}")


def _refuse_trajectory(folder: Location, names: Collection[str]) -> None:
    steps = count_steps(names)
    if steps:
        raise SourceError(
            f"{folder} is a trajectory of {steps} checkpoints, not one of them. "
            "Name one of its step folders, or open it as a trajectory."
        )
    if isinstance(folder, Path) and any(index.records for index in scan_folder(folder, names)):
        raise SourceError(f"{folder} is a run whose checkpoints lie in logs. Open it as a trajectory.")
    if RUN in names:
        raise SourceError(f"{folder} is a run without checkpoints yet. Wait for its first one, or resume its training.")


def _ambiguous(folder: Location, names: Collection[str], what: str) -> SourceError:
    return SourceError(f"{folder} holds {len(names)} {what}: {_some(sorted(names))}. Name the one to open.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _left_out(names: Collection[str], opened: Opened) -> Iterator[Skip]:
    """Yield the files of training state and the other weights in the folder; vocabularies and texts are no news."""
    used = {source.path.name for source in opened.sources}
    for name in sorted(set(names) - used - {skip.name for skip in opened.skipped}):
        if _STATE.match(name):
            yield Skip(name, "state of the training loop, not weights")
        elif _WEIGHT_LIKE.fullmatch(name) and not (INDEX.fullmatch(name) and opened.owner is not None):
            yield Skip(name, f"not opened: the weights are read from {min(used)}")


def _add_config(opened: Opened, path: Location) -> None:
    try:
        opened.config = _parsed(read_small(path))
    except CkptError as error:
        opened.skipped.append(Skip(path.name, f"not usable as a configuration: {error}"))


@lru_cache(maxsize=64)
def _parsed(data: bytes) -> dict[str, Any]:
    return parse_object(data)


def _run_beside(folder: Location, has_config: bool) -> Mapping[str, Any] | None:
    if has_config:
        return None
    path = folder / os.pardir / RUN
    return read_object(path) if path.is_file() else None


def add_run(opened: Opened, run: Mapping[str, Any]) -> None:
    """Add configuration and ties from the run.json of the run that a checkpoint belongs to."""
    config, tied = run.get("config"), run.get("tied")
    if not opened.config and isinstance(config, dict):
        opened.config = {**config, "ckpt_family": run.get("family")}
    if isinstance(tied, dict):
        opened.tied = {alias: stored for alias, stored in tied.items() if isinstance(stored, str)}
