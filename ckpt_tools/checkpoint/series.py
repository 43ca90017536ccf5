"""Names that differ only in their numbers, put in order: one series is one run's checkpoints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .names import RANKS, Kind, Number, numbers_in


@dataclass
class _Group:
    """Names that differ in their numbers only, and those of the numbers that may count."""

    names: list[str] = field(default_factory=list)
    values: list[tuple[int, ...]] = field(default_factory=list)

    def add(self, name: str, values: tuple[int, ...]) -> None:
        """Append a name."""
        self.names.append(name)
        self.values.append(values)


@dataclass(frozen=True)
class Series:
    """Checkpoints of one naming: `names` by ascending `numbers`.

    `label` is what stands before the number, `pattern` a glob for the names, `unit` what the number counts (`step` or
    `epoch`), and `keyed` says that a word in the name tells so.
    """

    label: str
    pattern: str
    unit: str
    keyed: bool
    numbers: Sequence[int]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def members(self) -> Iterator[tuple[int, str]]:
        """Numbers with their names."""
        return zip(self.numbers, self.names, strict=True)


def find_series(names: Iterable[str]) -> list[Series]:
    """Return the series among the names, by label; names without a number that may count belong to none."""
    groups: dict[str, _Group] = defaultdict(_Group)
    for name in names:
        numbers = numbers_in(name)
        if values := _values(numbers):
            groups[_template(name, numbers)].add(name, values)
    found = [series for group in groups.values() for series in _series(group)]
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


def _series(group: _Group) -> list[Series]:
    kinds = _kinds(numbers_in(group.names[0]))
    at = _counter(kinds, group.values)
    if at is not None:
        return [_made(group, at, len(kinds) > 1)]
    order = _preferred(kinds)
    # A constant in the preferred place counts nothing.
    at = next((p for p in order if len({row[p] for row in group.values}) > 1), order[0])
    parts: dict[tuple[int, ...], _Group] = defaultdict(_Group)
    for name, values in zip(group.names, group.values, strict=True):
        parts[values[:at] + values[at + 1 :]].add(name, values)
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


def _made(group: _Group, at: int, others_vary: bool) -> Series:
    counts = [values[at] for values in group.values]
    order = sorted(range(len(counts)), key=group.names.__getitem__)
    order.sort(key=counts.__getitem__)
    first = group.names[order[0]]
    numbers = numbers_in(first)
    counting = [number for number in numbers if number.value is not None]
    chosen = counting[at]
    kind = _kinds(numbers)[at]
    wild = [n for n in numbers if n is chosen or n.kind == "measure" or (others_vary and n.value is not None)]
    return Series(
        first[: min(n.begin if n.kind in RANKS else n.start for n in wild)].rstrip("-_=. /"),
        _pattern(first, wild),
        "epoch" if kind == "epoch" else "step",
        kind in RANKS,
        [counts[i] for i in order],
        [group.names[i] for i in order],
    )


def _pattern(name: str, wild: Sequence[Number]) -> str:
    text, at = "", 0
    for number in wild:
        text, at = f"{text}{name[at : number.start]}*", number.end
    return text + name[at:]
