"""A report: everything in some results files as one page that needs no server and no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ResultsError
from ..results.reader import ResultGroup, Results, read_results
from .blocks import Blocks
from .charts import Charts, budgets, charts_of, drawable, log_steps
from .overview import closing, overview
from .page import page
from .part import Part
from .sections import section
from .tags import Html, details, joined, shown, tag
from .timeline import Lane, lanes

MEGABYTES = 24
"""About how large a report may become."""
MOST_BESIDE = 6
"""Charts of several files that are shown unfolded."""
# A value takes four bytes, its step two, an error four; base64 makes four characters of three bytes.
_BYTES_PER_VALUE = 8 * 4 / 3


def build_report(paths: Sequence[str | Path], *, megabytes: float = MEGABYTES) -> str:
    """Return the report of some results files as HTML; the same files give the same text.

    Long series are thinned until the page takes about `megabytes`. Raises ResultsError for what is no results file,
    and when no file or one file twice is named.
    """
    _require(paths)
    with ExitStack() as stack:
        parts = [Part.of(i, stack.enter_context(read_results(path))) for i, path in enumerate(paths)]
        return _Builder(parts, int(megabytes * 1e6 / _BYTES_PER_VALUE)).page()


def _require(paths: Sequence[str | Path]) -> None:
    if not paths:
        raise ResultsError("No results file is named. Results are what `ckpt analyze ... -o results.h5` writes.")
    seen: set[Path] = set()
    for path in map(Path, paths):
        if path.resolve() in seen:
            raise ResultsError(f"{path} is named twice; name each results file once.")
        seen.add(path.resolve())


class _Builder:
    """Collects charts and their numbers while sections are made."""

    def __init__(self, parts: Sequence[Part], values: int) -> None:
        self.parts, self.blocks = parts, Blocks()
        self.charts: list[dict[str, Any]] = []
        self.most = budgets([group for part in parts for group in part.results.groups.values()], values)

    def page(self) -> str:
        """Return the whole page."""
        several = len(self.parts) > 1
        body = [self._part(part, several) for part in self.parts]
        beside = self._side_by_side() if several else None
        files = [_facts(part) for part in self.parts]
        title = f"Report of {', '.join(_title(part.results) for part in self.parts)}"
        return page(title, joined(beside, *body), {"files": files, "charts": self.charts}, self.blocks)

    def _add(self, charts: Sequence[dict[str, Any]]) -> int:
        """Take charts and return the number of the first."""
        self.charts.extend(charts)
        return len(self.charts) - len(charts)

    def _part(self, part: Part, several: bool) -> Html:
        results = part.results
        rows = [lane for group in results.groups.values() for lane in lanes(group)]
        logged = results.trajectory.variables if results.trajectory else {}
        rows.sort(key=lambda lane: 2 if not lane.segments else lane.name not in logged)
        name = f"f{part.number}"
        return tag(
            "article",
            tag("h1", _title(results), id=name) if several else None,
            overview(part, rows, self._timeline(part, rows)),
            *(self._section(part, group) for group in results.groups.values()),
            closing(part),
        )

    def _section(self, part: Part, group: ResultGroup) -> Html:
        charts: Charts = charts_of(group, part.number, self.blocks, self.most)
        return section(part, group, charts, self._add([*charts.main, *charts.others]))

    def _timeline(self, part: Part, rows: Sequence[Lane]) -> Html | None:
        """Return the place of the timeline: logged metrics above, segments and events below."""
        trajectory = part.results.trajectory
        if trajectory is None or len(trajectory.steps) < 2:
            return None
        metrics = charts_of(trajectory, part.number, self.blocks, self.most)
        chart = {
            "timeline": [_lane(row) for row in rows],
            "file": part.number,
            "metrics": metrics.main + metrics.others,
        }
        chart["span"] = [int(trajectory.steps[0]), int(trajectory.steps[-1])]
        return tag("figure", data_chart=str(self._add([chart])), cls="chart timeline")

    def _side_by_side(self) -> Html:
        """Return places of charts with one curve per file, of numbers that at least two files have."""
        found: dict[tuple[str, str], list[tuple[int, ResultGroup]]] = {}
        for part in self.parts:
            for group in _groups(part.results):
                for variable in group.variables.values():
                    if len(variable.dims) == 1 and drawable(variable, group) and len(group.steps) > 1:
                        found.setdefault((group.name, variable.name), []).append((part.number, group))
        shared = {key: where for key, where in found.items() if len(where) > 1}
        places = [
            tag("figure", data_chart=str(self._add([self._beside(name, where)])), cls="chart")
            for (_, name), where in shared.items()
        ]
        return joined(self._contents(), self._unfolded(places))

    def _contents(self) -> Html:
        """Return links to the files."""
        links = [tag("li", tag("a", _title(part.results), href=f"#f{part.number}")) for part in self.parts]
        return joined(tag("h1", f"{len(links)} results files"), tag("ol", *links))

    def _unfolded(self, places: Sequence[Html]) -> Html | None:
        """Return the first charts side by side, the others folded away."""
        if not places:
            return None
        more = places[MOST_BESIDE:]
        folded = details(f"{len(more)} more", tag("div", *more, cls="charts")) if more else None
        return joined(tag("h2", "Side by side"), tag("div", *places[:MOST_BESIDE], cls="charts"), folded)

    def _beside(self, name: str, where: Sequence[tuple[int, ResultGroup]]) -> dict[str, Any]:
        charts = []
        for number, group in where:
            made = charts_of(_only(group, name), number, self.blocks, self.most).main
            charts += [{**chart, "label": f"{number + 1} {_title(self.parts[number].results)}"} for chart in made]
        return {"beside": charts, "file": where[0][0]}


def _only(group: ResultGroup, name: str) -> ResultGroup:
    return ResultGroup(group.name, {}, group.labels, {name: group.variables[name]})


def _groups(results: Results) -> Iterator[ResultGroup]:
    if results.trajectory is not None:
        yield results.trajectory
    yield from results.groups.values()


def _title(results: Results) -> str:
    """Return a short name: that of the source, and of the results file."""
    source = str(results.attrs.get("source") or "").rstrip("/").rpartition("/")[2]
    return shown(f"{source} ({results.path.name})" if source else results.path.name)


def _lane(lane: Lane) -> dict[str, Any]:
    items = [[e.step, e.stop, e.name, e.text] for e in lane.events]
    return {"group": shown(lane.group), "name": shown(lane.name), "segments": lane.segments, "items": items}


def _facts(part: Part) -> dict[str, Any]:
    groups = part.results.groups.values()
    steps = np.unique(np.concatenate([np.zeros(0, np.int64), *(group.steps for group in groups)]))
    return {"name": _title(part.results), "logX": log_steps(steps), "steps": len(steps)}
