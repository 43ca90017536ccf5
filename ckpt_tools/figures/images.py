"""Pictures of colours: steps across and a dimension up, or two dimensions at a few steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..results.names import printable
from .canvas import MOST_PANELS, STEP, Logs, Panel, draw, finish_values, grid, step_axis
from .curves import columns_of
from .data import Data, by_role, layer_of
from .style import DIVERGING, SEQUENTIAL, colour_bar, spans_decades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NAMES = 40
_MOST_ROWS = 4
_MOST_COLUMNS = 4
_LONG_NAME = 24
_DECADES = 1e3


def colours(values: NDArray[Any], log: bool | None) -> dict[str, Any]:
    """Return norm and colour map: diverging around 0 for both signs, logarithmic as in `Logs`."""
    from matplotlib.colors import CenteredNorm, LogNorm, Normalize

    known = values[np.isfinite(values)]
    low, high = float(known.min()), float(known.max())
    if low < 0 < high and min(-low, high) > 0.02 * max(-low, high):
        return {"norm": CenteredNorm(0.0, max(-low, high)), "cmap": DIVERGING}
    if low > 0 and high > low and (spans_decades(known, _DECADES) if log is None else log):
        return {"norm": LogNorm(low, high), "cmap": SEQUENTIAL}
    return {"norm": Normalize(low, high if high > low else low + 1e-12), "cmap": SEQUENTIAL}


def split_roles(data: Data) -> list[tuple[str, Data]]:
    """Return what makes a heat map each, with the last dimension up: matrices with layers become a map per role."""
    dim = data.dims[-1]
    if len(data.dims) == 1 and any(layer_of(label) for label in data.of(dim)):
        roles = by_role(data.of(dim))
        lone = [i for at in roles.values() if len(at) == 1 for i in at]
        parts = [(role, data.take(dim, at)) for role, at in roles.items() if len(at) > 1]
        return parts + ([("", data.take(dim, lone))] if lone else [])
    return list(data.panels([dim]))


def heatmaps(data: Data, *, loss: Panel | None, log: Logs) -> tuple[Figure, int]:
    """Return a figure of heat maps, steps across, and how many did not fit."""
    parts = [(title, part) for title, part in split_roles(data) if not part.empty]
    shown = parts[:MOST_PANELS]
    tallest = max(len(part.labels[0]) for _, part in shown)
    figure, axes, above = grid(len(shown), above=loss is not None, height=min(4.5, max(1.5, 0.13 * tallest + 0.5)))
    style = colours(np.concatenate([part.values.ravel() for _, part in shown]), log.values)
    for one, (title, part) in zip(axes, shown, strict=True):
        image = _heatmap(one, part, style)
        one.set_title(title, loc="left")
    if loss is not None:
        for one in above:
            draw(one, loss)
        finish_values(above, [loss] * len(above), None)
        above[0].set_ylabel("loss")
    step_axis([*above, *axes], edges(data.steps), log.steps)
    for one in axes[-columns_of(axes) :]:
        one.set_xlabel(STEP)
    colour_bar(figure, image, axes, data.axis_label)
    return figure, len(parts) - len(shown)


def _heatmap(axes: Axes, data: Data, style: dict[str, Any]) -> Any:
    rows = len(data.labels[0])
    image = axes.pcolormesh(
        edges(data.steps), np.arange(rows + 1) - 0.5, data.values.T, rasterized=True, linewidth=0, **style
    )
    axes.invert_yaxis()
    _name_rows(axes, data.dims[0], data.labels[0])
    return image


def _name_rows(axes: Axes, dim: str, labels: Sequence[Any]) -> None:
    layers = [layer_of(label) for label in labels]
    if all(layers) and len({layer[0] for layer in layers if layer}) == 1:
        dim, labels = "layer", [layer[1] for layer in layers if layer]
    every = max(1, -(-len(labels) // (_MOST_NAMES if isinstance(labels[0], str) else 12)))
    names = [_name(label) for label in labels[::every]]
    axes.set_yticks(np.arange(len(labels))[::every], labels=names)
    axes.tick_params(axis="y", length=0)
    if not isinstance(labels[0], str):
        axes.set_ylabel(dim.replace("_", " "))


def _name(label: Any) -> str:
    text = printable(label) if isinstance(label, str) else f"{label:g}"
    return text if len(text) <= _LONG_NAME else f"{text[: _LONG_NAME // 2 - 1]}…{text[-_LONG_NAME // 2 :]}"


def edges(steps: NDArray[Any]) -> NDArray[np.float64]:
    """Return the borders of steps: half way between neighbours, the first and last step at the ends."""
    inner = (steps[1:] + steps[:-1]) / 2
    last = steps[-1] if len(steps) > 1 else steps[-1] + 1
    return np.array([steps[0], *inner, last], dtype=np.float64)


def shown_steps(data: Data, wanted: Sequence[int]) -> list[int]:
    """Return positions of the steps to show: those nearest to the wanted ones, else up to four from first to last.

    These four lie so that the values change as much between any two neighbours.
    """
    known = [i for i in range(len(data.steps)) if np.isfinite(data.values[i]).any()]
    if wanted:
        return list(dict.fromkeys(min(known, key=lambda i: abs(int(data.steps[i]) - step)) for step in wanted))
    flat = np.nan_to_num(data.values[known].reshape(len(known), -1))
    way = np.concatenate([[0.0], np.linalg.norm(np.diff(flat, axis=0), axis=1).cumsum()])
    marks = np.linspace(0, way[-1], min(_MOST_COLUMNS, len(known)))
    return sorted({known[0], known[-1], *(known[int(np.abs(way - mark).argmin())] for mark in marks)})


def maps(data: Data, *, at: Sequence[int], log: Logs) -> tuple[Figure, int]:
    """Return a figure with a row of maps for each cell, a column for each shown step, and how many rows did not fit."""
    rows = [(title, part) for title, part in data.panels(data.dims[-2:]) if np.isfinite(part.values[0]).sum() > 1]
    shown, columns = rows[:_MOST_ROWS], shown_steps(data, at)
    up, across = (len(of) for of in data.labels[-2:])
    figure, axes, _ = grid(len(shown) * len(columns), above=False, columns=len(columns), share=False)
    figure.set_size_inches(1.7 * len(columns) + 1.4, 1.75 * len(shown) + 0.4)
    drawn = np.concatenate([part.values[columns].ravel() for _, part in shown])
    style = colours(drawn, log.values)
    for i, one in enumerate(axes):
        (title, part), column = shown[i // len(columns)], columns[i % len(columns)]
        values, labels = _without_padding(part.values[column], part.labels)
        image = one.imshow(values, interpolation="nearest", aspect="auto" if up != across else "equal", **style)
        _name_map(one, part.dims, labels, left=i % len(columns) == 0, below=i >= len(axes) - len(columns))
        top = f"step {part.steps[column]}" if i < len(columns) else ""
        row = title if i % len(columns) == 0 else ""
        one.set_title("\n".join(filter(None, (row, top))), loc="left")
    colour_bar(figure, image, axes, data.axis_label)
    return figure, len(rows) - len(shown)


def _without_padding(values: NDArray[Any], labels: tuple[list[Any], ...]) -> tuple[NDArray[Any], list[list[Any]]]:
    """Cut rows and columns that are NaN to the end: a smaller map is padded to the size of the largest."""
    known = np.isfinite(values)
    ends = [int(np.flatnonzero(known.any(axis=1 - axis))[-1]) + 1 if known.any() else 1 for axis in (0, 1)]
    return values[: ends[0], : ends[1]], [labels[0][: ends[0]], labels[1][: ends[1]]]


def _name_map(axes: Axes, dims: Sequence[str], labels: Sequence[Sequence[Any]], *, left: bool, below: bool) -> None:
    for axis, dim, of, outer in ((axes.yaxis, dims[0], labels[0], left), (axes.xaxis, dims[1], labels[1], below)):
        every = max(1, -(-len(of) // 8))
        axis.set_ticks(np.arange(len(of))[::every], labels=[_name(label) for label in of[::every]])
        axis.set_tick_params(length=0)
        if outer:
            axis.set_label_text(dim.replace("_", " "))
