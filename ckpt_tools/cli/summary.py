"""What an analyzer says of the whole trajectory, for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .tables import ONE_STEP_COLUMNS, at_one_step, facts, number

if TYPE_CHECKING:
    from rich.console import Console

    from ..results.choose import Chosen


def print_summary(console: Console, one: Chosen) -> None:
    """Print facts about the trajectory: those of each matrix side by side in tables, the others line by line."""
    summary = dict(one.group.attrs.get("summary") or {})
    shown = {label for v in one.variables for dim in v.dims[1:] for label in one.labels(dim)}
    tables: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    rest = dict(_apart(summary))
    for key, value in list(rest.items()):
        if isinstance(value, dict) and value and not any(isinstance(x, dict | list) for x in value.values()):
            rows = [name for name in value if name in shown] or list(value)
            tables.setdefault(tuple(rows), {})[key] = rest.pop(key)
    if rest:
        console.print()
        console.print(f"Summary of {one.group.name}")
        facts(console, ((f"  {key}", _fact(value)) for key, value in rest.items()))
    for names, columns in tables.items():
        for at in range(0, len(columns), ONE_STEP_COLUMNS):
            console.print()
            part = list(columns)[at : at + ONE_STEP_COLUMNS]
            values = {key: [columns[key][name] for name in names] for key in part}
            at_one_step(console, f"Summary of {one.group.name}", names, values)


def _apart(summary: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield facts by name, those of several sides or splits one by one: `onset_step input`."""
    for key, value in summary.items():
        if isinstance(value, dict) and value and all(isinstance(part, dict | list) for part in value.values()):
            yield from ((f"{key} {name}", part) for name, part in value.items())
        else:
            yield key, value


def _fact(value: Any) -> str:
    if value is None or isinstance(value, float):
        return number(value)
    if isinstance(value, list) and not any(isinstance(item, list) for item in value):
        parts = (" ".join(map(_fact, item.values())) if isinstance(item, dict) else _fact(item) for item in value)
        return ", ".join(parts) or "none"
    return value if isinstance(value, str) else json.dumps(_short(value), ensure_ascii=False)


def _short(value: Any) -> Any:
    """Return plain data with four significant digits."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
