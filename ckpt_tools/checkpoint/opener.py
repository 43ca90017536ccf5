"""Open whatever a path holds: its content decides, never its extension.

A format of files is one line of `FILE_FORMATS`: how its first bytes look, and what reads it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import SourceError, nearest
from .checkpoint import Checkpoint, Opened
from .folder import CONFIG, WEIGHTS, open_folder
from .localfile import LocalFile
from .magic import HEAD, UnknownFormat, describe
from .safetensors import is_safetensors, open_safetensors
from .source import TensorSource
from .steps import step_in_name


@dataclass(frozen=True)
class FileFormat:
    """A format recognised by the first bytes of a file (up to `magic.HEAD` of them)."""

    name: str
    detect: Callable[[bytes], bool]
    open: Callable[[LocalFile, bytes], TensorSource]


FILE_FORMATS: tuple[FileFormat, ...] = (FileFormat("safetensors", is_safetensors, open_safetensors),)


def open_checkpoint(
    path: str | Path,
    *,
    step: int | None = None,
    label: str = "",
    run: Mapping[str, Any] | None = None,
    hashing: bool = False,
) -> Checkpoint:
    """Return the checkpoint in a file or folder: its tensors are listed, none is read.

    `step` defaults to the number in the name (`checkpoint-128`), else 0. `run` is the run.json it belongs to, found
    beside the folder when not given. `hashing` takes digests while tensors are read. Raises SourceError when there is
    nothing to open, FormatError that says what was found when it cannot be read.
    """
    path = Path(path) if isinstance(path, str) else path
    opened = _open(path, run)
    named = path.parent if path.name in WEIGHTS else path
    name = named.name if named.name not in ("", "..") else Path(os.path.abspath(named)).name
    number = step if step is not None else step_in_name(name) or 0
    return Checkpoint(path, opened, step=number, label=label or name, hashing=hashing)


def _open(path: Path, run: Mapping[str, Any] | None) -> Opened:
    names = list_folder(path)
    if names is not None:
        return open_folder(path, names, open_source, run)
    if path.name in WEIGHTS:  # part of a folder that somebody named by its main file
        beside = [name for name in (path.name, CONFIG) if (path.parent / name).exists()]
        return open_folder(path.parent, beside, open_source, run)
    source = open_source(path)
    return Opened([source], source.format)


def open_source(path: Path) -> TensorSource:
    """Return the tensors of a single file; it is closed again until one is read."""
    file = LocalFile(path)
    try:
        head = file.head(HEAD)
        for known in FILE_FORMATS:
            if known.detect(head):
                return known.open(file, head)
    finally:
        file.close()
    supported = ", ".join(known.name for known in FILE_FORMATS)
    raise UnknownFormat(
        f"{path} is {describe(head)}. Supported: {supported}, whole, sharded or in a Hugging Face folder."
    )


def list_folder(path: Path) -> set[str] | None:
    """Return the names in a folder, None when `path` is a file. Raises SourceError when it is neither."""
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
    if "://" in str(path) or str(path).split(":/")[0] in ("hf", "http", "https", "s3", "gs"):
        return SourceError(f"{path} is not a local path; download it first.")
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
