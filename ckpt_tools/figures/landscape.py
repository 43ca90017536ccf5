"""A landscape: contours of a map, and the way of the checkpoints over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .canvas import Logs, grid
from .data import Data
from .images import colours, shown_steps
from .style import colour_bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEVELS = 24


def landscape(data: Data, way: Data, *, log: Logs) -> tuple[Figure, int]:
    """Return the map `[first, second]` of the last step that has one as contours, under the places `way [step, 2]`."""
    column = shown_steps(data, ())[-1]
    figure, (axes,), _ = grid(1, above=False)
    figure.set_size_inches(4.2, 2.9)
    x, y = (np.asarray(of, dtype=np.float64) for of in data.labels)
    values = data.values[column].T
    image = axes.contourf(x, y, values, levels=_levels(values, log), **colours(values, log.values))
    places = way.values.reshape(len(way.steps), -1)[:, :2]
    axes.plot(*places.T, color="white", linewidth=2.2)
    axes.plot(*places.T, color="black", linewidth=1.0, marker="o", markersize=2.0)
    axes.annotate(f"{way.steps[0]}", places[0], xytext=(4, 4), textcoords="offset points", color="white")
    axes.plot(*places[-1], marker="*", markersize=9, color="white", markeredgecolor="black")
    for axis, dim in ((axes.xaxis, data.dims[0]), (axes.yaxis, data.dims[1])):
        axis.set_label_text(f"{dim.replace('_', ' ')} direction")
    colour_bar(figure, image, [axes], data.axis_label)
    return figure, 0


def _levels(values: NDArray[np.float64], log: Logs) -> NDArray[np.float64]:
    """Return where contours lie: as many in the valley as on the walls, which are much higher."""
    known = values[np.isfinite(values)]
    low, high = float(known.min()), float(known.max())
    if high <= low:
        return np.array([low - 1e-9, low + 1e-9])
    share = np.linspace(0, 1, _LEVELS)
    return low + (high - low) * (share if log.values else share**2)
