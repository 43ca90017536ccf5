"""Append to `metrics.jsonl`: one line per call, whole or not at all as far as the disk allows."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ..errors import RunError


def metrics_line(step: int, metrics: Mapping[str, float]) -> str:
    """Return the line of a step's numbers; JSON has no NaN, so null stands for it."""
    row = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
    return json.dumps({"step": step, **row}) + "\n"


class MetricsFile:
    """Each line is handed to the system at once, so a killed process loses none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._descriptor < 0

    def write(self, line: str) -> None:
        """Append a line. Raises RunError when the disk is full; what fitted of the line is removed again."""
        if self.closed:
            raise RunError(f"{self.path.parent} is finished: nothing can be added to it.")
        data = line.encode()
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise RunError(f"Cannot write {self.path}: {error.strerror}. Make room, then resume the run.") from error

    def close(self) -> None:
        """Close the file; a later call changes nothing."""
        if not self.closed:
            os.close(self._descriptor)
            self._descriptor = -1
