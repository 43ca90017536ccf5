"""A sheet of panels: size, grid, the loss above, axes, legend and colour bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .style import Scale, plain, powers, spans_decades, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 12
MOST_POINTS = 600
STEP = "training step"
_INSIDE = 4
_DECADES = 1e3
_SHORT = 20
_CLOSE = 0.01
_NARROW = 3.0


@dataclass(frozen=True, eq=False)
class Line:
    """One curve with an optional band, and how it is drawn."""

    label: str
    x: NDArray[Any]
    y: NDArray[Any]
    colour: Any = "black"
    dash: str = "-"
    band: NDArray[Any] | None = None


@dataclass(frozen=True)
class Logs:
    """Which axes are logarithmic: steps, what else is below, values (None: where they span decades)."""

    steps: bool = False
    below: bool = False
    values: bool | None = None


@dataclass(eq=False)
class Panel:
    """Curves that share axes."""

    title: str
    lines: list[Line] = field(default_factory=list)


def grid(
    panels: int, *, above: bool, height: float = 0.0, columns: int = 0, share: bool = True
) -> tuple[Figure, list[Axes], list[Axes]]:
    """Return a figure, its panels' axes, and the axes for the loss over each column (empty without `above`)."""
    from matplotlib.figure import Figure

    columns = columns or (min(panels, 3) if panels != 4 else 2)
    rows = ceil(panels / columns)
    tall = height or (2.5 if panels == 1 else 1.75)
    width = 4.6 if columns == 1 else 7.2
    figure = Figure(figsize=(width, tall * rows + (0.9 if above else 0.0) + 0.3), layout="constrained")
    ratios = [0.9] * above + [tall] * rows
    cells = figure.add_gridspec(len(ratios), columns, height_ratios=ratios)
    first = [figure.add_subplot(cells[0, c]) for c in range(columns)] if above else []
    shared: Axes | None = first[0] if first else None
    axes: list[Axes] = []
    for i in range(panels):
        axes.append(figure.add_subplot(cells[above + i // columns, i % columns], sharex=shared))
        shared = shared or (axes[0] if share else None)
    for other in first[1:]:
        other.sharex(first[0])
        other.sharey(first[0])
    for i, one in enumerate([*first, *axes]):
        if (first and i < columns) or i - len(first) + columns < panels:
            one.tick_params(labelbottom=False)
    return figure, axes, first


def draw(axes: Axes, panel: Panel) -> None:
    """Draw the curves of a panel and its title; one that lies on another is dashed, so that both are seen."""
    values = np.concatenate([line.y[np.isfinite(line.y)] for line in panel.lines])
    close = _CLOSE * float(np.ptp(values)) if values.size else 0.0
    for i, line in enumerate(panel.lines):
        x, y, band = thinned(line.x, line.y, line.band)
        marker = "o" if np.isfinite(y).sum() == 1 else ""
        dash = "--" if any(_coincide(line, other, close) for other in panel.lines[:i]) else line.dash
        axes.plot(x, y, color=line.colour, linestyle=dash, label=line.label, marker=marker, markersize=3)
        if band is not None:
            axes.fill_between(x, y - band, y + band, color=line.colour, alpha=0.2, linewidth=0)
    if panel.title:
        axes.set_title(panel.title, loc="left")


def _coincide(a: Line, b: Line, close: float) -> bool:
    if not (a.label and b.label) or a.y.shape != b.y.shape:
        return False
    known = np.isfinite(a.y) & np.isfinite(b.y)
    return bool(known.any() and np.abs(a.y - b.y)[known].mean() <= close)


def thinned(x: NDArray[Any], y: NDArray[Any], band: Any = None) -> tuple[NDArray[Any], NDArray[Any], Any]:
    """Return a curve of at most `MOST_POINTS` points that keeps the lowest and highest of every stretch."""
    if len(x) <= MOST_POINTS:
        return x, y, band
    parts = np.array_split(np.arange(len(x)), MOST_POINTS // 2)
    known = np.where(np.isfinite(y), y, np.nan)
    keep: set[int] = {0, len(x) - 1}
    for part in parts:
        if not np.isnan(known[part]).all():
            keep |= {int(part[np.nanargmin(known[part])]), int(part[np.nanargmax(known[part])])}
    at = np.array(sorted(keep))
    return x[at], y[at], None if band is None else band[at]


def finish_values(axes: Sequence[Axes], panels: Sequence[Panel], log: bool | None) -> None:
    """Make value axes logarithmic where asked for, or (None) where values span decades; widen what never moves."""
    for one, panel in zip(axes, panels, strict=True):
        values = np.concatenate([line.y for line in panel.lines] or [np.empty(0)])
        known = values[np.isfinite(values)]
        constant = known.size and np.ptp(known) <= 1e-9 * max(abs(known).max(), 1e-300)
        if not constant and (known > 0).any() and (spans_decades(known, _DECADES) if log is None else log):
            set_log(one, known[known > 0])
        elif constant:
            middle, reach = float(known[0]), max(abs(float(known[0])) * 0.1, 1e-12)
            one.set_ylim(middle - reach, middle + reach)


def set_log(axes: Axes, known: NDArray[Any]) -> None:
    """Make a value axis logarithmic over positive values, unless they are so close that its ticks would say less."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    low, high = float(known.min()), float(known.max())
    if high / low < _NARROW:
        return
    margin = (high / low) ** 0.05
    axes.set_yscale("log")
    axes.set_ylim(low / margin, high * margin)
    axes.yaxis.set_major_locator(powers(low / margin, high * margin))
    axes.yaxis.set_major_formatter(FuncFormatter(plain))
    axes.yaxis.set_minor_formatter(NullFormatter())


def step_axis(axes: Sequence[Axes], steps: NDArray[Any], log: bool) -> None:
    """Make steps logarithmic where asked for (linear up to the first step after 0), and leave no margin."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    positive = steps[steps > 0]
    for one in axes:
        if log and positive.size:
            one.set_xscale("symlog", linthresh=float(positive[0]))
            one.xaxis.set_major_locator(powers(float(steps[0]), float(steps[-1])))
            one.xaxis.set_minor_locator(NullLocator())
        else:
            one.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        one.xaxis.set_major_formatter(FuncFormatter(plain))
        if len(steps) > 1:
            one.set_xlim(float(steps[0]), float(steps[-1]))


def label_outer(figure: Figure, axes: Sequence[Axes], columns: int, x: str, y: str) -> None:
    """Label axes once: values at the left, what is below at the bottom of each column."""
    rows = ceil(len(axes) / columns)
    if y and rows > 1:
        figure.supylabel(wrapped(y, figure.get_figheight()), fontsize=8)
    elif y:
        axes[0].set_ylabel(wrapped(y, 2.6 if len(axes) == 1 else 1.8))
    if columns > 1 and len(x) > _SHORT:
        figure.supxlabel(x, fontsize=8)
        return
    for one in axes[-columns:]:
        one.set_xlabel(x)


def legend(figure: Figure, axes: Sequence[Axes], scale: Scale | None) -> None:
    """Put a colour bar, or a legend of everything drawn: inside a lone panel, else beside the panels."""
    if scale is not None:
        scale.bar(figure, axes)
        return
    handles: dict[str, Any] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if not handles:
        return
    if len(axes) == 1 and len(handles) <= _INSIDE:
        axes[0].legend(handles.values(), handles)
    else:
        figure.legend(handles.values(), handles, loc="outside right upper")
