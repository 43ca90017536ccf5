"""Which charts a group of results has: by the dimensions of its outputs alone, and what its analyzer asks for first.

A chart is data for the page's script: where the numbers are, what their dimensions are called, and in which views they
can be drawn. Views of an output `[step, *dims]`: `lines` over steps, `stepmap`, a heat map of the same, `map`, the last
two dimensions at one step, `profile` over a numbered last dimension at one step, and `bars` at one step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..results.reader import ResultGroup, Variable
from .blocks import Blocks
from .part import entries, mapping
from .tags import shown
from .thin import Thinned, shares, thinned

MAIN_CHARTS = 4
"""Outputs shown unfolded where the analyzer does not say which."""
_LOG_DECADES = 1e3
_VIEW_OF = {
    "curves": "lines",
    "heatmap": "stepmap",
    "map": "map",
    "landscape": "map",
    "profile": "profile",
    "scatter": "lines",
}


@dataclass
class Charts:
    """Charts of one group: `main` first, `others` folded away; the other lists name what is not drawn."""

    main: list[dict[str, Any]] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)
    texts: list[Variable] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    too_large: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)


def numbers(variable: Variable) -> NDArray[np.float32]:
    """Return an output as float32 `[step, cell]`, cells without a value NaN."""
    values = variable.read()
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    if values.dtype.kind == "i" and "padding" in variable.attrs:
        found[values == variable.attrs["padding"]] = np.nan
    return found.reshape(len(found), prod(found.shape[1:]))


def drawable(variable: Variable, group: ResultGroup) -> bool:
    """Whether an output is numbers of its own along steps, neither texts nor the error of another output."""
    of = group.variables.get(variable.error_of)
    is_error = of is not None and of.shape == variable.shape
    return not variable.is_text and not is_error and variable.dims[:1] == ("step",)


def wanted(group: ResultGroup) -> Iterator[int]:
    """Yield how many values each drawable output has."""
    yield from (prod(v.shape) for v in group.variables.values() if drawable(v, group))


def charts_of(group: ResultGroup, where: int, blocks: Blocks, most: int) -> Charts:
    """Return the charts of a group of file number `where`, each output thinned to about `most` values."""
    found, figures = Charts(), _figures(group)
    errors = {v.error_of: v for v in group.variables.values() if v.error_of}
    steps = blocks.add(group.steps, "f8")
    ready: dict[str, dict[str, Any]] = {}
    for variable in group.variables.values():
        if variable.is_text:
            found.texts.append(variable)
        elif variable.dims[:1] != ("step",):
            found.elsewhere.append(variable.name)
        elif drawable(variable, group):
            chart = _chart(variable, errors.get(variable.name), _views(variable, group), blocks, most, found)
            if chart:
                labels = [_labels(group.labels[dim]) for dim in variable.dims[1:]]
                ready[variable.name] = {"file": where, "group": group.name, "steps": steps, "labels": labels, **chart}
    for name, figure in figures.items():
        if name in ready:
            ready[name] |= _asked(figure, ready[name]) | _against(figure, ready[name], ready)
    main = [name for name in figures if name in ready] or _telling(group, ready)[:MAIN_CHARTS]
    found.main = [ready[name] for name in main]
    found.others = [chart for name, chart in ready.items() if name not in main]
    return found


def _figures(group: ResultGroup) -> dict[str, Mapping[str, Any]]:
    """Return the figures an analyzer asks for, by output; what is not as declared counts as absent."""
    first: dict[str, Mapping[str, Any]] = {}
    for figure in entries(group.attrs.get("figures")):
        first.setdefault(str(figure.get("output")), figure)
    return first


def _telling(group: ResultGroup, ready: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return outputs in the order in which they say most: what varies first, counts after measures."""

    def dull(name: str) -> tuple[bool, bool]:
        chart = ready[name]
        return chart["low"] == chart["high"], group[name].is_count

    return sorted(ready, key=dull)


