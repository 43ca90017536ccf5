"""Trajectories that are named one by one: by a glob (`ckpts/*_epoch_*.pt`) or by a list file (`@list.txt`)."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import CkptError, SourceError
from .aliases import stored_number
from .discovery import Found, several
from .folder import WEIGHTS
from .jsondata import read_small
from .opener import open_checkpoint
from .series import find_series

_MAX_LIST = 64 << 20


def is_glob(source: str) -> bool:
    """Return whether a source is a pattern rather than the name of something that exists."""
    return glob.has_magic(source) and not os.path.lexists(source)


def from_glob(pattern: str) -> Found:
    """Return the checkpoints whose paths fit a glob (`**` for any folders), by the numbers in them.

    Raises SourceError when nothing fits, when the numbers tell several runs apart, or when there are none.
    """
    paths = sorted(glob.glob(pattern, recursive=True))
    if not paths:
        raise SourceError(f"No path fits {pattern!r}. Quote a pattern so that the shell leaves it alone.")
    # What every path begins with says nothing about steps: `run3/step10.pt`.
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    names = {os.path.relpath(path, root or os.curdir): Path(path) for path in paths}
    return _numbered(pattern, names)


def _numbered(pattern: str, names: dict[str, Path]) -> Found:
    bare = {os.path.dirname(name) if os.path.basename(name) in WEIGHTS else name: name for name in names}
    found = find_series(bare)
    if not found and len(names) > 1:
        raise SourceError(f"{pattern}: no number in {min(names)!r} tells its step. List them with their steps: @LIST.")
    if len(found) > 1:
        raise several(pattern, found, glob=True)
    if not found:
        path = next(iter(names.values()))
        with open_checkpoint(path) as lone:
            return Found([(lone.step, path)], "step")
    return Found([(step, names[bare[name]]) for step, name in found[0].members], found[0].unit)


def from_list(path: Path) -> Found:
    """Return the checkpoints that a text file names, one path per line, each with its step behind it or in its name.

    Paths are relative to the list's folder; a tab or blanks stand before a step; blank lines and lines that begin with
    `#` are passed over. A step that neither the line nor the name tells is taken from inside the checkpoint. Raises
    SourceError that names the line for anything else.
    """
    try:
        text = read_small(path, _MAX_LIST).decode("utf-8")
    except UnicodeDecodeError:
        raise SourceError(f"{path} is no list of paths: it is not UTF-8 text.") from None
    rows = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1)]
    lines = [(i, *_split(path.parent, line)) for i, line in rows if line and not line.startswith("#")]
    if not lines:
        raise SourceError(f"{path} lists no checkpoint; expected one path per line.")
    names = _steps_of([file for _, file, step in lines if step is None])
    unit = "epoch" if names and names[1] == "epoch" and all(step is None for _, _, step in lines) else "step"
    known = names[0] if names else {}
    entries = [(_step(path, i, file, step, known), file) for i, file, step in lines]
    return Found(sorted(entries), unit)


def _split(folder: Path, line: str) -> tuple[Path, int | None]:
    """Return path and step of a line; a trailing number belongs to the name when such a path exists."""
    head, _, tail = line.replace("\t", " ").rpartition(" ")
    if head and tail.isascii() and tail.isdigit() and len(tail) <= 18 and not os.path.lexists(folder / line):
        return folder / head.strip(), int(tail)
    return folder / line, None


def _steps_of(paths: Sequence[Path]) -> tuple[dict[Path, int], str] | None:
    """Return the numbers in the names when they form one series."""
    names = {str(path.parent if path.name in WEIGHTS else path): path for path in paths}
    root = os.path.commonpath([os.path.dirname(name) for name in names]) if names else ""
    short = {os.path.relpath(name, root or os.curdir): path for name, path in names.items()}
    found = find_series(short)
    if len(found) != 1:
        return None
    return {short[name]: step for step, name in found[0].members}, found[0].unit


def _step(source: Path, line: int, path: Path, given: int | None, known: dict[Path, int]) -> int:
    if given is not None or path in known:
        return known[path] if given is None else given
    try:
        with open_checkpoint(path) as checkpoint:
            inside = stored_number(checkpoint.metadata, "step")
    except CkptError as error:
        raise SourceError(f"{source}, line {line}: {error}") from None
    if inside is None:
        raise SourceError(f"{source}, line {line}: no step is known of {path.name!r}. Write it behind the path.")
    return inside
