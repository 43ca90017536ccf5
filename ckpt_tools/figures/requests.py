"""Which figures to draw: those asked for, else those that analyzers declare, else what dimensions suggest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..analyzer import FIGURES, PAIRED, Figure
from ..errors import OptionError
from ..results.choose import Chosen, select
from ..results.reader import ResultGroup, Results, Variable
from .data import Data, layer_of

MOST_UNDECLARED = 6
_FEW = 8
_FIELDS = {field.name for field in fields(Figure)}


def requests(
    found: Results, what: Sequence[str], matrices: Sequence[str], kind: str, lines: str
) -> Iterator[tuple[Chosen, Variable, Figure, bool]]:
    """Yield each figure, what it shows, and whether an analyzer declares it; ResultsError for unknown names."""
    if kind not in FIGURES or kind in PAIRED:
        known = ", ".join(k for k in FIGURES if k and k not in PAIRED)
        raise OptionError(f"There is no kind of figure {kind!r}; expected {known}.")
    chosen = select(found, what, matrices, everything=True)
    for one in chosen:
        if one.group is found.trajectory and not what:
            continue
        by_name = one.group.name in what or not what
        declared = [f for f in declared_figures(one.group) if any(v.name == f.output for v in one.variables)]
        if by_name and not kind:
            wanted = declared or [Figure(v.name) for v in _plain(one)[:MOST_UNDECLARED]]
        else:
            wanted = [Figure(v.name, kind, lines) for v in _plain(one)] if kind or lines else _asked(one, declared)  # type: ignore[arg-type]
        for figure in wanted:
            yield one, one.group.variables[figure.output], figure, figure in declared


def _asked(one: Chosen, declared: Sequence[Figure]) -> list[Figure]:
    """Return the declared figures of outputs that were named, a plain one for those that have none."""
    found = []
    for variable in one.variables:
        own = [figure for figure in declared if figure.output == variable.name]
        found += own or [Figure(variable.name)]
    return found


def _plain(one: Chosen) -> list[Variable]:
    return [v for v in one.variables if not v.is_text and not v.error_of]


def declared_figures(group: ResultGroup) -> list[Figure]:
    """Return the figures a results file declares for an analyzer, those it cannot hold left out."""
    found = group.attrs.get("figures") or []
    return [Figure(**one) for one in found if isinstance(one, Mapping) and _fits(group, one)]


def _fits(group: ResultGroup, one: Mapping[str, Any]) -> bool:
    variable = group.variables.get(str(one.get("output")))
    if not set(one) <= _FIELDS or variable is None or one.get("kind", "") not in FIGURES:
        return False
    against = one.get("against", "")
    return not against or against in group.variables


def kind_of(data: Data) -> str:
    """Return the kind of figure that dimensions suggest.

    A few labels or matrices by layer are curves, a longer numbered dimension a heat map over steps, behind texts (the
    singular values of each matrix) a profile; two last dimensions with the same labels are a map.
    """
    if not data.dims:
        return "curves"
    last = data.of(data.dims[-1])
    if len(data.dims) > 1 and last == data.of(data.dims[-2]) and len(last) > 1:
        return "map"
    texts = bool(last) and isinstance(last[0], str)
    if texts:
        return "curves" if len(last) <= _FEW or any(map(layer_of, last)) else "heatmap"
    if any(data.of(d) and isinstance(data.of(d)[0], str) for d in data.dims[:-1]):
        return "profile" if len(last) > 1 else "curves"
    return "curves" if len(last) <= _FEW else "heatmap"
