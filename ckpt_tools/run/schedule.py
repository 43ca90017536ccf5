"""Which steps of a training run are saved: `every:20,log:50,at:0,1,2` and any union of such parts.

- `every:N`: 0, N, 2N, ...
- `log:N`: N distinct steps from 0 to the last, the distances growing by a constant factor where integers allow it
- `at:A,B,C`: exactly these steps; a bare number continues the list

Step 0 and the last step are always saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ..errors import OptionError, nearest

KINDS = ("every", "log", "at")
_EXAMPLE = "Write for example 'every:20', 'log:50', 'at:0,1,2' or several joined by commas."


@dataclass(frozen=True)
class Schedule:
    """A union of rules; `Schedule()` saves the first and the last step only."""

    every: tuple[int, ...] = ()
    log: tuple[int, ...] = ()
    at: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read the text form; raises OptionError that shows the part at fault."""
        found: dict[str, list[int]] = {kind: [] for kind in KINDS}
        kind = ""
        for part in (p.strip() for p in text.split(",")):
            head, colon, number = part.partition(":")
            if colon:
                kind = _known(head.strip(), text)
            elif kind == "at":
                number = part
            else:
                raise OptionError(f"Schedule {text!r}: {part!r} names no rule. {_EXAMPLE}")
            found[kind].append(_number(kind, number.strip(), text))
        return cls(*(tuple(found[kind]) for kind in KINDS))

    def __str__(self) -> str:
        parts = [f"every:{n}" for n in self.every] + [f"log:{n}" for n in self.log]
        return ",".join(parts + ([f"at:{','.join(map(str, self.at))}"] if self.at else []))

    def steps(self, last: int) -> list[int]:
        """Return the steps to save in a run of `last` steps: ascending, distinct, with 0 and `last`."""
        return sorted(_steps(self, last))

    def due(self, step: int, last: int | None = None) -> bool:
        """Return whether `step` is to be saved. `log` and the last step exist only when `last` is given.

        Raises OptionError for a schedule with a `log` part and no `last`.
        """
        if last is not None:
            return step in _steps(self, last)
        if self.log:
            raise OptionError(f"Schedule {str(self)!r}: 'log' needs the number of the last step.")
        return step == 0 or step in self.at or any(step % n == 0 for n in self.every)


@lru_cache(maxsize=16)
def _steps(schedule: Schedule, last: int) -> frozenset[int]:
    if last < 0:
        raise OptionError(f"A run cannot end at step {last}; the last step must be 0 or more.")
    found = {0, last} | {step for step in schedule.at if step <= last}
    found.update(*(range(0, last, n) for n in schedule.every), *(log_steps(n, last) for n in schedule.log))
    return frozenset(found)


def log_steps(count: int, last: int) -> list[int]:
    """Return `count` distinct steps from 0 to `last`, or all of them when there are fewer.

    Each step after 1 multiplies the one before by the factor that would reach `last` in the steps that are left;
    where that rounds to the same integer, the next integer is taken.
    """
    if count > last:
        return list(range(last + 1))
    steps = [0, 1] if count > 2 else [0]
    while len(steps) < count - 1:
        left = count - len(steps)
        steps.append(max(steps[-1] + 1, round(steps[-1] * (last / steps[-1]) ** (1 / left))))
    return [*steps, last]


def _known(kind: str, text: str) -> str:
    if kind not in KINDS:
        raise OptionError(f"Schedule {text!r} has no rule {kind!r}.{nearest(kind, KINDS)} {_EXAMPLE}")
    return kind


def _number(kind: str, number: str, text: str) -> int:
    least = {"every": 1, "log": 2, "at": 0}[kind]
    if not (number.isascii() and number.isdigit()) or int(number) < least:
        raise OptionError(f"Schedule {text!r}: '{kind}:' needs an integer of at least {least}. Got {number!r} instead.")
    return int(number)
