"""Write the table of goals in docs/performance.md from what the benchmarks left as JSON.

    python benchmarks/table.py benchmarks/results docs/performance.md

The table stands between two marks; what is around it stays.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- goals: begin -->", "<!-- goals: end -->"
TITLE = """# Performance

Ours beside what people use, measured by `make bench`: both sides take turns in one run, on one thread, and the median
of paired ratios counts. Each line is one goal; `benchmarks/NAME.py` says what is measured, and runs alone.

"""


def number(value: float) -> str:
    """Return three significant digits."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def rows(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    """Yield table lines of a benchmark."""
    for goal in found["goals"]:
        asked = f"{goal['sign']} {number(goal['goal'])}{goal['unit']}"
        verdict = "holds" if goal["holds"] else "**misses**"
        yield f"| `{name}` | {goal['what']} | {asked} | {number(goal['measured'])}{goal['unit']} | {verdict} |"


def machines(files: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield what the numbers were measured on, once each, and the versions of packages."""
    said, versions = [], {}
    for found in files.values():
        machine = found["machine"]
        said.append(f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}")
        versions |= machine["versions"]
    yield from (f"Machine: {line}." for line in dict.fromkeys(said))
    if versions:
        yield f"Versions: {', '.join(f'{name} {version}' for name, version in sorted(versions.items()))}."


def table(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the part between the marks."""
    head = ["| benchmark | what | goal | measured | |", "|---|---|---|---|---|"]
    lines = [*head, *(row for name, found in files.items() for row in rows(name, found)), "", *machines(files)]
    return "\n".join([BEGIN, *lines, END])


def main(results: Path, page: Path) -> None:
    """Replace the table of the page, or begin the page."""
    files = {file.stem: json.loads(file.read_text()) for file in sorted(results.glob("*.json"))}
    text = page.read_text() if page.is_file() else f"{TITLE}{BEGIN}\n{END}\n"
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(before + table(files) + after)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
