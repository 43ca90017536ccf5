"""How figures look: a palette for colour-blind readers (Okabe & Ito 2008), even colour maps, small type.

Mathematical text is off, since labels are a stranger's text; powers of ten are written with superscript digits instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ResultsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C6BB1")
DASHES = ("-", "--", ":", "-.")
SEQUENTIAL, DIVERGING = "viridis", "PuOr"
# The light end of the map cannot be told from paper.
_DARKEST_PART = 0.88
_WIDE = 50.0
_LETTERS_PER_INCH = 15
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

_SETTINGS: dict[str, Any] = {
    "font.size": 8,
    "font.family": ["DejaVu Sans"],
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.grid": False,
    "lines.linewidth": 1.2,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "ckpt",
    "text.parse_math": False,
    "text.usetex": False,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw with these settings, whatever the user's; ResultsError when matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise ResultsError('Figures need matplotlib: pip install "ckpt-tools[report]"') from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for name, value in _SETTINGS.items():
            matplotlib.rcParams[name] = value  # type: ignore[index]
        yield


def categorical(count: int) -> list[tuple[str, str]]:
    """Return a colour and a dash pattern for each of a few kinds, all different."""
    return [(PALETTE[i % len(PALETTE)], DASHES[i // len(PALETTE) % len(DASHES)]) for i in range(count)]


class Scale:
    """Colours of numbers from low to high: logarithmic when they span decades or if asked."""

    def __init__(self, values: Sequence[float], label: str, log: bool = False) -> None:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import ListedColormap, LogNorm, Normalize, SymLogNorm

        low, high = min(values), max(values)
        positive = [value for value in values if value > 0]
        norm: Any = Normalize(low, high)
        if log and positive:
            norm = SymLogNorm(min(positive), vmin=low, vmax=high)
        elif low > 0 and high / low >= _WIDE:
            norm = LogNorm(low, high)
        self.label = label
        self.whole = all(float(value).is_integer() for value in values)
        self.mappable = ScalarMappable(norm, ListedColormap(colormaps[SEQUENTIAL](np.linspace(0, _DARKEST_PART, 256))))

    def __call__(self, value: float) -> Any:
        """Return the colour of a number."""
        return self.mappable.to_rgba(np.asarray(value))

    def bar(self, figure: Figure, axes: Sequence[Axes]) -> None:
        """Draw the colour bar beside some axes."""
        colour_bar(figure, self.mappable, axes, self.label, whole=self.whole)


def colour_bar(figure: Figure, mappable: Any, axes: Sequence[Axes], label: str, whole: bool = False) -> None:
    """Draw a colour bar beside some axes, plain numbers or powers of ten at its ticks."""
    from matplotlib.colors import LogNorm, SymLogNorm
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    bar = figure.colorbar(mappable, ax=list(axes), aspect=30, pad=0.02)
    bar.set_label(wrapped(label, 0.75 * figure.get_figheight()))
    bar.outline.set_visible(False)
    if isinstance(mappable.norm, LogNorm | SymLogNorm):
        bar.locator = powers(*map(float, mappable.get_clim()))
        bar.minorlocator = NullLocator()
        bar.formatter = FuncFormatter(plain)
    elif whole:
        bar.locator = MaxNLocator(integer=True, nbins=6)
    bar.update_ticks()


def powers(low: float, high: float) -> Any:
    """Return ticks at 0 if it is within, at powers of ten, and between these when there are few."""
    from matplotlib.ticker import FixedLocator

    smallest = low if low > 0 else min(1.0, high)
    inside = np.arange(np.ceil(np.log10(smallest) - 1e-9), np.floor(np.log10(high) + 1e-9) + 1)
    ticks = 10.0 ** inside[:: max(1, -(-len(inside) // 6))]
    if len(inside) < 3:
        steps = np.outer(10.0 ** np.arange(np.floor(np.log10(smallest)), np.ceil(np.log10(high))), [1, 2, 5]).ravel()
        ticks = steps[(steps >= smallest * (1 - 1e-9)) & (steps <= high * (1 + 1e-9))]
    return FixedLocator([0.0, *ticks] if low <= 0 else list(ticks))


def plain(value: float, _: Any = None) -> str:
    """Return a number as text: powers of ten beyond four digits with superscripts."""
    if value and not 1e-3 <= abs(value) < 1e4:
        digits, exponent = f"{value:.1e}".split("e")
        power = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
        return power if digits == "1.0" else f"{float(digits):g}×{power}"
    return f"{value:g}"


def wrapped(text: str, inches: float) -> str:
    """Return a label in lines that fit along so many inches."""
    from textwrap import fill

    return fill(text, max(16, int(inches * _LETTERS_PER_INCH)))


def spans_decades(values: NDArray[Any], ratio: float = _WIDE) -> bool:
    """Whether all finite values are positive and so far apart that only a logarithmic axis shows them."""
    known = values[np.isfinite(values)]
    return bool(known.size and known.min() > 0 and known.max() / known.min() >= ratio)