def _asked(figure: Mapping[str, Any], chart: Mapping[str, Any]) -> dict[str, Any]:
    """Return the view, the cell and the scales an analyzer asks for, as far as the chart has them."""
    asked: dict[str, Any] = {}
    view = _VIEW_OF.get(str(figure.get("kind")))
    if view in chart["views"]:
        asked["views"] = [view, *(v for v in chart["views"] if v != view)]
    asked["at"] = {dim: shown(label) for dim, label in mapping(figure.get("at")).items() if dim in chart["dims"]}
    log = str(figure.get("log") or "")
    if "x" in log:
        asked["logX"] = True
    asked["logY"] = "y" in log and chart["total"] > 1
    if figure.get("lines") in chart["dims"]:
        asked["lines"] = figure["lines"]
    elif view == "stepmap" and chart["dims"]:
        asked["lines"] = chart["dims"][-1]
    return asked


def _against(
    figure: Mapping[str, Any], chart: Mapping[str, Any], ready: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the output of the same dimensions that a scatter chart has across, with that view put first."""
    other = ready.get(str(figure.get("against")))
    if other is None or any(other[key] != chart[key] for key in ("dims", "shape", "byCell", "total")):
        return {}
    across = {key: other[key] for key in ("output", "name", "unit", "low", "high", "values", "index")}
    return {"against": across, "views": ["scatter", *chart["views"]], "lines": None}


def _chart(
    variable: Variable, error: Variable | None, views: list[str], blocks: Blocks, most: int, found: Charts
) -> dict[str, Any] | None:
    values = numbers(variable)
    finite = values[np.isfinite(values)]
    if not finite.size:
        found.empty.append(variable.name)
        return None
    kept = thinned(values, most, curves=len(variable.dims) <= 2)
    if kept is None:
        found.too_large.append(f"{variable.name} ({values.shape[1]:,} numbers per step)")
        return None
    low, high = float(finite.min()), float(finite.max())
    return {
        "output": variable.name,
        "name": shown(variable.long_name or variable.name.replace("_", " ")),
        "unit": "" if variable.unit == "1" else shown(variable.unit),
        "dims": [shown(dim) for dim in variable.dims[1:]],
        "shape": list(variable.shape[1:]),
        "total": len(values),
        "low": low,
        "high": high,
        "values": blocks.add(kept.values, "f4"),
        "index": blocks.add_index(kept.index) if kept.values.shape != values.shape else None,
        "byCell": kept.by_cell,
        "error": blocks.add(_same(numbers(error), kept), "f4") if error and error.shape == variable.shape else None,
        "views": views,
        "logY": low > 0 and high / low > _LOG_DECADES,
        "at": {},
    }


def _same(errors: NDArray[np.float32], kept: Thinned) -> NDArray[np.float32]:
    """Return the errors of the values that were kept."""
    return np.take_along_axis(errors, kept.index.T, axis=0).T if kept.by_cell else errors[kept.index]


def _views(variable: Variable, group: ResultGroup) -> list[str]:
    """Return in which ways an output can be drawn, the clearest first."""
    dims, steps = variable.dims[1:], len(group.steps)
    views = ["lines"] if steps > 1 else []
    if len(dims) >= 2 and min(variable.shape[-2:]) > 1:
        views.append("map")
    if dims and steps > 1:
        views.append("stepmap")
    if dims and variable.shape[-1] > 2 and not isinstance(group.labels[dims[-1]], list):
        views.append("profile")
    if (len(dims) <= 1 and (dims or steps == 1)) or not views:
        views.append("bars")
    return views


def _labels(labels: Any) -> list[Any]:
    """Return the labels of a dimension: texts made visible, numbers as they are."""
    items: Sequence[Any] = labels if isinstance(labels, list) else labels.tolist()
    return [
        item if isinstance(item, int) or (isinstance(item, float) and isfinite(item)) else shown(item) for item in items
    ]


def budgets(groups: Sequence[ResultGroup], budget: int) -> int:
    """Return how many values each output may keep for all of them together to stay within `budget`."""
    sizes = [size for group in groups for size in wanted(group)]
    return max(shares(sizes, budget), default=0)


def log_steps(steps: NDArray[np.int64]) -> bool:
    """Whether checkpoints are so much denser at the start that a logarithmic axis shows more of them."""
    if len(steps) < 8 or steps[0] < 0:
        return False
    early = max(1, len(steps) // 10)
    return bool(4 * (steps[early] - steps[0]) / early < (steps[-1] - steps[0]) / (len(steps) - 1))
