"""Step numbers in names, and the choice of steps that `--steps` makes.

A choice is a comma-separated union of parts, each about step numbers and never about positions:

- `start:stop` or `start:stop:stride`: the steps from start to stop, **both included** as for every range of labels
  (xarray, pandas); with a stride, start, start + stride, ... as far as they exist. Either end may be left out.
- `every:N`: the multiples of N.  `log:N`: at most N steps, evenly spaced in log(step), first and last among them.
- `at:0,1,2`: exactly these.  `first`, `last`, `all`, or a bare number.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise

from ..errors import SourceError, nearest
from .names import keyed, numbers_in

_FOLDER = re.compile(r"(?:checkpoint|global_?step|step|epoch|iter|iteration)[-_=]?(\d{1,18})", re.IGNORECASE | re.ASCII)
_EXAMPLE = "Write for example '0:1000:10', 'log:50', 'at:0,1,2', 'last', or several joined by commas."
_WORDS = ("all", "first", "last")
_LEAST = {"": 0, "at": 0, "every": 1, "log": 2}
_HOLES = 3
_RANGE = re.compile(r"(\d*):(\d*)(?::(\d*[1-9]\d*))?", re.ASCII)


def folder_step(name: str) -> int | None:
    """Return the step of a folder named `checkpoint-N`, `step-N`, `global_stepN`, `epoch_N`, `iter_N`, else None."""
    found = _FOLDER.fullmatch(name)
    return int(found[1]) if found else None


def count_steps(names: Iterable[str]) -> int:
    """Return how many of the names are step folders."""
    return sum(folder_step(name) is not None for name in names)


def step_in_name(name: str) -> int | None:
    """Return the step that a lone checkpoint's name mentions (`dcp_step7`, `model_epoch_10.pt`), else None."""
    found = keyed(numbers_in(name))
    return found.value if found else None


def gaps(steps: Sequence[int]) -> list[int]:
    """Return the steps missing from a grid that is regular on both sides of a hole: 30 for 10, 20, 40, 50.

    `steps` ascend. A hole is looked at with the spacing next to it, which must be the same before and behind, so
    spacings that change along the way (dense early, logarithmic) have no holes.
    """
    widths = [b - a for a, b in pairwise(steps)]
    found: list[int] = []
    at = 1
    while at < len(widths) - 1:
        width, end = widths[at - 1], at
        while end < min(len(widths), at + _HOLES) and widths[end] > width and widths[end] % width == 0:
            end += 1
        if at < end < len(widths) and widths[end] == width:
            present = set(steps[at : end + 1])
            found += [step for step in range(steps[at], steps[end], width) if step not in present]
            at = end
        at += 1
    return found


def select_steps(steps: Sequence[int], spec: str) -> list[int]:
    """Return the steps that `spec` chooses among `steps` (ascending), ascending and distinct.

    Raises SourceError for a part that is not understood, for a step that does not exist, and when nothing is chosen.
    """
    chosen = {step for part in spec.split(",") for step in _part(steps, part.strip(), spec)}
    if not chosen:
        raise SourceError(f"Steps {spec!r}: none of the {len(steps)} steps from {steps[0]} to {steps[-1]} is meant.")
    return sorted(chosen)


def no_such_step(steps: Sequence[int], step: int) -> str:
    """Return the sentence that says so, with the nearest steps there are."""
    at = bisect_left(steps, step)
    around = " and ".join(str(s) for s in steps[max(at - 1, 0) : at + 1])
    return f"there is no step {step}; nearest: {around} ({len(steps)} steps from {steps[0]} to {steps[-1]})"


def _part(steps: Sequence[int], part: str, spec: str) -> Sequence[int]:
    if part in _WORDS:
        return {"all": steps, "first": steps[:1], "last": steps[-1:]}[part]
    bounds = _RANGE.fullmatch(part)
    if bounds:
        return _between(steps, *(int(text) if text else None for text in bounds.groups()))
    rule, _, number = part.rpartition(":")
    if not (number.isascii() and number.isdigit() and rule in _LEAST and int(number) >= _LEAST[rule]):
        hint = nearest(rule or part, [*filter(None, _LEAST), *_WORDS]) if (rule or part).isalpha() else ""
        raise SourceError(f"Steps {spec!r}: {part!r} is not understood.{hint} {_EXAMPLE}")
    if rule == "every":
        return [step for step in steps if step % int(number) == 0]
    if rule == "log":
        return _log_spaced(steps, int(number))
    if int(number) not in steps:
        raise SourceError(f"Steps {spec!r}: {no_such_step(steps, int(number))}.")
    return [int(number)]


def _between(steps: Sequence[int], start: int | None, stop: int | None, stride: int | None = None) -> list[int]:
    first = steps[0] if start is None else start
    last = steps[-1] if stop is None else stop
    return [step for step in steps if first <= step <= last and (step - first) % (stride or 1) == 0]


def _log_spaced(steps: Sequence[int], count: int) -> list[int]:
    """Walk from the first step to the last, each time by the factor that would get there in the picks that are left."""
    if count >= len(steps):
        return list(steps)
    picks = [0]
    while len(picks) < count - 1:
        left, at = count - len(picks), picks[-1]
        aim = steps[at] * (steps[-1] / max(steps[at], 1)) ** (1 / left)
        picks.append(min(max(_nearest_position(steps, aim), at + 1), len(steps) - left))
    return [steps[at] for at in [*picks, len(steps) - 1]]


def _nearest_position(steps: Sequence[int], aim: float) -> int:
    at = bisect_left(steps, aim)
    return at if at == 0 or (at < len(steps) and steps[at] - aim <= aim - steps[at - 1]) else at - 1
