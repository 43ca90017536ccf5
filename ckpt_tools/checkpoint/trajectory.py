"""A trajectory: the checkpoints of one run in the order of their steps.

Listing one costs a scan of its folder and opens none of them, so thousands of steps are found in milliseconds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import SourceError
from .checkpoint import Checkpoint
from .folder import INDEX, RUN, WEIGHTS
from .jsondata import read_object
from .location import Location, as_url, located
from .metrics import METRICS, read_metrics
from .opener import list_folder, open_checkpoint
from .source import Skip
from .steps import folder_step, no_such_step, select_steps

_UNFINISHED = re.compile(r"\..*|.*[._-](tmp|temp|partial|part|incomplete|lock)|(tmp|temp)[._-].*", re.IGNORECASE)


class Entry(NamedTuple):
    """Where the checkpoint of a step lies."""

    step: int
    path: Location


@dataclass
class Trajectory:
    """Checkpoints by step, ascending; `run` is the content of run.json when one of our trainers wrote them.

    `part` is opened of each checkpoint, as in `open_checkpoint`.
    """

    path: Location
    entries: list[Entry]
    skipped: list[Skip] = field(default_factory=list)
    run: dict[str, Any] | None = None
    part: str = ""

    def __post_init__(self) -> None:
        self._paths = dict(self.entries)

    @property
    def steps(self) -> list[int]:
        """All step numbers, ascending."""
        return [entry.step for entry in self.entries]

    def checkpoint(self, step: int, *, hashing: bool = True) -> Checkpoint:
        """Open the checkpoint of a step; `hashing` as in `open_checkpoint`. Raises SourceError for an unknown step."""
        if step not in self._paths:
            raise SourceError(f"{self.path}: {no_such_step(self.steps, step)}.")
        return open_checkpoint(self._paths[step], step=step, run=self.run, hashing=hashing, part=self.part)

    def select(self, spec: str) -> list[int]:
        """Return the steps that a text such as `0:1000:10`, `log:50` or `at:0,1,last` chooses; see `steps`."""
        return select_steps(self.steps, spec)

    def metrics(self, steps: Sequence[int] | None = None) -> dict[str, list[float]]:
        """Return what the run logged at the given steps (default: all), `{name: one number per step}`, NaN for gaps."""
        file = self.path / METRICS
        if self.run is None or not file.is_file():
            return {}
        return read_metrics(file, self.steps if steps is None else steps)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"<Trajectory {str(self.path)!r}, {len(self)} checkpoints>"


def open_trajectory(source: str | Location, *, part: str = "", cache_size: int | None = None) -> Trajectory:
    """Return the trajectory in a run folder, in a folder of step folders, or of a lone checkpoint (one step).

    A URL is read over the network: `hf://org/name@step*` are the revisions of that pattern in the order of their
    numbers, any other URL a folder or a file. `part` chooses among several sets of weights in each checkpoint, and
    `cache_size` bounds the copies of remote files, as in `open_checkpoint`.

    Folders whose names mark them as unfinished or hold no step are left out and listed in `skipped`. Raises
    SourceError when there is nothing to open or two folders claim a step.
    """
    if as_url(source).startswith("hf://"):
        from .remote.revisions import matching

        found = matching(as_url(source), cache_size)
        if found is not None:
            return Trajectory(found.path, _ordered(found.path, [Entry(*pair) for pair in found.steps]), found.skipped)
    path = located(source, cache_size)
    names = list_folder(path)
    run = read_object(path / RUN) if names is not None and RUN in names else None
    if names is not None:
        entries, skipped = _scan(path)
        if entries:
            return Trajectory(path, _ordered(path, entries), [*skipped, *_beside(names)], run, part)
    with open_checkpoint(path, part=part) as lone:
        return Trajectory(path, [Entry(lone.step, path)], part=part)


def _scan(path: Location) -> tuple[list[Entry], list[Skip]]:
    entries: list[Entry] = []
    skipped: list[Skip] = []
    for name, is_folder in _children(path):
        step = folder_step(name)
        if step is None and not is_folder:
            continue
        if step is not None and is_folder:
            entries.append(Entry(step, path / name))
        else:
            skipped.append(Skip(name, _reason(name, step)))
    return entries, sorted(skipped, key=lambda skip: skip.name)


def _children(path: Location) -> list[tuple[str, bool]]:
    """Return the names in a folder, and which are folders."""
    if isinstance(path, Path):
        with os.scandir(path) as found:
            return [(item.name, item.is_dir()) for item in found]
    return [(name, item.folder) for name, item in (path.names() or {}).items()]


def _reason(name: str, step: int | None) -> str:
    if step is not None:
        return "a file, where steps are folders"
    return "temporary or unfinished" if _UNFINISHED.fullmatch(name) else "a folder whose name holds no step"


def _beside(names: set[str]) -> Iterator[Skip]:
    for name in sorted(names):
        if name in WEIGHTS or INDEX.fullmatch(name):
            yield Skip(name, "weights beside the step folders, of no known step; open this file to read them")


def _ordered(path: Location, entries: list[Entry]) -> list[Entry]:
    ordered = sorted(entries)
    for one, other in pairwise(ordered):
        if one.step == other.step:
            mend = "Move one of them away" if isinstance(path, Path) else "Choose one of them by a narrower pattern"
            raise SourceError(f"{path}: {one.path.name!r} and {other.path.name!r} are both step {one.step}. {mend}.")
    return ordered
