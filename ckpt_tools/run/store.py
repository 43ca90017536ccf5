"""Where the checkpoints of a run go: folders for long steps, a log for short ones.

Creating and renaming a file costs half a millisecond or more, a seventh of the step of a small model; appending to an
open log does not. Nobody can say in advance which steps are short, so the first saves go into folders and are timed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Protocol

from ..checkpoint.log import is_log_name
from ..errors import OptionError
from .files import Sync
from .folders import FolderStore
from .log import LogStore

MODES = ("auto", "folders", "log")
TIMED = 20
SHARE = 0.05


class Store(Protocol):
    """Puts checkpoints on disk."""

    def put(self, step: int, buffers: Sequence[memoryview]) -> None:
        """Put the bytes of one checkpoint on disk; when it returns, a killed process no longer loses it."""

    def close(self) -> None:
        """Release files and flush what the rule says."""


class AutoStore:
    """Folders until `TIMED` saves are timed; from then on a log if folders cost more than `SHARE` of a step."""

    def __init__(self, path: Path, sync: Sync, clock: Callable[[], float] = time.perf_counter) -> None:
        self.path, self.sync, self.clock = path, sync, clock
        self._store: Store = FolderStore(path, sync)
        self._times: list[tuple[float, float]] | None = []

    def put(self, step: int, buffers: Sequence[memoryview]) -> None:
        """Put one checkpoint on disk."""
        if self._times is None:
            self._store.put(step, buffers)
            return
        start = self.clock()
        self._store.put(step, buffers)
        self._times.append((start, self.clock()))
        if len(self._times) > TIMED:
            if share(self._times) > SHARE:
                self._store.close()
                self._store = LogStore(self.path, self.sync)
            self._times = None

    def close(self) -> None:
        """Release files and flush what the rule says."""
        self._store.close()


def share(times: Sequence[tuple[float, float]]) -> float:
    """Return the time inside saves over the time between them (medians), from their starts and ends in seconds."""
    inside = median(end - start for start, end in times)
    between = median(after[0] - before[1] for before, after in pairwise(times))
    return inside / max(between, 1e-9)


def open_store(path: Path, mode: str, sync: Sync) -> Store:
    """Return the store of a run; one that has a log goes on with it unless folders are asked for.

    Raises OptionError for an unknown mode.
    """
    check_mode(mode)
    if mode == "folders":
        return FolderStore(path, sync)
    if mode == "log" or any(map(is_log_name, os.listdir(path))):
        return LogStore(path, sync)
    return AutoStore(path, sync)


def check_mode(mode: str) -> None:
    """Raise OptionError unless `mode` is one of `MODES`."""
    if mode not in MODES:
        raise OptionError(f"The mode of saving is one of {', '.join(MODES)}. Got {mode!r} instead.")
