"""Finished units on disk before they count: one SQLite file in WAL mode beside the results file.

A unit is one analyzer at one step. Its key covers everything its numbers depend on, so a unit is found again exactly
when computing it again would give the same. An HDF5 file that is being appended to does not survive a kill; this does.
Commits are grouped: a unit is acknowledged when its group is committed, which a thread sees to within `GROUP_SECONDS`,
also while the next unit takes hours.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock
import numpy as np

from ..errors import ResultsError
from ..results import Record
from .records import Column, Records, decode, encode

Steps = np.ndarray[Any, np.dtype[np.int64]]

GROUP_SECONDS = 0.25
FORMAT = 2
_SCHEMA = """
CREATE TABLE IF NOT EXISTS unit (key TEXT PRIMARY KEY, analyzer TEXT, step INTEGER, record BLOB);
CREATE TABLE IF NOT EXISTS result (analyzer TEXT, step INTEGER, key TEXT, reason TEXT, PRIMARY KEY (analyzer, step));
CREATE TABLE IF NOT EXISTS checkpoint (step INTEGER PRIMARY KEY, hash TEXT, path TEXT, sighting TEXT);
CREATE TABLE IF NOT EXISTS content (fingerprint TEXT PRIMARY KEY, hash TEXT);
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT);
CREATE INDEX IF NOT EXISTS unit_step ON unit (analyzer, step);
"""


def journal_path(results: Path) -> Path:
    """Return where the journal of a results file lies."""
    return results.with_name(f"{results.name}.journal")


def unit_key(**parts: Any) -> str:
    """Return the key of a unit from everything its numbers depend on, all JSON-able."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Journal:
    """The journal of one results file; a context manager that holds the file's lock.

    `unit` holds every unit ever finished, `result` which of them the results file shows, or why there is none.
    `fresh` starts an empty one in place of what is there. Raises ResultsError when another process holds the lock, or
    when the disk takes no more.
    """

    def __init__(self, results: Path, *, fresh: bool = False) -> None:
        self.path = journal_path(results)
        self._lock = _locked(results)
        if fresh:
            _remove(self.path)
        self._turn = threading.RLock()
        self._error: sqlite3.Error | None = None
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA cache_size=-256")
            # FULL: a group that was committed is there after a power cut too.
            self._db.execute("PRAGMA synchronous=FULL")
            # The format first: tables of another one need not have these columns.
            self._db.execute("CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT)")
            self._require_format()
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, ResultsError) as error:
            self._lock.release()
            raise (self._failed(error) if isinstance(error, sqlite3.Error) else error) from error
        self._closing = threading.Event()
        self._committer = threading.Thread(target=self._commit_regularly, daemon=True)
        self._committer.start()

    def _require_format(self) -> None:
        self._db.execute("INSERT OR IGNORE INTO fact VALUES ('format', ?)", (str(FORMAT),))
        found = self.fact("format")
        if found != str(FORMAT):
            raise ResultsError(
                f"{self.path} is a journal of format {found}; this version writes {FORMAT}. Add --force to start the "
                "results afresh, or name another file with -o."
            )

    def _commit_regularly(self) -> None:
        while not self._closing.wait(GROUP_SECONDS):
            with self._turn:
                try:
                    if self._db.in_transaction:
                        self._db.execute("COMMIT")
                except sqlite3.Error as error:
                    self._error = error  # raised by the next call of the thread that writes

    def _failed(self, error: sqlite3.Error) -> ResultsError:
        return ResultsError(
            f"Cannot keep the journal {self.path}: {error}. Free some space, or remove the file if it is damaged; what "
            "was committed stays."
        )

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._turn:
            if self._error is not None:
                raise self._failed(self._error)
            try:
                return self._db.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise self._failed(error) from error

    def _write(self, statement: str, values: Sequence[Any] = ()) -> None:
        with self._turn:
            if not self._db.in_transaction:
                self._execute("BEGIN")
            self._execute(statement, values)

    @contextmanager
    def group(self) -> Iterator[None]:
        """What is put in the block is acknowledged together or not at all."""
        with self._turn:
            self._write("SAVEPOINT part")
            try:
                yield
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk has undone more than that already
                    self._db.execute("ROLLBACK TO part")
                raise
            finally:
                with suppress(sqlite3.Error):
                    self._db.execute("RELEASE part")

    def commit(self) -> None:
        """Acknowledge everything put so far."""
        with self._turn:
            if self._db.in_transaction:
                self._execute("COMMIT")

    def has(self, keys: Sequence[str]) -> set[str]:
        """Return which of these units are finished."""
        found: set[str] = set()
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            found.update(key for (key,) in self._execute(f"SELECT key FROM unit WHERE key IN ({marks})", part))
        return found

    def has_any(self, analyzer: str, step: int) -> bool:
        """Return whether an analyzer has any finished unit at a step, of whatever options and content."""
        return bool(self._execute("SELECT 1 FROM unit WHERE analyzer = ? AND step = ? LIMIT 1", (analyzer, step)))

    def put(self, key: str, analyzer: str, record: Record) -> None:
        """Store a finished unit, and show it in the results."""
        with self._turn:
            self._write("INSERT OR REPLACE INTO unit VALUES (?, ?, ?, ?)", (key, analyzer, record.step, encode(record)))
            self.show(analyzer, record.step, key)

    def show(self, analyzer: str, step: int, key: str) -> None:
        """Let the results show a finished unit."""
        self._write("INSERT OR REPLACE INTO result VALUES (?, ?, ?, NULL)", (analyzer, step, key))

    def put_failure(self, analyzer: str, step: int, reason: str) -> None:
        """Let the results say why there is no unit; it is tried again by the next call."""
        self._write("INSERT OR REPLACE INTO result VALUES (?, ?, NULL, ?)", (analyzer, step, reason))

    def hide(self, analyzer: str) -> None:
        """Show nothing of an analyzer any more; its units stay for the day they fit again."""
        self._write("DELETE FROM result WHERE analyzer = ?", (analyzer,))

    def steps(self, analyzer: str | None = None) -> Steps:
        """Return the steps that the results show of an analyzer, by default of any, ascending."""
        where = "" if analyzer is None else " AND analyzer = ?"
        statement = f"SELECT DISTINCT step FROM result WHERE key IS NOT NULL{where} ORDER BY step"
        with self._turn:
            rows = self._db.execute(statement, () if analyzer is None else (analyzer,))
            return np.fromiter((step for (step,) in rows), np.int64)

    def failures(self, analyzer: str) -> dict[str, str]:
        """Return why steps of an analyzer have no result, `{step: reason}`."""
        found = self._execute(
            "SELECT step, reason FROM result WHERE analyzer = ? AND key IS NULL ORDER BY step", (analyzer,)
        )
        return {str(step): reason for step, reason in found}

    def records(self, analyzer: str) -> Records:
        """Return what the results show of an analyzer."""
        return Records(lambda step: self.record(analyzer, step), self.steps(analyzer))

    def record(self, analyzer: str, step: int) -> Record:
        """Return the unit that the results show; raises ResultsError when there is none."""
        found = self._execute(
            "SELECT record FROM result JOIN unit USING (key) WHERE result.analyzer = ? AND result.step = ?",
            (analyzer, step),
        )
        if not found:
            raise ResultsError(
                f"{self.path} has lost {analyzer} at step {step}; run the same command again with --force."
            )
        return decode(found[0][0])

    def see(self, step: int, *, hash: str, path: str, sighting: str) -> None:
        """Take note of what a checkpoint is."""
        self._write("INSERT OR REPLACE INTO checkpoint VALUES (?, ?, ?, ?)", (step, hash, path, sighting))

    def sightings(self) -> Iterator[tuple[int, str]]:
        """Yield step and sighting of every checkpoint taken note of, by step; nothing may be put meanwhile."""
        yield from self._db.execute("SELECT step, sighting FROM checkpoint ORDER BY step")

    def checkpoints(self) -> tuple[Sequence[int], Column, Column]:
        """Return the steps that the results show, and content hash and path of these checkpoints."""
        steps = self.steps()
        return (
            array("q", steps),
            Column(partial(self._between, "hash"), steps),
            Column(partial(self._between, "path"), steps),
        )

    def _between(self, column: str, first: int, last: int) -> dict[int, str]:
        return dict(self._execute(f"SELECT step, {column} FROM checkpoint WHERE step BETWEEN ? AND ?", (first, last)))

    def content_hash(self, fingerprint: str) -> str | None:
        """Return the content hash remembered for a file fingerprint (paths, sizes, times, selection)."""
        found = self._execute("SELECT hash FROM content WHERE fingerprint = ?", (fingerprint,))
        return str(found[0][0]) if found else None

    def remember_hash(self, fingerprint: str, content_hash: str) -> None:
        """Remember a content hash, so that the next call need not read unchanged files to know them."""
        self._write("INSERT OR REPLACE INTO content VALUES (?, ?)", (fingerprint, content_hash))

    def fact(self, name: str) -> str | None:
        """Return a fact about the whole journal, or None."""
        found = self._execute("SELECT value FROM fact WHERE name = ?", (name,))
        return str(found[0][0]) if found else None

    def put_facts(self, facts: Mapping[str, str]) -> None:
        """Store facts about the whole journal, those that changed."""
        for name, value in facts.items():
            if self.fact(name) != value:
                self._write("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, value))

    def close(self) -> None:
        """Acknowledge what is pending and release the lock."""
        self._closing.set()
        self._committer.join()
        try:
            self.commit()
        finally:
            self._db.close()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _remove(journal: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        journal.with_name(journal.name + suffix).unlink(missing_ok=True)


def _locked(results: Path) -> filelock.BaseFileLock:
    """Return the held lock of a results file; it goes when it is released or the process dies, however it dies."""
    lock = filelock.FileLock(results.with_name(f"{results.name}.lock"), blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise ResultsError(
            f"Another ckpt analyze is writing {results}. Wait for it, or write elsewhere with -o."
        ) from None
    except OSError as error:
        raise ResultsError(
            f"Cannot write beside {results}: {error.strerror}. Choose a writable place with -o."
        ) from None
    return lock
