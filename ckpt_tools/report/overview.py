"""The first part of each file: what was analyzed, what is suspicious, where the numbers come from, how to repeat it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..results.reader import Results
from ..results.writer import SCHEMA
from .part import Part, entries, items, mapping
from .tags import Html, details, joined, table, tag
from .timeline import Event, Lane

MOST_ROWS = 200
_TOLD_ELSEWHERE = frozenset({"notes", "findings", "skipped_checkpoints", "history", "content_hashes", "libraries"})


def overview(part: Part, rows: Sequence[Lane], timeline: Html | None) -> Html:
    """Return the overview of a results file with the place of its timeline, which the page's script draws."""
    metrics = part.results.trajectory.variables if part.results.trajectory else {}
    told = [row for row in rows if not row.segments or row.name in metrics]
    return joined(
        tag("h2", "Overview"),
        tag("dl", *(joined(tag("dt", name), tag("dd", value)) for name, value in _facts(part)), cls="facts"),
        timeline,
        story(told),
        _checks(part.results),
    )


def closing(part: Part) -> Html:
    """Return what stands behind the analyzers' sections: what was left out, how to repeat it, provenance."""
    return joined(_left_out(part.results), _reproduce(part.results), _provenance(part))


def _facts(part: Part) -> Iterator[tuple[str, Any]]:
    results, attrs = part.results, part.results.attrs
    for name in ("source", "family"):
        if attrs.get(name) not in (None, ""):
            yield name.capitalize(), attrs[name]
    yield "Checkpoints", _span(results)
    run = attrs.get("run")
    if isinstance(run, dict) and run:
        yield "Training", _run(run)
    names = {d: None for g in results.groups.values() for d in g.labels.get("matrix", [])}
    if names:
        yield "Weight matrices", f"{len(names):,}"
    stored = items(attrs.get("storage_dtypes"))
    if stored:
        yield "Weights stored as", ", ".join(map(str, stored))
    yield "Analyzers", joined(*_links(part))


def _links(part: Part) -> Iterator[Any]:
    for number, name in enumerate(part.results.groups):
        if number:
            yield ", "
        yield tag("a", name, href=f"#{part.anchor(name)}")


def _span(results: Results) -> str:
    steps = sorted({int(s) for group in results.groups.values() for s in group.steps})
    if not steps:
        return "none"
    return f"one, at step {steps[0]:,}" if len(steps) == 1 else f"{len(steps):,}, steps {steps[0]:,} to {steps[-1]:,}"


def _run(run: Mapping[str, Any]) -> str:
    train = run.get("train")
    known = {key: run.get(key) for key in ("task", "seed")} | (train if isinstance(train, dict) else {})
    said = [f"{key} {value}" for key, value in known.items() if isinstance(value, str | int | float) and value != ""]
    return ", ".join(said[:8])


def _checks(results: Results) -> Html:
    """Return what the pass found suspicious, and what one should know."""
    found = entries(results.attrs.get("findings"))
    rows = [tag("li", tag("strong", f.get("severity", "")), " ", f.get("message", ""), cls="finding") for f in found]
    notes = [tag("li", note) for note in items(results.attrs.get("notes"))]
    failed = sum(len(mapping(group.attrs.get("failures"))) for group in results.groups.values())
    if failed:
        rows.append(
            tag("li", tag("strong", "failed"), f" {failed:,} measurement(s); see each analyzer.", cls="finding")
        )
    if "findings" in results.attrs and not found:
        notes.insert(0, tag("li", "Nothing suspicious: no copies, gaps, NaN or checkpoints of another run were seen."))
    return joined(tag("h3", "Checks"), tag("ul", *rows, *notes)) if rows or notes else Html("")


def story(rows: Sequence[Lane]) -> Html:
    """Return all events in order, as a list to be read."""
    events = [(event, lane) for lane in rows for event in lane.events]
    if not events:
        return Html("")
    events.sort(key=lambda found: (found[0].step, not found[1].segments, found[0].stop or 0))
    told = [_told(event, lane) for event, lane in events]
    more = sum(lane.more for lane in rows)
    rest = tag("p", f"{more:,} more events are in the summaries of the analyzers.") if more else None
    listed = tag("ol", *told, cls="story")
    return details("What happened, in order", listed, rest, open_=len(told) <= 40)


