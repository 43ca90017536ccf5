"""Curves over steps, profiles over another dimension with a line for each step, and dots for a single checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .canvas import MOST_PANELS, STEP, Line, Logs, Panel, draw, finish_values, grid, label_outer, legend, step_axis
from .data import Data, by_role, called, layer_of
from .style import PALETTE, Scale, categorical, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = 8
_MOST_STEPS = 60

Sheet = tuple[list[Panel], Scale | None]


def lines_dim(data: Data, wanted: str = "") -> str:
    """Return the dimension whose labels are told apart by colour: the wanted one, else one of texts, else the last."""
    if wanted in data.dims:
        return wanted
    texts = [d for d in data.dims if len(data.of(d)) and isinstance(data.of(d)[0], str)]
    return texts[0] if texts else data.dims[-1] if data.dims else ""


def curves(data: Data, lines: str = "") -> Sheet:
    """Return panels of one file: few labels as colours; many as a panel for each role, layers on a colour scale."""
    dim = lines_dim(data, lines)
    if not dim:
        return [Panel("", [_line("", data, PALETTE[0])])], None
    labels = data.of(dim)
    kept = [i for i in range(len(labels)) if not data.take(dim, [i]).empty]
    data = data.take(dim, kept)
    roles = by_role(data.of(dim))
    if len(kept) <= MOST_LINES:
        return _by_colour(data, dim), None
    if isinstance(labels[0], str):
        return _by_layer(data, dim, roles)
    return _by_number(data, dim)


def _by_colour(data: Data, dim: str) -> list[Panel]:
    looks = dict(zip(data.of(dim), categorical(len(data.of(dim))), strict=True))
    return [
        Panel(title, [_line(called(dim, label), part.at(dim, label), *looks[label]) for label in part.of(dim)])
        for title, part in data.panels([dim])
    ]


def _by_number(data: Data, dim: str) -> Sheet:
    labels = [float(label) for label in data.of(dim)]
    scale = Scale(labels, dim.replace("_", " "))
    return [
        Panel(title, [_line("", part.at(dim, label), scale(float(label))) for label in part.of(dim)])
        for title, part in data.panels([dim])
    ], scale


def _by_layer(data: Data, dim: str, roles: dict[str, list[int]], inner: str = "") -> Sheet:
    layers = [layer[1] for label in data.of(dim) if (layer := layer_of(label))]
    scale = Scale(layers, "layer") if len(set(layers)) > 1 else None
    panels = []
    for role, positions in roles.items():
        for title, part in data.take(dim, positions).panels([dim, inner]):
            drawn = [_line("", part.at(dim, label), _shade(scale, label)) for label in part.of(dim)]
            panels.append(Panel(", ".join(filter(None, (called(dim, role), title))), drawn))
    return panels, scale


def _shade(scale: Scale | None, label: Any) -> Any:
    found = layer_of(label)
    return scale(found[1]) if scale and found else "black"


def _line(label: str, data: Data, colour: Any, dash: str = "-") -> Line:
    return Line(label, data.steps, data.values, colour, dash, data.errors)


def overlaid(of_sets: Sequence[Data], labels: Sequence[str], numbers: Sequence[float | None], varied: str) -> Sheet:
    """Return panels of several results: one for each cell, a line for each set of results, with its band."""
    scale = Scale([n for n in numbers if n is not None], varied) if varied else None
    looks = [(scale(n), "-") for n in numbers if n is not None] if scale else categorical(len(of_sets))
    panels: dict[str, Panel] = {}
    for data, label, look in zip(of_sets, labels, looks, strict=True):
        for title, part in data.panels([]):
            line = Line("" if scale else label, part.steps, part.values, *look, part.errors)
            panels.setdefault(title, Panel(title)).lines.append(line)
    return list(panels.values()), scale


def profiles(data: Data, log_steps: bool = False) -> Sheet:
    """Return panels with the last dimension across and a line for each of up to 60 steps, coloured by step."""
    dim = data.dims[-1]
    at = _spread(data.steps, log_steps)
    x = np.array([float(v) if not isinstance(v, str) else i for i, v in enumerate(data.of(dim))])
    texts = [d for d in data.dims[:-1] if isinstance(data.of(d)[0], str)]
    if len(at) == 1 and texts:
        panels, scale = _by_layer(data, texts[0], by_role(data.of(texts[0])), inner=dim)
        return [Panel(p.title, [replace(line, x=x, y=line.y[0], band=None) for line in p.lines]) for p in panels], scale
    scale = Scale([float(data.steps[i]) for i in at], STEP, log_steps) if len(at) > 1 else None
    panels = []
    for title, part in data.panels([dim]):
        lines = [
            Line("", x, part.values[i], scale(float(part.steps[i])) if scale else PALETTE[0], "-", None) for i in at
        ]
        panels.append(Panel(title, lines))
    return panels, scale


def _spread(steps: NDArray[np.int64], log: bool) -> list[int]:
    """Return up to 60 positions, evenly along the steps or their logarithms."""
    if len(steps) <= _MOST_STEPS:
        return list(range(len(steps)))
    places = np.log1p(steps - steps[0]) if log else steps.astype(np.float64)
    wanted = np.linspace(places[0], places[-1], _MOST_STEPS)
    return sorted({int(np.abs(places - place).argmin()) for place in wanted})


def draw_curves(sheet: Sheet, y: str, *, loss: Panel | None, log: Logs, x: str = STEP) -> tuple[Figure, int]:
    """Return the figure of a sheet and how many panels did not fit."""
    panels, scale = sheet
    shown = panels[:MOST_PANELS]
    figure, axes, above = grid(len(shown), above=loss is not None)
    for one, panel in zip(axes, shown, strict=True):
        draw(one, panel)
    finish_values(axes, shown, log.values)
    if loss is not None:
        for one in above:
            draw(one, loss)
        finish_values(above, [loss] * len(above), None)
        above[0].set_ylabel("loss")
        for one in above[1:]:
            one.tick_params(labelleft=False)
    if x == STEP:
        step_axis([*above, *axes], np.unique(np.concatenate([line.x for p in shown for line in p.lines])), log.steps)
    else:
        _value_axis(axes, shown, log.below)
    label_outer(figure, axes, columns_of(axes), x, y)
    legend(figure, axes, scale)
    return figure, len(panels) - len(shown)


def _value_axis(axes: Sequence[Axes], panels: Sequence[Panel], log: bool) -> None:
    """Write plain ticks below: whole numbers for counted labels, the labels themselves when logarithmic."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    x = np.unique(np.concatenate([line.x for panel in panels for line in panel.lines]))
    for one in axes:
        if log and x[0] > 0:
            one.set_xscale("log")
            one.xaxis.set_major_locator(FixedLocator(list(x[:: -(-len(x) // 6)])))
            one.xaxis.set_minor_locator(NullLocator())
        elif (x == x.round()).all():
            one.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        one.xaxis.set_major_formatter(FuncFormatter(plain))


def columns_of(axes: Sequence[Axes]) -> int:
    """Return how many columns the grid of these axes has."""
    spec = axes[0].get_gridspec()
    return int(spec.ncols) if spec else 1
