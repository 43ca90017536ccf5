"""Figures of a study: one style, colours that colour-blind readers tell apart, no display needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ResultsError
from .declare import Figure
from .found import Found

# Okabe and Ito's palette, the light yellow left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": "small",
    "lines.linewidth": 1.6,
    "font.size": 9.0,
    "image.cmap": "viridis",
}
DPI = 150


def draw(figure: Figure, found: Sequence[Found], folder: Path) -> Path:
    """Draw a figure into `folder/NAME.png` and return its path; ResultsError when matplotlib is not installed."""
    try:
        from cycler import cycler
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise ResultsError('Figures need matplotlib: pip install "ckpt-tools[report]"') from error
    style: Any = {**STYLE, "axes.prop_cycle": cycler(color=COLOURS)}
    path = folder / f"{figure.name}.png"
    with rc_context(style):
        canvas = Canvas(figsize=figure.size, layout="constrained")
        FigureCanvasAgg(canvas)
        figure.draw(canvas, found)
        folder.mkdir(parents=True, exist_ok=True)
        canvas.savefig(path, dpi=DPI)
    return path
