"""Move the step folders of a run into logs, byte for byte: fewer files, and appended to by the next `resume`.

Folders go a log at a time: it is written beside its place, flushed to the device, read back and compared with every
folder, and put in place by a rename; only then are its folders deleted. An interrupted call is simply repeated.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..checkpoint import Trajectory, open_checkpoint, open_trajectory
from ..checkpoint.log import (
    FRAME_BYTES,
    checksum,
    frame,
    is_log_name,
    latest,
    record_fault,
    record_span,
    scan,
    scan_folder,
)
from ..checkpoint.packed import Entry
from ..checkpoint.source import Skip
from ..errors import FormatError, RunError
from .copying import Copied, Progress, equal, silent, span_of
from .files import Sync, write_all
from .folders import MODEL_FILE, remove_drafts, remove_folder
from .lock import RunLock
from .log import ROTATE_BYTES, free_name
from .reader import read_run


def pack(run: Path | str, *, rotate: int = ROTATE_BYTES, on_progress: Progress = silent) -> Copied:
    """Move the checkpoints in step folders of a run into logs of about `rotate` bytes; return what was done.

    Folders that hold anything but a valid `model.safetensors` are left as they are. Raises SourceError when `run` is
    no run, RunError when it is being written or the disk is full.
    """
    path, done = Path(run), Copied()
    read_run(path)
    with RunLock(path):
        remove_drafts(path)
        folders = [e for e in open_trajectory(path).entries if e.record is None and _movable(e, done)]
        at = 0
        for batch in _batches(folders, rotate):
            _move(path, batch, done)
            at += len(batch)
            on_progress(at, len(folders), f"step {batch[-1].step}")
    return done


def check_run(run: Path | str, *, on_progress: Progress = silent) -> list[str]:
    """Read every record in the logs of a run whole and return what is wrong, a sentence for each fault.

    Checkpoints in folders carry no checksum: of them only the headers are checked.
    """
    trajectory = open_trajectory(run)
    faults = [f"{skip.name}: {skip.reason}" for skip in trajectory.skipped if is_log_name(skip.name)]
    for at, entry in enumerate(trajectory.entries, start=1):
        fault = _fault(trajectory, entry)
        faults += [fault] if fault else []
        on_progress(at, len(trajectory), f"step {entry.step}")
    return faults


def _fault(trajectory: Trajectory, entry: Entry) -> str:
    if entry.record is not None:
        return record_fault(entry.local, entry.record)
    try:
        trajectory.checkpoint(entry.step).close()
    except FormatError as error:
        return str(error)
    return ""


def _movable(entry: Entry, done: Copied) -> bool:
    others = sorted(set(os.listdir(entry.local)) - {MODEL_FILE})
    try:
        if not others:
            open_checkpoint(entry.local).close()
            return True
        done.skipped.append(Skip(entry.path.name, f"left as it is: it holds {others[0]!r}"))
    except FormatError as error:
        done.damaged.append(str(error))
    return False


def _batches(folders: Sequence[Entry], rotate: int) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    size = 0
    for entry in folders:
        length = FRAME_BYTES + span_of(entry).length
        if batch and size + length > rotate:
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += length
    if batch:
        yield batch


def _move(path: Path, batch: Sequence[Entry], done: Copied) -> None:
    logs = scan_folder(path, os.listdir(path))
    there = {record.step: record_span(log, record) for log, record in latest(logs)}
    new = [e for e in batch if e.step not in there or not equal(span_of(e), there[e.step])]
    present = [there[e.step].path for e in batch if e not in new]
    done.written += len(new)
    done.present += len(present)
    done.bytes += sum(span_of(entry).length for entry in new)
    if new:
        _write_log(path, new, 1 + max((r.serial for log in logs for r in log.records), default=-1))
    _flush(path, *present)
    for entry in batch:
        remove_folder(entry.local)


def _write_log(path: Path, entries: Sequence[Entry], serial: int) -> None:
    draft = path / f".log-{entries[0].step:06d}.stlog"
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            for number, entry in enumerate(entries, start=serial):
                _append(descriptor, number, entry)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _compare(draft, entries)
        draft.rename(free_name(path, entries[0].step))
    except OSError as error:
        raise RunError(f"Cannot write a log into {path}: {error.strerror}. Its folders are untouched.") from error
    finally:
        draft.unlink(missing_ok=True)


def _append(descriptor: int, serial: int, entry: Entry) -> None:
    span, check = span_of(entry), 0
    start = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, FRAME_BYTES, os.SEEK_CUR)
    for block in span.blocks():
        write_all(descriptor, [block])
        check = checksum(block, check=check)
    os.pwrite(descriptor, frame(serial, entry.step, span.length, check), start)


def _compare(log: Path, entries: Sequence[Entry]) -> None:
    records = scan(log).records
    same = len(records) == len(entries) and all(
        entry.step == record.step and equal(span_of(entry), record_span(log, record))
        for entry, record in zip(entries, records, strict=True)
    )
    if not same:
        raise RunError(f"The log for the folders from {entries[0].path} on reads back otherwise. Check the disk.")


def _flush(*paths: Path) -> None:
    sync = Sync("close")
    sync.wrote(*paths)
    sync.flush()
