"""The numbers a trainer logged beside its checkpoints: one JSON object per line, each with its `step`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import FormatError, SourceError
from .jsondata import parse_object
from .location import Location

METRICS = "metrics.jsonl"


def read_metrics(file: Location, steps: Sequence[int]) -> dict[str, list[float]]:
    """Return `{metric: one number per step}`, NaN where a step has none; metrics that no such step has are absent.

    Several lines of a step are merged, the later one wins. A last line torn by a kill is left out; any other damage
    raises FormatError with the line's number.
    """
    position = {step: at for at, step in enumerate(steps)}
    found: dict[str, list[float]] = {}
    for step, row in _lines(file):
        if step in position:
            for name, value in row.items():
                if isinstance(value, (int, float)):
                    found.setdefault(name, [math.nan] * len(steps))[position[step]] = float(value)
    return found


def _lines(file: Location) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = file.open("rb")
    except OSError as error:
        raise SourceError(f"Cannot read {file}: {error.strerror}.") from None
    with lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                row = parse_object(line)
            except FormatError as error:
                raise FormatError(f"{file}, line {number}: {error}.") from None
            if type(row.get("step")) is not int:
                raise FormatError(f"{file}, line {number}: expected a number 'step'. Got {line[:80]!r}.")
            yield row.pop("step"), row