def _told(event: Event, lane: Lane) -> Html:
    """Return an event as an item of the list; segments of a metric divide the list into stages."""
    when = f"step {event.step:,}" if event.stop is None else f"steps {event.step:,} to {event.stop:,}"
    if lane.segments:
        number, _, kind = event.name.partition(" ")
        return tag("li", tag("span", when), " ", tag("strong", f"Stage {number} of {lane.name}: {kind}"), cls="stage")
    text = f" {event.text}" if event.text != event.name else ""
    return tag(
        "li", tag("span", when), " ", tag("div", tag("strong", event.name), text, tag("small", f" {lane.group}"))
    )


def _left_out(results: Results) -> Html:
    rows = [(name, reason) for name, reason in mapping(results.attrs.get("skipped_checkpoints")).items()]
    reasons: dict[str, dict[str, None]] = {}
    for group in results.groups.values():
        for item in entries(group.attrs.get("skipped")):
            reasons.setdefault(str(item.get("reason")), {})[str(item.get("name"))] = None
    rows += [(_names(list(names)), reason) for reason, names in reasons.items()]
    body = table(("What", "Why"), rows) if rows else tag("p", "Nothing was left out.")
    return joined(tag("h2", "Left out"), body)


def _names(names: list[str]) -> str:
    more = f" and {len(names) - 20:,} more" if len(names) > 20 else ""
    return f"{', '.join(names[:20])}{more}"


def _reproduce(results: Results) -> Html:
    command = str(results.attrs.get("history") or "").partition(": ")[2]
    version = mapping(results.attrs.get("libraries")).get("ckpt-tools")
    lines = [f'pip install "ckpt-tools=={version}"'] if version else []
    lines += [command] if command else []
    lines.append(shlex.join(["ckpt", "report", str(results.path), "-o", "report.html"]))
    return joined(
        tag("h2", "How to reproduce"),
        tag("p", "In the folder where the analysis was started:"),
        tag("pre", *(joined(tag("code", line), Html("\n")) for line in lines), tabindex="0"),
    )


def _provenance(part: Part) -> Html:
    results, attrs = part.results, part.results.attrs
    rows: list[tuple[Any, Any]] = [
        ("Results file", f"{results.path.name}, SHA-256 {part.digest}"),
        ("Schema", f"{SCHEMA} {attrs['schema_version']}"),
        ("Written", attrs.get("created", "at an unknown time")),
    ]
    libraries = mapping(attrs.get("libraries"))
    if libraries:
        rows.append(("Software", ", ".join(f"{name} {version}" for name, version in libraries.items())))
    for name, value in attrs.items():
        if (
            name not in _TOLD_ELSEWHERE
            and name not in ("created", "schema", "schema_version")
            and value not in ("", {})
        ):
            rows.append((name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return joined(
        tag("h2", "Provenance"), table(("Fact", "Value"), rows, cls="plain"), details("Checkpoints", _hashes(results))
    )


def _hashes(results: Results) -> Html:
    """Return step, hash of the content and path of each checkpoint."""
    hashes = list(mapping(results.attrs.get("content_hashes")).items())
    paths: dict[str, str] = {}
    if results.trajectory is not None and "path" in results.trajectory.variables:
        read = results.trajectory["path"].read().tolist()
        paths = {str(s): p for s, p in zip(results.trajectory.steps.tolist(), read, strict=True)}
    rows = [(step, paths.get(step, ""), tag("code", value)) for step, value in hashes[:MOST_ROWS]]
    more = tag("p", f"And {len(hashes) - MOST_ROWS:,} more, in the results file.") if len(hashes) > MOST_ROWS else None
    return joined(table(("Step", "Path", "Hash of the content"), rows), more)
