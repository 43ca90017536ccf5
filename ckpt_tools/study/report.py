"""The report of a study: Markdown that reads as a story, with its figures beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .declare import Figure, Run, Study, Table
from .draw import draw
from .found import Found, Missing
from .judge import Verdict
from .load import Loaded
from .perform import Performance
from .table import claim_columns, claim_rows, markdown_table, tally

REPORT_FILE = "report.md"


def write_report(
    loaded: Loaded, judged: Sequence[Verdict], done: Performance, out: Path, *, preset: str, command: str
) -> Path:
    """Draw the figures, write `report.md` into `out` and return its path. `command` is what reproduces everything."""
    study, rows = loaded.study, [verdict.as_dict(loaded.name) for verdict in judged]
    seeds = [found.seed for found in done.found]
    parts = [
        f"# {study.title}",
        f"{study.paper}. Preset `{preset}`, {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}; "
        f"**{tally(rows)}**.",
        f"```console\n{command}\n```",
        f"## What was trained\n\n{study.trained.strip()}",
        markdown_table(["run", "model", "task", "settings", ""], _run_rows(study, preset)),
        f"## What the paper claims\n\n{study.claimed.strip()}",
        "## Claims\n\nEvery number is computed from the saved checkpoints; ✗ marks what misses its threshold.",
        markdown_table(claim_columns(rows), claim_rows(rows)),
        *_notes(done),
        *_figures(study, done.found, out),
        *_tables(study, done.found),
    ]
    path = out / REPORT_FILE
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return path


def _run_rows(study: Study, preset: str) -> Iterator[list[str]]:
    for name, run in study.runs.items():
        settings = run.chosen(preset)
        if settings is not None:
            yield [f"`{name}`", run.family, run.task, _settings(settings), _about(run)]


def _settings(settings: dict[str, Any]) -> str:
    return "<br>".join(f"`{key}={_text(value)}`" for key, value in settings.items()) or "defaults of the task"


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _about(run: Run) -> str:
    reads = f"text: `--data {run.data}=FILE`" if run.data else ""
    return "; ".join(part for part in (run.about, reads) if part)


def _notes(done: Performance) -> Iterator[str]:
    lines = [f"- Run `{run}` was left out: it {reason}." for run, reason in done.skipped.items()]
    lines += [f"- {where}: {reason}" for where, reason in done.failed.items()]
    if lines:
        yield "\n".join(lines)


def _complete(needs: Sequence[str], found: Sequence[Found]) -> bool:
    return all(run in one for one in found for run in needs)


def _figures(study: Study, found: Sequence[Found], out: Path) -> Iterator[str]:
    drawn: list[Figure] = [f for f in study.figures if _complete(f.needs or _runs(study, found), found)]
    told = study.shown
    shown = told if isinstance(told, str) else _unless_missing("What they show", told, found)
    if drawn or shown:
        yield f"## What the figures show\n\n{shown.strip()}".strip()
    for figure in drawn:
        yield _unless_missing(f"Figure `{figure.name}`", _picture, figure, found, out)


def _picture(figure: Figure, found: Sequence[Found], out: Path) -> str:
    path = draw(figure, found, out / "figures")
    return f"![{figure.name}](figures/{path.name})\n\n*{figure.caption}*"


def _tables(study: Study, found: Sequence[Found]) -> Iterator[str]:
    drawn: list[Table] = [t for t in study.tables if _complete(t.needs or _runs(study, found), found)]
    for table in drawn:
        yield f"## {table.title}\n\n{_unless_missing('The table', _cells, table, found)}"


def _cells(table: Table, found: Sequence[Found]) -> str:
    return markdown_table(table.columns, table.rows(found))


def _unless_missing(what: str, make: Callable[..., str], *arguments: Any) -> str:
    """Return what a study makes of its results, or why it was left out."""
    try:
        return make(*arguments)
    except Missing as error:
        return f"{what} was left out: {error}"


def _runs(study: Study, found: Sequence[Found]) -> list[str]:
    """Return the runs that a figure without `needs` is about: all that no data is wanting for."""
    return [name for name, run in study.runs.items() if not run.data]
