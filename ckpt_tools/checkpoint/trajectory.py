"""A trajectory: the checkpoints of one run in the order of their steps.

Listing one costs a scan of its folder and opens none of them, so thousands of steps are found in milliseconds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, SourceError
from .checkpoint import Checkpoint
from .discovery import Found, discover
from .folder import CONFIG, RUN
from .jsondata import read_object
from .listing import from_glob, from_list, is_glob
from .location import Location, as_url, located
from .log import LogIndex, is_log_name, latest, record_fault, scan_folder, scan_if_log
from .metrics import METRICS, read_metrics
from .opener import list_folder, open_checkpoint, open_logged
from .packed import Entries, Entry, Members
from .source import Skip
from .steps import gaps, no_such_step, select_steps


@dataclass
class Trajectory:
    """Checkpoints by step, ascending; `run` is the content of run.json when one of our trainers wrote them.

    `part` is opened of each checkpoint, as in `open_checkpoint`. `unit` says what the numbers count, `step` or `epoch`;
    `config` serves checkpoints that have none of their own.
    """

    path: Location
    entries: Entries
    skipped: list[Skip] = field(default_factory=list)
    run: dict[str, Any] | None = None
    part: str = ""
    unit: str = "step"
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> list[int]:
        """All step numbers, ascending."""
        found: list[int] = self.entries.steps.tolist()
        return found

    @property
    def gaps(self) -> list[int]:
        """Steps that a regular grid of steps lacks, ascending; see `steps.gaps`."""
        return gaps(self.steps)

    def checkpoint(self, step: int, *, hashing: bool = True) -> Checkpoint:
        """Open the checkpoint of a step; `hashing` as in `open_checkpoint`. Raises SourceError for an unknown step."""
        entry = self.entry(step)
        how: dict[str, Any] = {"run": self.run, "hashing": hashing, "part": self.part}
        if entry.record is None:
            checkpoint = open_checkpoint(entry.path, step=step, **how)
        else:
            checkpoint = open_logged(entry.local, entry.record, **how)
        checkpoint.config = checkpoint.config or self.config
        return checkpoint

    def entry(self, step: int) -> Entry:
        """Return where the checkpoint of a step lies; raises SourceError for an unknown step."""
        entry = self.entries.at(step)
        if entry is None:
            raise SourceError(f"{self.path}: {no_such_step(self.steps, step)}.")
        return entry

    def check(self, step: int) -> None:
        """Read a checkpoint in a log whole and compare it with its checksum; raises FormatError. Others carry none."""
        entry = self.entry(step)
        if entry.record is not None and (fault := record_fault(entry.local, entry.record)):
            raise FormatError(f"{fault}.")

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


def open_trajectory(source: str | Location, *, part: str = "", cache_size: int | None = None) -> Trajectory:
    """Return the trajectory in a folder of step folders or of numbered files, in a log, or of a lone checkpoint.

    A folder with several runs in it is named with the one that is meant, `FOLDER::runA`. A glob (`ckpts/*_epoch_*.pt`)
    and a list file (`@list.txt`: one path per line, its step behind it if need be) name checkpoints one by one. A run
    may hold some steps in folders and others in logs; a step in both is read from its folder. A URL is read over the
    network: `hf://org/name@step*` are the revisions of that pattern in the order of their numbers, any other URL a
    folder or a file. `part` chooses among several sets of weights in each checkpoint, and `cache_size` bounds the
    copies of remote files, as in `open_checkpoint`. What is left out is listed in `skipped`, the torn end of a log too.
    Raises SourceError when there is nothing to open, when several runs are mixed, or when two names claim a step.
    """
    url = as_url(source)
    if url.startswith("hf://"):
        from .remote.revisions import matching

        revisions = matching(url, cache_size)
        if revisions is not None:
            found = Found(sorted(revisions.steps), "step", revisions.skipped)
            return Trajectory(revisions.path, _ordered(revisions.path, found), found.skipped, part=part)
    if "://" in url:
        return _of_location(located(source, cache_size), part, None)
    path, choice = _split_choice(str(source))
    named = _named(str(source)) if choice is None else None
    return named if named is not None else _of_location(path, part, choice)


def _of_location(path: Location, part: str, choice: str | None) -> Trajectory:
    if list_folder(path) is None:
        return _of_file(path, part)
    names = _children(path)
    logs = scan_folder(path, names) if isinstance(path, Path) else []
    # Logs are numbered files too, but each holds many steps.
    children = {name: names[name] for name in names if not is_log_name(name)}
    found = discover(path, children if len(children) < len(names) else names, choice)
    if found is None and not any(index.records for index in logs):
        return _of_checkpoint(path, part)
    found = found or Found([], "step")
    config = _config(path, found.skipped) if CONFIG in names else {}
    entries = _with_records(_ordered(path, found), logs)
    run = read_object(path / RUN) if RUN in names else None
    return Trajectory(path, entries, [*found.skipped, *_torn(logs)], run, part, found.unit, config)


def _of_file(path: Location, part: str) -> Trajectory:
    index = scan_if_log(path) if isinstance(path, Path) else None
    if index is None or not index.records or not isinstance(path, Path):
        return _of_checkpoint(path, part)
    return Trajectory(path, _with_records(Entries(), [index]), _torn([index]), _run_in(path.parent), part)


def _of_checkpoint(path: Location, part: str) -> Trajectory:
    with open_checkpoint(path, part=part) as lone:
        return Trajectory(path, Entries.of([Entry(lone.step, path)]), part=part)


def _run_in(folder: Path) -> dict[str, Any] | None:
    return read_object(folder / RUN) if (folder / RUN).is_file() else None


def _with_records(entries: Entries, logs: list[LogIndex]) -> Entries:
    """Return the entries of folders, and those of records whose steps have no folder."""
    if not logs:
        return entries
    found = {record.step: Entry(record.step, path, record) for path, record in latest(logs)}
    found.update((entry.step, entry) for entry in entries)
    return Entries.of(found[step] for step in sorted(found))


def _torn(logs: list[LogIndex]) -> list[Skip]:
    return [index.skip for index in logs if index.skip is not None]


def _named(source: str) -> Trajectory | None:
    if source.startswith("@") and not os.path.lexists(source):
        path = Path(source[1:])
        found = from_list(path)
    elif is_glob(source):
        path = Path(source)
        found = from_glob(source)
    else:
        return None
    return Trajectory(path, _ordered(path, found), found.skipped, unit=found.unit)


def _split_choice(source: str | Path) -> tuple[Path, str | None]:
    """Return folder and run of `FOLDER::run`."""
    folder, colons, choice = str(source).rpartition("::")
    if colons and folder and choice and not os.path.lexists(source):
        return Path(folder), choice
    return Path(source), None


def _children(path: Location) -> dict[str, bool]:
    """Return the names in a folder, and which are folders."""
    if not isinstance(path, Path):
        return {name: item.folder for name, item in (path.names() or {}).items()}
    with os.scandir(path) as found:
        return {item.name: item.is_dir() for item in found}


def _config(path: Location, skipped: list[Skip]) -> dict[str, Any]:
    try:
        return read_object(path / CONFIG)
    except SourceError as error:
        skipped.append(Skip(CONFIG, f"not usable as a configuration: {error}"))
        return {}


def _ordered(path: Location, found: Found) -> Entries:
    listed = found.entries
    entries = listed.entries() if isinstance(listed, Members) else Entries.of(Entry(*pair) for pair in listed)
    twice = np.flatnonzero(np.diff(entries.steps) == 0).tolist()
    if twice:
        one, other = entries[twice[0]], entries[twice[0] + 1]
        mend = "Move one of them away" if isinstance(path, Path) else "Choose one of them by a narrower pattern"
        raise SourceError(
            f"{path}: {one.path.name!r} and {other.path.name!r} are both {found.unit} {one.step}. {mend}."
        )
    return entries
