"""The report of a study: Markdown that reads as a story, with its figures beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .declare import Claim, Figure, Run, Study, Table
from .draw import draw
from .found import Found
from .judge import Verdict, tally
from .load import Loaded
from .perform import Performance

REPORT_FILE = "report.md"


def number(value: Any) -> str:
    """Return four significant digits of a number, a dash for None, texts as they are."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *([number(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict_rows(judged: Sequence[Verdict], seeds: Sequence[int]) -> Iterator[list[str]]:
    """Yield a row for each claim: its name, threshold, number for each seed or for all, and whether it holds."""
    for claim in dict.fromkeys(v.claim for v in judged):
        mine = {v.seed: v for v in judged if v.claim is claim}
        cells = ["" if seed not in mine else _cell(mine[seed]) for seed in seeds]
        limit = f"{claim.direction} {claim.threshold:g}"
        yield [claim_name(claim), limit, *cells, _cell(mine.get(None)), _holds(mine.values())]


def verdict_columns(seeds: Sequence[int]) -> list[str]:
    """Return the heads of the columns of `verdict_rows`."""
    return ["claim", "threshold", *(f"seed {seed}" for seed in seeds), "over seeds", "holds"]


def claim_name(claim: Claim) -> str:
    """Return a claim's name, negative controls marked."""
    return f"{claim.name} (control)" if claim.control else claim.name


def _cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    mark = " ✗" if verdict.holds is False else ""
    return f"{number(verdict.measured)}{mark}"


def _holds(mine: Iterable[Verdict]) -> str:
    found = list(mine)
    if any(v.holds is None for v in found):
        return "not measured"
    held = sum(bool(v.holds) for v in found)
    return "yes" if held == len(found) else "**no**" if not held else f"**{held} of {len(found)}**"


def write_report(
    loaded: Loaded, judged: Sequence[Verdict], done: Performance, out: Path, *, preset: str, command: str
) -> Path:
    """Draw the figures, write `report.md` into `out` and return its path. `command` is what reproduces everything."""
    study = loaded.study
    seeds = [found.seed for found in done.found]
    parts = [
        f"# {study.title}",
        f"{study.paper}. Preset `{preset}`, {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}; "
        f"**{tally(judged)}**.",
        f"```console\n{command}\n```",
        f"## What was trained\n\n{study.trained.strip()}",
        markdown_table(["run", "model", "task", "settings", ""], _run_rows(study, preset)),
        f"## What the paper claims\n\n{study.claimed.strip()}",
        "## Claims\n\nEvery number is computed from the saved checkpoints; ✗ marks what misses its threshold.",
        markdown_table(verdict_columns(seeds), verdict_rows(judged, seeds)),
        *_notes(judged, done),
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
            yield [f"`{name}`", run.family, run.task, _settings(settings), run.about + _data(run)]


def _settings(settings: dict[str, Any]) -> str:
    return "<br>".join(f"`{key}={_text(value)}`" for key, value in settings.items()) or "defaults of the task"


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _data(run: Run) -> str:
    return f" Text: `--data {run.data}=FILE`." if run.data else ""


def _notes(judged: Sequence[Verdict], done: Performance) -> Iterator[str]:
    lines = [f"- Run `{run}` was left out: it {reason}." for run, reason in done.skipped.items()]
    lines += [f"- {where}: {reason}" for where, reason in done.failed.items()]
    reasons = dict.fromkeys(f"{v.claim.name}: {v.reason}" for v in judged if v.reason)
    lines += [f"- Not measured: {reason}." for reason in reasons]
    if lines:
        yield "\n".join(lines)


def _complete(needs: Sequence[str], found: Sequence[Found]) -> bool:
    return all(run in one for one in found for run in needs)


def _figures(study: Study, found: Sequence[Found], out: Path) -> Iterator[str]:
    drawn: list[Figure] = [f for f in study.figures if _complete(f.needs or _runs(study, found), found)]
    shown = study.shown if isinstance(study.shown, str) else study.shown(found)
    if drawn or shown:
        yield f"## What the figures show\n\n{shown.strip()}".strip()
    for figure in drawn:
        path = draw(figure, found, out / "figures")
        yield f"![{figure.name}](figures/{path.name})\n\n*{figure.caption}*"


def _tables(study: Study, found: Sequence[Found]) -> Iterator[str]:
    drawn: list[Table] = [t for t in study.tables if _complete(t.needs or _runs(study, found), found)]
    for table in drawn:
        yield f"## {table.title}\n\n{markdown_table(table.columns, table.rows(found))}"


def _runs(study: Study, found: Sequence[Found]) -> list[str]:
    """Return the runs that a figure without `needs` is about: all that no data is wanting for."""
    return [name for name, run in study.runs.items() if not run.data]
