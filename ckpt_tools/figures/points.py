"""One output against another, and the values of a single checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .canvas import MOST_PANELS, Line, Logs, Panel, draw, finish_values, grid, label_outer, legend, set_log
from .curves import columns_of
from .data import Data, by_role, called, layer_of
from .images import shown_steps
from .style import PALETTE, categorical, plain, powers, spans_decades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_ROWS = 4
_MOST_DOTS = 60


def scatter(data: Data, against: Data, *, at: Sequence[int], log: Logs) -> tuple[Figure, int]:
    """Return points (`against`, `data`): a row for each cell of the other dimensions, a column for each step shown."""
    columns = shown_steps(data, at)
    inner = data.dims[-1:]
    rows = list(zip(data.panels(inner), against.panels(inner), strict=True))
    shown = rows[:_MOST_ROWS]
    figure, axes, _ = grid(len(shown) * len(columns), above=False, columns=len(columns))
    figure.set_size_inches(1.6 * len(columns) + 0.6, 1.7 * len(shown) + 0.4)
    for i, one in enumerate(axes):
        ((title, up), (_, across)), column = shown[i // len(columns)], columns[i % len(columns)]
        one.scatter(across.values[column], up.values[column], s=7, color=PALETTE[0], linewidth=0, alpha=0.7)
        top = f"step {data.steps[column]}" if i < len(columns) else ""
        one.set_title("\n".join(filter(None, (title if i % len(columns) == 0 else "", top))), loc="left")
    for row in range(len(shown)):
        of_row = axes[row * len(columns) : (row + 1) * len(columns)]
        _same_limits(of_row, shown[row][0][1].values[columns], bool(log.values))
        for one in of_row[1:]:
            one.tick_params(labelleft=False)
    label_outer(figure, axes, len(columns), against.axis_label, data.axis_label)
    return figure, len(rows) - len(shown)


def _same_limits(axes: Sequence[Axes], values: NDArray[Any], log: bool) -> None:
    """Give the axes of a row the same limits, logarithmic ones over the positive values."""
    positive = values[np.isfinite(values) & (values > 0)]
    low, high = min(one.get_ylim()[0] for one in axes), max(one.get_ylim()[1] for one in axes)
    for one in axes:
        if log and positive.size:
            set_log(one, positive)
        else:
            one.set_ylim(low, high)


def single(data: Data, *, log: Logs) -> tuple[Figure, int]:
    """Return the values of one checkpoint: over layers, a line for each role, where names have layers; else as dots."""
    data = data.single(1)
    roles = {r: at for r, at in by_role(data.labels[-1]).items() if len(at) > 1} if data.dims else {}
    if roles:
        return _over_layers(data, roles, log)
    return _dots(data, log)


def _over_layers(data: Data, roles: dict[str, list[int]], log: Logs) -> tuple[Figure, int]:
    """Draw a line for each role, and one across, dotted, for what belongs to no layer."""
    from matplotlib.ticker import MaxNLocator

    dim = data.dims[-1]
    lone = [i for i, label in enumerate(data.of(dim)) if not any(i in at for at in roles.values())]
    looks = categorical(len(roles) + len(lone))
    layers = [found[1] for at in roles.values() for i in at if (found := layer_of(data.of(dim)[i]))]
    ends = np.array([min(layers), max(layers)])
    panels = []
    for title, part in data.panels([dim]):
        panel = Panel(title)
        for (role, at), look in zip(roles.items(), looks, strict=False):
            panel.lines += _role(role, part, at, look)
        for i, (colour, _) in zip(lone, looks[len(roles) :], strict=True):
            panel.lines.append(Line(called(dim, part.of(dim)[i]), ends, part.values[0, [i, i]], colour, ":"))
        panels.append(panel)
    shown = panels[:MOST_PANELS]
    figure, axes, _ = grid(len(shown), above=False)
    for one, panel in zip(axes, shown, strict=True):
        draw(one, panel)
        for line in one.lines:
            line.set(marker="" if line.get_linestyle() == ":" else "o", markersize=3)
        one.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish_values(axes, shown, log.values)
    label_outer(figure, axes, columns_of(axes), "layer", data.axis_label)
    legend(figure, axes, None)
    return figure, len(panels) - len(shown)


def _role(role: str, data: Data, at: list[int], look: tuple[str, str]) -> list[Line]:
    labels, lines = data.of(data.dims[-1]), []
    for count, same in _apart(labels, at).items():
        layers = np.array([found[1] for i in same if (found := layer_of(labels[i]))])
        lines.append(Line("" if count else role, layers, data.values[0, same], *look))
    return lines


def _apart(labels: Sequence[str], at: Sequence[int]) -> dict[int, list[int]]:
    """Return positions of one role apart for each head or expert, so that every line has one point per layer."""
    found: dict[int, list[int]] = {}
    seen: dict[int, int] = {}
    for i in at:
        layer = layer_of(labels[i])
        count = seen.get(layer[1] if layer else 0, 0)
        seen[layer[1] if layer else 0] = count + 1
        found.setdefault(count, []).append(i)
    return found


def _dots(data: Data, log: Logs) -> tuple[Figure, int]:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    cells = [(title or data.name, float(part.values[0])) for title, part in data.panels([])]
    shown = cells[:_MOST_DOTS]
    figure, (axes,), _ = grid(1, above=False, height=max(0.6, 0.16 * len(shown) + 0.3))
    values = np.array([value for _, value in shown])
    axes.plot(values, np.arange(len(shown)), "o", color=PALETTE[0], markersize=4)
    axes.set_yticks(np.arange(len(shown)), labels=[title for title, _ in shown])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", linewidth=0.4, color="0.85")
    axes.invert_yaxis()
    if (log.values or (log.values is None and spans_decades(values))) and values.min() > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(powers(float(values.min()) * 0.8, float(values.max()) * 1.25))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(plain))
    axes.set_xlabel(data.axis_label)
    return figure, len(cells) - len(shown)
