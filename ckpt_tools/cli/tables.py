"""Results as tables for a terminal: numbers in columns, a sparkline per series.

Labels are a stranger's text (tensor names), so control characters are escaped and nothing is read as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..results.names import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.-=+*#@"
MOST_ROWS = 100
ONE_STEP_COLUMNS = 4
"""Outputs side by side in a table of one checkpoint."""
_FLAT = 1e-12
_LONG_HEAD = 10


def number(value: Any) -> str:
    """Return four significant digits of a float, integers in full, texts escaped, a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return printable(value)
    return str(int(value)) if isinstance(value, int | np.integer) else f"{value:.4g}"


def sparkline(values: NDArray[Any], width: int, blocks: str = BLOCKS) -> str:
    """Return a series as at most `width` characters from its minimum to its maximum, blank where nothing is finite.

    Longer series are averaged over equal stretches; one that never moves is drawn at half height.
    """
    finite = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    parts = np.array_split(finite, min(width, len(finite))) if len(finite) else []
    means = np.array([part[~np.isnan(part)].mean() if not np.isnan(part).all() else np.nan for part in parts])
    if np.isnan(means).all():
        return " " * len(means)
    low, high = np.nanmin(means), np.nanmax(means)
    if high - low <= _FLAT * max(abs(low), abs(high)):
        levels = np.where(np.isnan(means), np.nan, (len(blocks) - 1) // 2)
    else:
        levels = np.rint((means - low) / (high - low) * (len(blocks) - 1))
    return "".join(" " if np.isnan(level) else blocks[int(level)] for level in levels)


def over_steps(console: Console, title: str, names: Sequence[str], series: Sequence[NDArray[Any]]) -> None:
    """Print one row per series, each `[step]`: first, last, min, max and a sparkline; of texts first and last."""
    text, blocks = len(series) > 0 and series[0].dtype.kind == "U", _blocks(console)
    table = _table(console, names, ["first", "last"] if text else ["first", "last", "min", "max"])
    if not text:
        table.add_column("over steps", no_wrap=True)
    width = 16 if console.width < 100 else 32
    for name, values in _shown(names, series):
        cells = [number(values[0]), number(values[-1])]
        if not text:
            cells += [*map(number, _range(values)), sparkline(values, width, blocks)]
        _add(table, name, cells)
    _print(console, title, table, len(names))


def at_one_step(console: Console, title: str, names: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> None:
    """Print one row per name and one column per output, each `[row]`, of a single checkpoint."""
    table = _table(console, names, [_broken(name) for name in columns])
    for name, values in _shown(names, list(zip(*columns.values(), strict=True))):
        _add(table, name, [number(value) for value in values])
    _print(console, title, table, len(names))


def _shown(names: Sequence[str], rows: Any) -> Iterable[tuple[str, Any]]:
    return zip(names[:MOST_ROWS], rows[:MOST_ROWS], strict=True)


def _blocks(console: Console) -> str:
    return ASCII_BLOCKS if console.options.ascii_only else BLOCKS


def _range(values: NDArray[Any]) -> tuple[Any, Any]:
    known = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    return (known.min(), known.max()) if known.size else (np.nan, np.nan)


def _broken(name: str) -> str:
    """Return a long name broken after underscores, to head a column of numbers."""
    return name.replace("_", "_\n") if len(name) > _LONG_HEAD else name


def _table(console: Console, names: Sequence[str], columns: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    longest = max(map(len, names[:MOST_ROWS]), default=0)
    table.add_column("", overflow="fold", min_width=min(longest, console.width // 3))
    for column in columns:
        table.add_column(Text(column), justify="right", overflow="fold")
    return table


def _add(table: Table, name: str, cells: Sequence[str]) -> None:
    from rich.text import Text

    table.add_row(Text(name), *(Text(cell) for cell in cells))


def _print(console: Console, title: str, table: Table, rows: int) -> None:
    from rich.text import Text

    console.print(Text(title, style="bold"))
    console.print(table)
    if rows > MOST_ROWS:
        console.print(f"{rows - MOST_ROWS} more rows; --matrices GLOB narrows the choice, --json prints all.")


def facts(console: Console, pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and texts in two columns, long texts wrapped."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in pairs:
        grid.add_row(Text(printable(name), style="dim"), Text(printable(text)))
    console.print(grid)
