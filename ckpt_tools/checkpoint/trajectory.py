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
from .log import LogIndex, Record, latest, scan_folder, scan_if_log
from .metrics import METRICS, read_metrics
from .opener import list_folder, open_checkpoint, open_logged
from .source import Skip
from .steps import folder_step, no_such_step, select_steps

_UNFINISHED = re.compile(r"\..*|.*[._-](tmp|temp|partial|part|incomplete|lock)|(tmp|temp)[._-].*", re.IGNORECASE)


class Entry(NamedTuple):
    """Where the checkpoint of a step lies: a folder or file, or a record in the log `path`."""

    step: int
    path: Path
    record: Record | None = None


@dataclass
class Trajectory:
    """Checkpoints by step, ascending; `run` is the content of run.json when one of our trainers wrote them.

    `part` is opened of each checkpoint, as in `open_checkpoint`.
    """

    path: Path
    entries: list[Entry]
    skipped: list[Skip] = field(default_factory=list)
    run: dict[str, Any] | None = None
    part: str = ""

    def __post_init__(self) -> None:
        self._at = {entry.step: entry for entry in self.entries}

    @property
    def steps(self) -> list[int]:
        """All step numbers, ascending."""
        return [entry.step for entry in self.entries]

    def checkpoint(self, step: int, *, hashing: bool = True) -> Checkpoint:
        """Open the checkpoint of a step; `hashing` as in `open_checkpoint`. Raises SourceError for an unknown step."""
        if step not in self._at:
            raise SourceError(f"{self.path}: {no_such_step(self.steps, step)}.")
        entry = self._at[step]
        if entry.record is None:
            return open_checkpoint(entry.path, step=step, run=self.run, hashing=hashing, part=self.part)
        return open_logged(entry.path, entry.record, run=self.run, hashing=hashing, part=self.part)

    def select(self, spec: str) -> list[int]:
        """Return the steps that a text such as `0:1000:10`, `log:50` or `at:0,1,last` chooses; see `steps`."""
        return select_steps(self.steps, spec)

    def metrics(self, steps: Sequence[int] | None = None) -> dict[str, list[float]]:
        """Return what the run logged at the given steps (default: all), `{name: one number per step}`, NaN for gaps."""
        file = (self.path if self.path.is_dir() else self.path.parent) / METRICS
        if self.run is None or not file.is_file():
            return {}
        return read_metrics(file, self.steps if steps is None else steps)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"<Trajectory {str(self.path)!r}, {len(self)} checkpoints>"


def open_trajectory(source: str | Path, *, part: str = "") -> Trajectory:
    """Return the trajectory in a run folder, in a folder of step folders, in a log, or of a lone checkpoint (one step).

    `part` chooses among several sets of weights in each checkpoint, as in `open_checkpoint`.

    A run may hold some steps in folders and others in logs; a step in both is read from its folder. Folders whose names
    mark them as unfinished or hold no step are left out and listed in `skipped`, and so is the torn end of a log.
    Raises SourceError when there is nothing to open or two folders claim a step.
    """
    path = Path(source)
    names = list_folder(path)
    if names is None:
        return _of_file(path, part)
    entries, skipped = _scan(path)
    logs = scan_folder(path, names)
    if entries or any(index.records for index in logs):
        ordered = _with_records(_ordered(path, entries), logs)
        return Trajectory(path, ordered, [*skipped, *_beside(names), *_torn(logs)], _run_in(path), part)
    return _of_checkpoint(path, part)


def _of_file(path: Path, part: str) -> Trajectory:
    index = scan_if_log(path)
    if index is None or not index.records:
        return _of_checkpoint(path, part)
    return Trajectory(path, _with_records([], [index]), _torn([index]), _run_in(path.parent), part)


def _of_checkpoint(path: Path, part: str) -> Trajectory:
    with open_checkpoint(path, part=part) as lone:
        return Trajectory(path, [Entry(lone.step, path)], part=part)


def _run_in(folder: Path) -> dict[str, Any] | None:
    return read_object(folder / RUN) if (folder / RUN).is_file() else None


def _with_records(entries: list[Entry], logs: list[LogIndex]) -> list[Entry]:
    """Return the entries of folders, and those of records whose steps have no folder."""
    found = {record.step: Entry(record.step, path, record) for path, record in latest(logs)}
    found.update((entry.step, entry) for entry in entries)
    return [found[step] for step in sorted(found)]


def _torn(logs: list[LogIndex]) -> list[Skip]:
    return [index.skip for index in logs if index.skip is not None]


def _scan(path: Path) -> tuple[list[Entry], list[Skip]]:
    entries: list[Entry] = []
    skipped: list[Skip] = []
    with os.scandir(path) as found:
        for item in found:
            step = folder_step(item.name)
            if step is None and not item.is_dir():
                continue
            if step is not None and item.is_dir():
                entries.append(Entry(step, path / item.name))
            else:
                skipped.append(Skip(item.name, _reason(item.name, step)))
    return entries, sorted(skipped, key=lambda skip: skip.name)


def _reason(name: str, step: int | None) -> str:
    if step is not None:
        return "a file, where steps are folders"
    return "temporary or unfinished" if _UNFINISHED.fullmatch(name) else "a folder whose name holds no step"


def _beside(names: set[str]) -> Iterator[Skip]:
    for name in sorted(names):
        if name in WEIGHTS or INDEX.fullmatch(name):
            yield Skip(name, "weights beside the step folders, of no known step; open this file to read them")


def _ordered(path: Path, entries: list[Entry]) -> list[Entry]:
    ordered = sorted(entries, key=lambda entry: (entry.step, entry.path))
    for one, other in pairwise(ordered):
        if one.step == other.step:
            raise SourceError(
                f"{path}: {one.path.name!r} and {other.path.name!r} are both step {one.step}. Move one of them away."
            )
    return ordered
