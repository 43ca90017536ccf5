"""Open whatever a path holds: its content decides, never its extension.

A format of files is one line of `FILE_FORMATS`: how its first bytes look, and what reads it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import FormatError, SourceError, nearest
from .archives import is_zip, open_archive
from .checkpoint import Checkpoint, Opened
from .dcp import INDEX
from .flaxfile import is_msgpack, open_msgpack
from .folder import CONFIG, WEIGHTS, add_run, open_folder
from .ggufile import is_gguf, open_gguf
from .keras import is_hdf5, open_hdf5
from .llama2c import is_llama2c, open_llama2c
from .location import SCHEMES, Location, RemotePath, located, open_file
from .log import Record, is_log, open_log, open_record
from .magic import HEAD, UnknownFormat, describe
from .npz import is_npy, open_npy
from .picklefile import is_pickle, open_pickle
from .safetensors import is_safetensors, open_safetensors
from .source import TensorSource
from .steps import step_in_name
from .torchlegacy import is_torch_legacy, open_torch_legacy
from .torchtar import is_tar, open_torch_tar
from .views import ViewSource, needs_view


@dataclass(frozen=True)
class FileFormat:
    """A format recognised by the first bytes of a file (up to `magic.HEAD` of them).

    Files `in_parts` may hold more than one set of weights; `open` then takes the part's name besides file and head.
    It is given a LocalFile, to which remote files are copied first; with `ranged`, whatever ByteFile it is.
    """

    name: str
    detect: Callable[[bytes], bool]
    open: Callable[..., TensorSource]
    in_parts: bool = False
    ranged: bool = False


# llama2.c comes last: it has no magic number, only sizes that make sense.
FILE_FORMATS: tuple[FileFormat, ...] = (
    FileFormat("safetensors", is_safetensors, open_safetensors, ranged=True),
    FileFormat("safetensors log", is_log, open_log),
    FileFormat("zip archives (torch, TorchScript, npz, Keras, Stable-Baselines3)", is_zip, open_archive, True),
    FileFormat("legacy torch", is_torch_legacy, open_torch_legacy, True),
    FileFormat("torch 0.1 tar", is_tar, open_torch_tar, True),
    FileFormat("pickled arrays", is_pickle, open_pickle, True),
    FileFormat("npy", is_npy, open_npy),
    FileFormat("HDF5", is_hdf5, open_hdf5, True),
    FileFormat("GGUF", is_gguf, open_gguf, ranged=True),
    FileFormat("Flax msgpack", is_msgpack, open_msgpack, True),
    FileFormat("llama2.c", is_llama2c, open_llama2c),
)


def open_checkpoint(
    path: str | Location,
    *,
    step: int | None = None,
    label: str = "",
    run: Mapping[str, Any] | None = None,
    hashing: bool = False,
    part: str = "",
    cache_size: int | None = None,
) -> Checkpoint:
    """Return the checkpoint in a file or folder, or at a URL: its tensors are listed, none is read.

    `step` defaults to the number in the name (`checkpoint-128`), else 0. `run` is the run.json it belongs to, found
    beside the folder when not given. `hashing` takes digests while tensors are read. `part` chooses among several sets
    of weights in a file ("ema": the averaged ones); what there is besides the main one is listed in `skipped`. Raises
    SourceError when there is nothing to open, FormatError that says what was found when it cannot be read. `cache_size`
    bounds in bytes what is kept of remote files that cannot be read in parts.
    """
    path = located(path, cache_size)
    named = path.parent if path.name in WEIGHTS else path
    name = named.name if named.name not in ("", "..") else Path(os.path.abspath(str(named))).name

    def make(opened: Opened) -> Checkpoint:
        return Checkpoint(path, opened, step=step, name_step=step_in_name(name), label=label or name, hashing=hashing)

    return _viewed(make, _open(path, run, part))


def open_logged(
    path: Path, record: Record, *, run: Mapping[str, Any] | None = None, hashing: bool = False, part: str = ""
) -> Checkpoint:
    """Return the checkpoint in one record of a log, as `open_checkpoint` returns that of a folder."""
    if part:
        raise SourceError(f"{path}: a record of a log has one set of weights, so no part {part!r}.")
    opened = Opened([open_record(path, record)], "safetensors log")
    add_run(opened, run or {})
    label = f"step-{record.step:06d}"
    return _viewed(lambda found: Checkpoint(path, found, step=record.step, label=label, hashing=hashing), opened)


def _viewed(make: Callable[[Opened], Checkpoint], opened: Opened) -> Checkpoint:
    checkpoint = make(opened)
    renamed, quantised = needs_view(checkpoint.tensors)
    if not renamed and quantised is None:
        return checkpoint
    view = ViewSource(checkpoint, renamed, quantised)
    return make(Opened([view], view.format, config=checkpoint.config, origin=opened.origin))


def _open(path: Location, run: Mapping[str, Any] | None, part: str) -> Opened:
    opened, folder = _opened(path, run, part), path
    if isinstance(path, RemotePath):
        folder = path if path.is_dir() else path.parent
        opened.origin = path.store.facts([source.path.name for source in opened.sources], folder.inner)
    return opened


def _opened(path: Location, run: Mapping[str, Any] | None, part: str) -> Opened:
    names = list_folder(path)
    if names is not None:
        return open_folder(path, names, partial(open_source, part=part), run, part)
    if path.name in WEIGHTS:  # part of a folder that somebody named by its main file
        beside = [name for name in (path.name, CONFIG) if (path.parent / name).exists()]
        return open_folder(path.parent, beside, partial(open_source, part=part), run)
    if (path.name == INDEX or path.name.endswith(".distcp")) and (path.parent / INDEX).is_file():
        raise FormatError(f"{path} is part of a torch.distributed.checkpoint folder; open the folder {path.parent}.")
    source = open_source(path, part)
    return Opened([source], source.format)


def open_source(path: Location, part: str = "") -> TensorSource:
    """Return the tensors of a single file, or those of one of its parts; it is closed again until one is read."""
    file = open_file(path)
    try:
        head = file.head(HEAD)
        for known in FILE_FORMATS:
            if known.detect(head):
                if part and not known.in_parts:
                    raise SourceError(f"{path}: a {known.name} file has one set of weights, so no part {part!r}.")
                given = file if known.ranged else file.local()
                return known.open(given, head, part) if known.in_parts else known.open(given, head)
    finally:
        file.close()
    supported = ", ".join(known.name for known in FILE_FORMATS)
    raise UnknownFormat(
        f"{path} is {describe(head)}. Supported: {supported}, whole, sharded or in a Hugging Face folder."
    )


def list_folder(path: Location) -> set[str] | None:
    """Return the names in a folder, None when `path` is a file. Raises SourceError when it is neither."""
    if isinstance(path, RemotePath):
        names = path.names()
        return None if names is None else set(names)
    try:
        return set(os.listdir(path))
    except NotADirectoryError:
        return None
    except FileNotFoundError:
        raise missing(path) from None
    except (OSError, ValueError) as error:
        raise SourceError(f"Cannot open {str(path)!r}: {getattr(error, 'strerror', None) or error}.") from None


def missing(path: Path) -> SourceError:
    """Return the error for a path that does not exist: where it ends, and the nearest name that is there."""
    if ":/" in str(path):
        return SourceError(f"{path} is no local path, and its scheme is not read; known: {', '.join(SCHEMES)}.")
    if path.is_symlink():
        return SourceError(f"{path} is a link to {os.readlink(path)}, which does not exist.")
    absolute = Path(os.path.abspath(path))
    parent = next((p for p in absolute.parents if p.is_dir()), Path("/"))
    lost = absolute.relative_to(parent).parts[0]
    try:
        close = get_close_matches(lost, os.listdir(parent), n=1)
    except OSError:
        close = []
    return SourceError(f"{path} does not exist: there is no {lost!r} in {parent}.{nearest(lost, close)}")
