"""Names that differ only in their numbers, put in order: one series is one run's checkpoints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .names import RANKS, Kind, Number, numbers_in

Row = tuple[str, list[Number]]


@dataclass(frozen=True)
class Series:
    """Checkpoints of one naming, ascending: `members` are (number, name).

    `label` is what stands before the number, `pattern` a glob for the names, `unit` what the number counts (`step` or
    `epoch`), and `keyed` says that a word in the name tells so.
    """

    label: str
    pattern: str
    unit: str
    keyed: bool
    members: tuple[tuple[int, str], ...]

    def __len__(self) -> int:
        return len(self.members)

    @property
    def names(self) -> list[str]:
        """Names by ascending number."""
        return [name for _, name in self.members]


def find_series(names: Iterable[str]) -> list[Series]:
    """Return the series among the names, by label; names without a number that may count belong to none."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for name in names:
        numbers = numbers_in(name)
        if any(number.value is not None for number in numbers):
            groups[_template(name, numbers)].append((name, numbers))
    found = [series for rows in groups.values() for series in _series(rows)]
    return sorted(found, key=lambda series: (series.label, series.pattern))


def _template(name: str, numbers: Sequence[Number]) -> str:
    """Return the name with a mark for each number: `step-5`, `step_5` and `checkpoint-5` count the same."""
    text, at = "", 0
    for number in numbers:
        if number.kind == "fixed":
            continue
        start = number.begin if number.kind in RANKS else number.start
        mark = {"checkpoint": "step"}.get(number.kind, number.kind)
        text, at = f"{text}{name[at:start]}\0{mark}\0", number.end
    return text + name[at:]


def _series(rows: list[Row]) -> list[Series]:
    kinds = _kinds(rows[0][1])
    values = [_values(numbers) for _, numbers in rows]
    at = _counter(kinds, values)
    if at is not None:
        return [_made(rows, at, len(kinds) > 1)]
    order = _preferred(kinds)
    # A constant in the preferred place counts nothing.
    at = next((p for p in order if len({row[p] for row in values}) > 1), order[0])
    parts: dict[tuple[int, ...], list[Row]] = defaultdict(list)
    for row, numbers in zip(rows, values, strict=True):
        parts[numbers[:at] + numbers[at + 1 :]].append(row)
    return [_made(part, at, False) for part in parts.values()]


def _kinds(numbers: Sequence[Number]) -> list[Kind]:
    """Return the kinds of the numbers that may count; the checkpoint of `checkpoint_1_500` is no surer than the 500."""
    kinds = [number.kind for number in numbers if number.value is not None]
    vague = "bare" in kinds[kinds.index("checkpoint") :] if "checkpoint" in kinds else False
    return ["bare" if kind == "checkpoint" and vague else kind for kind in kinds]


def _values(numbers: Sequence[Number]) -> tuple[int, ...]:
    return tuple(number.value for number in numbers if number.value is not None)


def _preferred(kinds: Sequence[Kind]) -> list[int]:
    return sorted(range(len(kinds)), key=lambda p: (RANKS.get(kinds[p], len(RANKS)), -p))


def _counter(kinds: Sequence[Kind], values: Sequence[tuple[int, ...]]) -> int | None:
    """Return the position of the number that differs in all names, None when the others tell runs apart.

    Of several without a word the last counts when they grow together (`checkpoint_1_500`, `checkpoint_2_1000`), else
    the first: `05-87` is epoch 5 with a score of 87.
    """
    distinct = [p for p in _preferred(kinds) if len({row[p] for row in values}) == len(values)]
    if not distinct:
        return None
    ordered = sorted(values, key=lambda row: row[distinct[0]])
    together = all(a <= b for one, other in pairwise(ordered) for a, b in zip(one, other, strict=True))
    if kinds[distinct[0]] != "bare":
        return distinct[0] if together else None
    return distinct[0] if together else distinct[-1]


def _made(rows: list[Row], at: int, others_vary: bool) -> Series:
    members = sorted((_values(numbers)[at], name) for name, numbers in rows)
    first, numbers = next(row for row in rows if row[0] == members[0][1])
    counting = [number for number in numbers if number.value is not None]
    chosen = counting[at]
    kind = _kinds(numbers)[at]
    wild = [n for n in numbers if n is chosen or n.kind == "measure" or (others_vary and n.value is not None)]
    return Series(
        first[: min(n.begin if n.kind in RANKS else n.start for n in wild)].rstrip("-_=. /"),
        _pattern(first, wild),
        "epoch" if kind == "epoch" else "step",
        kind in RANKS,
        tuple(members),
    )


def _pattern(name: str, wild: Sequence[Number]) -> str:
    text, at = "", 0
    for number in wild:
        text, at = f"{text}{name[at : number.start]}*", number.end
    return text + name[at:]
