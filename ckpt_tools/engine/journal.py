"""Finished units on disk before they count: one SQLite file in WAL mode beside the results file.

A unit is one analyzer at one step. Its key covers everything its numbers depend on, so a unit is found again exactly
when computing it again would give the same. An HDF5 file that is being appended to does not survive a kill; this does.
Commits are grouped: a unit is acknowledged when its group is committed, and a group waits at most `GROUP_SECONDS`.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock
import numpy as np

from ..errors import ResultsError
from ..results import Record

GROUP_SECONDS = 0.25
FORMAT = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS unit (key TEXT PRIMARY KEY, analyzer TEXT, step INTEGER, record BLOB, reason TEXT);
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

    Raises ResultsError when another process holds it, or when the disk takes no more.
    """

    def __init__(self, results: Path) -> None:
        self.path = journal_path(results)
        self._lock = _locked(results)
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            # FULL: a group that was committed is there after a power cut too.
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            self._require_format()
        except sqlite3.Error as error:
            self._lock.release()
            raise self._failed(error) from error
        self._pending = False
        self._since = 0.0

    def _require_format(self) -> None:
        self._db.execute("INSERT OR IGNORE INTO fact VALUES ('format', ?)", (str(FORMAT),))
        found = self.fact("format")
        if found != str(FORMAT):
            raise ResultsError(f"{self.path} is a journal of format {found}; this version writes {FORMAT}. Remove it.")

    def _failed(self, error: sqlite3.Error) -> ResultsError:
        return ResultsError(
            f"Cannot keep the journal {self.path}: {error}. Free some space, or remove the file if it is damaged; what "
            "was committed stays."
        )

    def _execute(self, statement: str, values: Sequence[Any]) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _write(self, statement: str, values: Sequence[Any]) -> None:
        if not self._pending:
            self._execute("BEGIN", ())
            self._pending, self._since = True, time.monotonic()
        self._execute(statement, values)
        if time.monotonic() - self._since >= GROUP_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Acknowledge everything put so far."""
        if self._pending:
            self._execute("COMMIT", ())
            self._pending = False

    def has(self, keys: Sequence[str]) -> set[str]:
        """Return which of these units are finished; failed ones do not count."""
        found: set[str] = set()
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            rows = self._execute(f"SELECT key FROM unit WHERE record IS NOT NULL AND key IN ({marks})", part)
            found.update(key for (key,) in rows)
        return found

    def has_any(self, analyzer: str, step: int) -> bool:
        """Return whether an analyzer has any finished unit at a step, of whatever options and content."""
        found = self._execute(
            "SELECT 1 FROM unit WHERE analyzer = ? AND step = ? AND record IS NOT NULL LIMIT 1", (analyzer, step)
        )
        return found.fetchone() is not None

    def clear(self) -> None:
        """Forget everything."""
        self.commit()
        for table in ("unit", "content"):
            self._execute(f"DELETE FROM {table}", ())
        self._execute("DELETE FROM fact WHERE name != 'format'", ())

    def put(self, key: str, analyzer: str, record: Record) -> None:
        """Store a finished unit."""
        self._write(
            "INSERT OR REPLACE INTO unit VALUES (?, ?, ?, ?, NULL)", (key, analyzer, record.step, encode(record))
        )

    def put_failure(self, key: str, analyzer: str, step: int, reason: str) -> None:
        """Store why a unit could not be finished; it is tried again by the next call."""
        self._write("INSERT OR REPLACE INTO unit VALUES (?, ?, ?, NULL, ?)", (key, analyzer, step, reason))

    def get(self, key: str) -> Record:
        """Return a finished unit; raises ResultsError when there is none."""
        row = self._execute("SELECT record FROM unit WHERE key = ?", (key,)).fetchone()
        if row is None or row[0] is None:
            raise ResultsError(f"{self.path} has lost the unit {key}; run the same command again with --force.")
        return decode(row[0])

    def content_hash(self, fingerprint: str) -> str | None:
        """Return the content hash remembered for a file fingerprint (paths, sizes, times, selection)."""
        row = self._execute("SELECT hash FROM content WHERE fingerprint = ?", (fingerprint,)).fetchone()
        return None if row is None else str(row[0])

    def remember_hash(self, fingerprint: str, content_hash: str) -> None:
        """Remember a content hash, so that the next call need not read unchanged files to know them."""
        self._write("INSERT OR REPLACE INTO content VALUES (?, ?)", (fingerprint, content_hash))

    def fact(self, name: str) -> str | None:
        """Return a fact about the whole journal, or None."""
        row = self._execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def put_fact(self, name: str, value: str) -> None:
        """Store a fact about the whole journal."""
        self._write("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, value))

    def close(self) -> None:
        """Acknowledge what is pending and release the lock."""
        try:
            self.commit()
        finally:
            self._db.close()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


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


class Records(Sequence[Record]):
    """Finished units in order, each loaded when indexed: memory does not grow with the trajectory."""

    def __init__(self, journal: Journal, keys: Sequence[str]) -> None:
        self._journal, self._keys = journal, list(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._journal.get(key) for key in self._keys[index]]
        return self._journal.get(self._keys[index])


def encode(record: Record) -> bytes:
    """Return a record as bytes: a JSON header, its length first, then the arrays in order; texts lie in the header."""
    arrays: list[bytes] = []
    header = {
        "step": record.step,
        "values": {name: _described(array, arrays) for name, array in record.values.items()},
        "labels": {dim: _described(np.asarray(of), arrays) for dim, of in record.labels.items()},
    }
    text = json.dumps(header).encode()
    return b"".join([len(text).to_bytes(4, "little"), text, *arrays])


def _described(array: np.ndarray[Any, Any], arrays: list[bytes]) -> dict[str, Any]:
    if array.dtype.kind == "U":
        return {"shape": array.shape, "text": array.ravel().tolist()}
    data = np.ascontiguousarray(array)
    arrays.append(data.tobytes())
    return {"shape": array.shape, "dtype": data.dtype.str}


def decode(data: bytes) -> Record:
    """Return the record of `encode`."""
    length = int.from_bytes(data[:4], "little")
    header = json.loads(data[4 : 4 + length])
    at = 4 + length
    found: dict[str, dict[str, Any]] = {"values": {}, "labels": {}}
    for part in found:
        for name, how in header[part].items():
            found[part][name], at = _array(how, data, at)
    labels = {dim: of.tolist() if of.dtype.kind == "U" else of for dim, of in found["labels"].items()}
    return Record(header["step"], found["values"], labels)


def _array(how: Mapping[str, Any], data: bytes, at: int) -> tuple[np.ndarray[Any, Any], int]:
    if "text" in how:
        return np.array(how["text"], dtype=np.str_).reshape(how["shape"]), at
    dtype = np.dtype(how["dtype"])
    size = dtype.itemsize * int(np.prod(how["shape"], dtype=np.int64))
    return np.frombuffer(data, dtype, size // dtype.itemsize, at).reshape(how["shape"]), at + size
