"""Write the checkpoints of a run as step folders, which any safetensors reader opens, byte for byte.

In place, a log is deleted when every step in it has a folder that is on the device and was compared with its record.
Folders that are there already are compared and kept, so an interrupted call is simply repeated.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..checkpoint import open_checkpoint, open_trajectory
from ..checkpoint.log import Span, checksum, latest, scan_folder
from ..checkpoint.packed import Entry
from ..checkpoint.source import Skip
from ..errors import FormatError, RunError
from .copying import Copied, Progress, equal, silent, span_of
from .files import Sync, write_all
from .folders import MODEL_FILE, cannot_write, folder_name, remove_drafts
from .lock import RunLock
from .reader import METRICS_FILE, PROBE_FILE, RUN_FILE, read_run


def unpack(
    run: Path | str, *, steps: str = "all", out: Path | str | None = None, on_progress: Progress = silent
) -> Copied:
    """Write checkpoints of a run as step folders into the run itself or into a new run `out`; return what was done.

    `steps` chooses them as in `Trajectory.select`. With `out` the run stays as it is, and its folders are copied too.
    Raises SourceError when `run` is no run or has no such step, RunError when the target is being written, is something
    else, or the disk is full.
    """
    path = Path(run)
    read_run(path)
    if out is None:
        return _in_place(path, steps, on_progress)
    target = Path(out)
    trajectory = open_trajectory(path)
    chosen = set(trajectory.select(steps))
    with _begin_copy(path, target):
        there = {step: folder for step in chosen if (folder := target / folder_name(step)).is_dir()}
        unpacking = _Unpacking(target, there, Copied(skipped=list(trajectory.skipped)))
        unpacking.put_all([e for e in trajectory.entries if e.step in chosen], on_progress)
        return unpacking.done


def _in_place(path: Path, steps: str, on_progress: Progress) -> Copied:
    with RunLock(path):
        remove_drafts(path)
        trajectory = open_trajectory(path)
        chosen = set(trajectory.select(steps))
        logs = scan_folder(path, os.listdir(path))
        folders = {entry.step: entry.local for entry in trajectory.entries if entry.record is None}
        unpacking = _Unpacking(path, folders, Copied(skipped=list(trajectory.skipped)))
        entries = [Entry(record.step, log, record) for log, record in latest(logs) if record.step in chosen]
        unpacking.put_all(sorted(entries), on_progress)
        safe = unpacking.safe(entries)
        for log in logs:
            if {record.step for record in log.records} <= safe and (log.torn or log.end == log.size):
                log.path.unlink()
        return unpacking.done


class _Unpacking:
    """Fills `target`, which has the given folders already."""

    def __init__(self, target: Path, folders: Mapping[int, Path], done: Copied) -> None:
        self.target, self.folders, self.done = target, dict(folders), done
        self.sync = Sync("close")

    def put_all(self, entries: Sequence[Entry], on_progress: Progress) -> None:
        """Make sure that every entry has a folder, and that all of them are on the device."""
        for at, entry in enumerate(entries, start=1):
            self._put(entry)
            folder = self.folders.get(entry.step)
            if folder is not None and (folder / MODEL_FILE).is_file():
                self.sync.wrote(folder / MODEL_FILE, folder, self.target)
            on_progress(at, len(entries), f"step {entry.step}")
        self.sync.flush()

    def _put(self, entry: Entry) -> None:
        folder = self.folders.get(entry.step)
        if entry.record is None and not (entry.local / MODEL_FILE).is_file():
            self.done.skipped.append(Skip(entry.path.name, f"left out: it holds no {MODEL_FILE}"))
        elif folder is not None and self._stays(folder, entry):
            self.done.present += 1
        elif fault := self._write(entry):
            self.done.damaged.append(fault)

    def _stays(self, folder: Path, entry: Entry) -> bool:
        """Return whether a folder holds the entry's bytes, or a later save of its step: it counts before a record."""
        if entry.local == folder or equal(_span(folder), span_of(entry)):
            return True
        try:
            open_checkpoint(folder).close()
            return self.target == entry.local.parent
        except FormatError:
            return False

    def _write(self, entry: Entry) -> str:
        """Write a folder, return "" or how the record is damaged."""
        final = self.target / folder_name(entry.step)
        draft = self.target / f".{final.name}"
        try:
            draft.mkdir()
            span = span_of(entry)
            every = entry.record.every if entry.record is not None else 1
            check = _copy(span, draft / MODEL_FILE, every)
            if entry.record is not None and check != entry.record.check:
                return f"{entry.local}, step {entry.step}: the bytes are not those that were written"
            if final.exists():
                shutil.rmtree(final)
            draft.rename(final)
        except OSError as error:
            raise cannot_write(self.target, entry.step, error) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self.folders[entry.step] = final
        self.done.written += 1
        self.done.bytes += span.length
        return ""

    def safe(self, entries: Sequence[Entry]) -> set[int]:
        """Return the steps whose folder, read back, makes the record superfluous."""
        return {e.step for e in entries if e.step in self.folders and self._stays(self.folders[e.step], e)}


def _span(folder: Path) -> Span:
    file = folder / MODEL_FILE
    return Span(file, 0, file.stat().st_size if file.is_file() else 0)


def _copy(span: Span, path: Path, every: int) -> int:
    """Write the bytes of a span into a new file and return their checksum."""
    check = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for block in span.blocks():
            write_all(descriptor, [block])
            check = checksum(block, every, check)
    finally:
        os.close(descriptor)
    return check


def _begin_copy(path: Path, target: Path) -> RunLock:
    """Make `target` a run with what describes the run `path`; it may be the same from an interrupted call."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        lock = RunLock(target)
        there = target / RUN_FILE
        if not there.exists() and any(target.iterdir()):
            raise RunError(f"{target} is not empty. Choose another folder.")
        if there.exists() and replace(read_run(target), path=path, status=read_run(path).status) != read_run(path):
            raise RunError(f"{target} holds another run. Choose another folder.")
        remove_drafts(target)
        for name in (RUN_FILE, METRICS_FILE, PROBE_FILE):
            if (path / name).is_file():
                shutil.copyfile(path / name, target / name)
    except OSError as error:
        raise RunError(f"Cannot write into {target}: {error.strerror}.") from error
    return lock
