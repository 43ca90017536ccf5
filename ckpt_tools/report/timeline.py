"""What happened when, from the summaries of all analyzers: segments of curves, events and spans, each in a sentence.

An analyzer says in `events` what the steps in its summary mean, as sentences: `{"focus_step": "focus: token {token}
attends to one key."}`. The part before a colon is the short name. In braces stand the summary's own facts: of columns
of the same length the entry beside the step, of `{"group": ..., "step": ...}` the other fields, of `{label: step}` the
`{label}`. A key `"a..b"` is a span from the steps in `a` to those in `b`.

Without `events`, what is named like a step still shows: `*_step`, `*_onset`, lists of `{"group", "step"}`. Columns
`X_kind`, `X_start`, `X_stop` are the segments of a curve X.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..results.reader import ResultGroup
from .part import mapping
from .tags import shown

MOST_EVENTS = 60
"""Events per analyzer on the timeline; the summary has all."""
_DEEPEST = 3
_BRACES = re.compile(r"\{(\w+)\}")
_LIKE_A_STEP = re.compile(r"(^|_)(step|onset)$")


@dataclass(frozen=True)
class Event:
    """Something at `step`, or from there to `stop`; `name` is short, `text` a sentence."""

    step: int
    stop: int | None
    name: str
    text: str


@dataclass(frozen=True)
class Lane:
    """A row of the timeline: the events of one analyzer, or the segments of one curve; `more` were left out."""

    group: str
    name: str
    events: list[Event]
    segments: bool = False
    more: int = 0


def lanes(group: ResultGroup) -> list[Lane]:
    """Return the rows of the timeline that a group gives; none where its summary holds no steps."""
    summary = mapping(group.attrs.get("summary"))
    last = int(group.steps[-1]) if len(group.steps) else 0
    rows = [Lane(group.name, curve, found, segments=True) for curve, found in _segments(summary)]
    found = sorted(_events(summary, _declared(group, summary), last), key=lambda e: (e.step, e.stop or 0, e.text))
    for number, row in enumerate(_apart(found[:MOST_EVENTS])):
        more = 0 if number else max(0, len(found) - MOST_EVENTS)
        rows.append(Lane(group.name, "" if number else group.name, row, more=more))
    return rows


def _apart(events: list[Event]) -> list[list[Event]]:
    """Return events in as few rows as let no span cover what comes after it."""
    rows: list[list[Event]] = []
    for event in events:
        row = next((row for row in rows if all(e.stop is None or e.stop <= event.step for e in row)), None)
        if row is None:
            rows.append(row := [])
        row.append(event)
    return rows


def _segments(summary: Mapping[str, Any]) -> Iterator[tuple[str, list[Event]]]:
    """Yield each curve that the summary cuts into segments, with these."""
    for key, kinds in summary.items():
        curve = key.removesuffix("_kind")
        start, stop = summary.get(f"{curve}_start"), summary.get(f"{curve}_stop")
        if curve == key or not (isinstance(kinds, list) and isinstance(start, list) and isinstance(stop, list)):
            continue
        rows = [(k, a, b) for k, a, b in zip(kinds, start, stop, strict=False) if _is_step(a) and _is_step(b)]
        named = [(int(a), int(b), f"{n} {shown(k)}") for n, (k, a, b) in enumerate(rows, 1)]
        yield shown(curve), [Event(a, b, n, f"{shown(curve)}, {n}: steps {a:,} to {b:,}") for a, b, n in named]


def _declared(group: ResultGroup, summary: Mapping[str, Any]) -> Mapping[str, str]:
    """Return what the analyzer says about its steps, or sentences made of their names."""
    declared = {str(k): str(v) for k, v in mapping(group.attrs.get("events")).items()}
    if declared:
        return declared
    return {key: _sentence(key, value) for key, value in summary.items() if _like_steps(key, value)}


def _like_steps(key: str, value: Any) -> bool:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "step" in value[0]
    return bool(_LIKE_A_STEP.search(key)) and not key.endswith("_kind")


def _sentence(key: str, value: Any) -> str:
    words = key.removesuffix("_step").replace("_", " ")
    if isinstance(value, dict):
        return f"{words}: {{label}}"
    fields = [k for k in value[0] if k != "step"] if isinstance(value, list) and isinstance(value[0], dict) else []
    return f"{words}: {', '.join(f'{{{k}}}' for k in fields)}" if fields else words


def _events(summary: Mapping[str, Any], declared: Mapping[str, str], last: int) -> Iterator[Event]:
    for key, sentence in declared.items():
        name, _, stop = key.partition("..")
        ends = dict(_steps(summary.get(stop))) if stop else {}
        for place, step in _steps(summary.get(name)):
            if not _is_step(step):
                continue
            end = ends.get(place) if stop else None
            facts = _facts(summary, summary.get(name), place)
            text = _BRACES.sub(lambda m, facts=facts: _said(facts.get(m[1])), sentence)  # type: ignore[misc]
            short, colon, rest = text.partition(": ")
            yield Event(
                int(step),
                (int(end) if end is not None and _is_step(end) else last) if stop else None,
                short,
                rest if colon else text,
            )


def _steps(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield every step in a fact with the place where it stands, as deep as analyzers nest."""
    if len(at) > _DEEPEST:
        return
    if isinstance(value, dict) and "step" in value:
        yield at, value["step"]
    elif isinstance(value, dict):
        for label, item in value.items():
            yield from _steps(item, (*at, label))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _steps(item, (*at, number))
    else:
        yield at, value


def _facts(summary: Mapping[str, Any], value: Any, place: tuple[Any, ...]) -> dict[str, Any]:
    """Return what a sentence may name about the step at `place`."""
    facts = {key: item for key, item in summary.items() if not isinstance(item, list | dict)}
    if isinstance(value, list) and len(place) == 1:
        columns = {k: v for k, v in summary.items() if isinstance(v, list) and len(v) == len(value)}
        facts |= {key: column[place[0]] for key, column in columns.items()}
    texts = [item for item in place if isinstance(item, str)]
    for item in place:
        value = value[item]
    if isinstance(value, dict):
        facts |= value
    return facts | ({"label": ", ".join(texts)} if texts else {})


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "?" if value is None else shown(value)


def _is_step(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**53
