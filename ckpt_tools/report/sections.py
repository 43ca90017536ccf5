"""One section per analyzer: what it measures in plain words, its charts, its conclusions, what failed and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ..results.reader import ResultGroup, Variable
from .charts import Charts
from .part import Part, entries, mapping
from .tags import Html, coded, details, joined, shown, table, tag

_MOST_ITEMS = 60
_DEEPEST = 3
_MOST_TEXT = 4000


def section(part: Part, group: ResultGroup, charts: Charts, number: int) -> Html:
    """Return the section of an analyzer; its charts are numbered from `number` on, main ones first."""
    places = [tag("figure", data_chart=str(number + i), cls="chart") for i in range(len(charts.main))]
    folded = [tag("figure", data_chart=str(number + len(places) + i), cls="chart") for i in range(len(charts.others))]
    name = part.anchor(group.name)
    return tag(
        "section",
        tag("h2", group.name, id=name),
        _about(group),
        tag("div", *places, cls="charts"),
        details(f"{len(folded)} more outputs", tag("div", *folded, cls="charts")) if folded else None,
        _summary(group),
        _texts(charts.texts),
        _missing(group, charts),
        _settings(group),
        aria_labelledby=name,
    )


def _about(group: ResultGroup) -> Html:
    """Return the plain words an analyzer has for readers new to it, and its description."""
    reading, description = group.attrs.get("reading"), group.attrs.get("description")
    plain = tag("p", coded(reading), cls="reading") if isinstance(reading, str) and reading else None
    return joined(plain, tag("p", coded(description), cls="description") if description else None)


def _summary(group: ResultGroup) -> Html:
    facts = mapping(group.attrs.get("summary"))
    rows = [(key.replace("_", " "), fact(value)) for key, value in facts.items()]
    return details("What it concludes", table(("Fact", "Value"), rows, cls="plain")) if rows else Html("")


def fact(value: Any, deep: int = 0) -> Html:
    """Return a fact of a summary for a reader: numbers short, mappings and records side by side."""
    if isinstance(value, dict | list) and deep > _DEEPEST:
        return joined("...")
    if isinstance(value, dict):
        parts = [joined(tag("b", key), " ", fact(item, deep + 1)) for key, item in list(value.items())[:_MOST_ITEMS]]
        return _several(parts, len(value))
    if isinstance(value, list):
        parts = [_record(item) if isinstance(item, dict) else fact(item, deep + 1) for item in value[:_MOST_ITEMS]]
        return _several(parts, len(value))
    if value is None:
        return joined("never")
    return joined(f"{value:.4g}" if isinstance(value, float) else _cut(shown(value)))


def _record(item: Mapping[str, Any]) -> Html:
    said = (f"{key} {'never' if value is None else _cut(str(value))}" for key, value in item.items())
    return joined(" ".join(said))


def _several(parts: list[Html], count: int) -> Html:
    if not parts:
        return joined("none")
    more = tag("span", f"and {count - len(parts):,} more") if count > len(parts) else None
    return tag("span", *(tag("span", part) for part in parts), more, cls="several")


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]} ..."


def _texts(variables: list[Variable]) -> Html:
    """Return outputs that are texts: how often each occurs."""
    rows = []
    for variable in variables:
        counts = Counter(str(text) for text in variable.read().ravel().tolist())
        said = [f"{text or '(empty)'} ({n:,} times)" for text, n in counts.most_common(12)]
        more = f" and {len(counts) - 12:,} others" if len(counts) > 12 else ""
        if said:
            rows.append((f"{variable.name}: {variable.long_name}", _cut(", ".join(said) + more)))
    return details("Texts", table(("Output", "Values"), rows, cls="plain")) if rows else Html("")


def _missing(group: ResultGroup, charts: Charts) -> Html:
    """Return what failed, what has no value anywhere, and what is too large for a page."""
    lines = [tag("li", f"step {step}: {reason}") for step, reason in _failures(group)]
    if charts.empty:
        lines.append(tag("li", f"No value at any step: {', '.join(charts.empty)}."))
    if charts.too_large:
        lines.append(tag("li", f"Too large for this page, read it from the results: {', '.join(charts.too_large)}."))
    if charts.elsewhere:
        lines.append(tag("li", f"Not along steps, read it from the results: {', '.join(charts.elsewhere)}."))
    failed = len(mapping(group.attrs.get("failures")))
    title = f"Not measured: {failed:,} failed" if failed else "Not drawn"
    return details(title, tag("ul", *lines), open_=bool(failed)) if lines else Html("")


def _failures(group: ResultGroup) -> Iterator[tuple[str, str]]:
    failures = mapping(group.attrs.get("failures"))
    yield from [(str(step), str(reason)) for step, reason in failures.items()][:_MOST_ITEMS]
    if len(failures) > _MOST_ITEMS:
        yield "others", f"{len(failures) - _MOST_ITEMS:,} more, in the results file"


def _settings(group: ResultGroup) -> Html:
    attrs = group.attrs
    rows: list[tuple[Any, Any]] = [(key, json.dumps(value)) for key, value in mapping(attrs.get("options")).items()]
    origin = " ".join(str(attrs.get(key) or "") for key in ("distribution", "distribution_version")).strip()
    facts = [("provided by", origin), ("version", attrs.get("analyzer_version")), ("reads", attrs.get("needs"))]
    rows += [(tag("em", key), value) for key, value in facts if value]
    if attrs.get("matrix_selection"):
        rows.append((tag("em", "matrices"), json.dumps(attrs["matrix_selection"])))
    skipped = len(entries(attrs.get("skipped")))
    if skipped:
        rows.append((tag("em", "left out"), f"{skipped:,} tensors, listed below"))
    return details("Settings", table(("Option", "Value"), rows, cls="plain"))
