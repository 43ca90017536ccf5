"""A results file as a piece of HTML for notebooks: a table of its main outputs with a small curve of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .choose import Chosen, select
from .names import printable, row_names
from .reader import Variable, read_results

MOST_ROWS = 20
_WIDTH, _HEIGHT, _POINTS = 120, 18, 120


def results_html(path: Path, heading: str) -> str:
    """Return HTML with the main outputs of every analyzer: first, last, and a curve over steps.

    Raises ResultsError when the file cannot be read.
    """
    with read_results(path) as found:
        parts = [f"<p>{escape(heading)}</p>"]
        for chosen in select(found, (), ()):
            if chosen.group is not found.trajectory:
                parts += list(_tables(chosen))
        return f'<div class="ckpt-results">{"".join(parts)}</div>'


def _tables(chosen: Chosen) -> Iterator[str]:
    for variable in chosen.variables:
        if variable.is_text:
            continue
        unit = "" if variable.unit == "1" else f" [{escape(variable.unit)}]"
        title = f"{chosen.group.name}.{variable.name}{unit}"
        rows = list(_rows(chosen, variable))
        more = f"<tr><td colspan=4>{len(rows) - MOST_ROWS} more rows</td></tr>" if len(rows) > MOST_ROWS else ""
        heads = "".join(f"<th>{head}</th>" for head in ("", "first", "last", "over steps"))
        yield (
            f'<table><caption style="text-align:left"><b>{title}</b> {escape(variable.long_name)}</caption>'
            f"<tr>{heads}</tr>{''.join(rows[:MOST_ROWS])}{more}</table>"
        )
    if chosen.others:
        yield f"<p>Also in {escape(chosen.group.name)}: {escape(', '.join(chosen.others))}.</p>"


def _rows(chosen: Chosen, variable: Variable) -> Iterator[str]:
    dims = variable.dims[1:]
    names = row_names(dims, [chosen.labels(d) for d in dims]) if dims else [variable.name]
    values = np.asarray(chosen.values(variable), dtype=np.float64).reshape(len(chosen.group.steps), len(names))
    for i, name in enumerate(names):
        first, last = (f"{values[at, i]:.4g}" for at in (0, -1))
        curve = sparkline(chosen.group.steps, values[:, i])
        cells = "".join(f"<td>{cell}</td>" for cell in (first, last, curve))
        yield f'<tr><th style="text-align:left">{escape(printable(name))}</th>{cells}</tr>'


def sparkline(steps: NDArray[Any], values: NDArray[np.float64]) -> str:
    """Return a curve as inline SVG, from its lowest to its highest value; empty when fewer than two are finite."""
    known = np.isfinite(values)
    x, y = steps[known].astype(np.float64), values[known]
    if len(x) < 2:
        return ""
    at = np.unique(np.linspace(0, len(x) - 1, _POINTS).round().astype(int))
    across = _WIDTH * (x[at] - x[0]) / (x[-1] - x[0])
    span = float(np.ptp(y))
    up = 1 + (_HEIGHT - 2) * (1 - (y[at] - y.min()) / span) if span > 0 else np.full(len(at), _HEIGHT / 2)
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{_told(y)}"><polyline fill="none" '
        f'stroke="currentColor" points="{_points(across, up)}"/></svg>'
    )


def _points(across: Sequence[float] | NDArray[Any], up: NDArray[Any]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, up, strict=True))


def _told(y: NDArray[np.float64]) -> str:
    return f"from {y[0]:.4g} to {y[-1]:.4g}, between {y.min():.4g} and {y.max():.4g}"
