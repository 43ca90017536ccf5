"""Heavy tails: the power law of a matrix's eigenvalues (Martin & Mahoney, JMLR 22, 2021), with WeightWatcher's numbers.

The spectrum is that of W^T W, eigenvalues lambda_i = s_i^2. Over the tail lambda >= xmin, of n eigenvalues, a power law
p ~ lambda^-alpha has the maximum-likelihood exponent (Clauset, Shalizi & Newman, SIAM Review 51, 2009)

    alpha = 1 + n / sum log(lambda_i / xmin),      standard error (alpha - 1) / sqrt(n)

and xmin is the eigenvalue that makes the Kolmogorov-Smirnov distance D smallest between the tail and its fit,
D = max_k |k / n - (1 - (lambda_(k) / xmin)^(1 - alpha))|, k = 0 ... n - 1. Below 20 eigenvalues the exponent is
corrected for bias (n - 1 in place of n) and only tails of 8 or more count. These are the choices of WeightWatcher 0.7
with its default settings, and so are the other numbers; logarithms are decimal:

- log_norm log10 sum lambda, log_spectral_norm log10 lambda_max, stable_rank sum lambda / lambda_max;
- alpha_weighted = alpha log10 lambda_max, log_alpha_norm = log10 sum lambda^alpha;
- alpha below 2 is called over-trained, above 6 under-trained.

Eigenvalues up to `floor` are no part of the fit, whose exponent does not otherwise depend on the scale of the matrix.
No matrix is left out for its size; experts are taken one by one, convolution kernels as matrices [out, in * kernel]
(WeightWatcher pools one matrix per kernel position, so those numbers differ).

The scan over all xmin does not compute all N^2 / 2 differences: each candidate's D is first bounded from below on a few
points of its tail, and candidates are evaluated in full in the order of that bound until it exceeds the best D found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ckpt_tools import Analyzer, Figure, Out, hookimpl, option

if TYPE_CHECKING:
    from ckpt_tools import Series, View

Floats = NDArray[np.float64]

SMALL = 20
"""Below this many eigenvalues the bias-corrected fit is used."""
SMALLEST_TAIL = 8
PROBES = 24
"""Points of a tail on which its Kolmogorov-Smirnov distance is first bounded."""


@dataclass(frozen=True)
class PowerLaw:
    """A fitted tail: exponent, its standard error, where it begins and ends, KS distance, eigenvalues in it."""

    alpha: float = math.nan
    sigma: float = math.nan
    xmin: float = math.nan
    xmax: float = math.nan
    distance: float = math.nan
    tail: int = 0


def fit_power_law(values: Floats) -> PowerLaw:
    """Return the power law of positive `values [n]` in any order; all NaN below two values.

    >>> x = 2.0 * (1 - (np.arange(1000) + 0.5) / 1000) ** (-1 / 1.5)   # quantiles of alpha = 2.5, xmin = 2
    >>> round(fit_power_law(x).alpha, 2)
    2.5
    """
    x = np.sort(values)
    if len(x) < 2:
        return PowerLaw()
    logs = np.log(x)
    small = len(x) < SMALL
    slopes, counts = _slopes(logs, small)
    best, distance = _scan(logs, slopes, counts)
    if best < 0:
        return PowerLaw()
    xmin, n = float(x[best]), int(np.count_nonzero(x >= x[best]))
    sigma = float(slopes[best] / math.sqrt(counts[best]))
    return PowerLaw(1 + float(slopes[best]), sigma, xmin, float(x[-1]), distance, n)


def _slopes(logs: Floats, small: bool) -> tuple[Floats, Floats]:
    """Return alpha - 1 (NaN where there is none) and the tail's size for every candidate xmin: all but the largest."""
    counts = np.arange(len(logs), 1, -1, dtype=np.float64)
    above = np.cumsum(logs[::-1])[::-1][:-1] - counts * logs[:-1]
    usable = above > 1e-12 * np.maximum(1.0, np.abs(logs).max())
    slopes = np.divide(counts - small, above, out=np.full(len(counts), np.nan), where=usable)
    if small and (enough := counts >= SMALLEST_TAIL).any():
        slopes[~enough] = np.nan
    elif small:
        slopes[1:] = np.nan
    return slopes, counts


def _scan(logs: Floats, slopes: Floats, counts: Floats) -> tuple[int, float]:
    """Return the candidate of smallest KS distance, the first among equals, and that distance; -1 without one."""
    candidates = np.flatnonzero(~np.isnan(slopes))
    bounds = _lower_bounds(logs, slopes, counts, candidates)
    best, least = -1, math.inf
    for at in np.argsort(bounds, kind="stable"):
        if bounds[at] > least:
            break
        i = int(candidates[at])
        distance = _distance(logs[i:], slopes[i])
        if distance < least or (distance == least and i < best):
            best, least = i, distance
    return best, least


def _distance(logs: Floats, slope: float) -> float:
    """Return the KS distance of one tail `[n]`, ascending, to its power law."""
    n = len(logs)
    return float(np.abs(1 - np.exp(slope * (logs[0] - logs)) - np.arange(n) / n).max())


def _lower_bounds(logs: Floats, slopes: Floats, counts: Floats, candidates: NDArray[np.intp]) -> Floats:
    """Return, for every candidate, the largest difference on `PROBES` points of its tail: at most its KS distance."""
    places = np.linspace(0, 1, PROBES, endpoint=False)
    n = counts[candidates, None]
    inside = np.floor(places * n)
    probed = logs[candidates[:, None] + inside.astype(np.intp)]
    fitted = 1 - np.exp(slopes[candidates, None] * (logs[candidates, None] - probed))
    # Rounding must not lift a bound above the distance it bounds.
    return np.asarray(np.abs(fitted - inside / n).max(axis=1) - 1e-12)


_OUT = ("matrix",)


class HeavyTail(Analyzer):
    """Power-law exponent of every matrix's eigenvalue spectrum, and the norms that go with it (WeightWatcher)."""

    name = "heavytail"
    needs = "weights"
    reading = (
        "The eigenvalues of a matrix times its transpose fall off slowly where training has built correlations into"
        " it. `alpha` is the exponent of that fall, fitted to the largest ones: near 2 the tail is heavy, as in "
        "well-trained layers; far above 6 the matrix looks random. `D` says how well the fit holds, and `num_evals`"
        " from how many eigenvalues it could be made."
    )
    invariant_to = frozenset({"rotation", "sign", "neuron_permutation"})
    outputs: ClassVar[Mapping[str, Out]] = {
        "alpha": Out(_OUT, long_name="power-law exponent of the eigenvalue spectrum"),
        "sigma": Out(_OUT, long_name="standard error of alpha", error_of="alpha"),
        "D": Out(_OUT, long_name="Kolmogorov-Smirnov distance of the tail to the power law"),
        "xmin": Out(_OUT, long_name="smallest eigenvalue of the fitted tail"),
        "xmax": Out(_OUT, long_name="largest eigenvalue"),
        "num_evals": Out(_OUT, long_name="number of eigenvalues", dtype="i8"),
        "num_pl_spikes": Out(_OUT, long_name="eigenvalues in the fitted tail", dtype="i8"),
        "num_excluded": Out(_OUT, long_name="eigenvalues up to the floor, left out of the fit", dtype="i8"),
        "alpha_weighted": Out(_OUT, long_name="alpha log10 of the largest eigenvalue"),
        "log_alpha_norm": Out(_OUT, long_name="log10 of the sum of eigenvalues to the power alpha"),
        "log_norm": Out(_OUT, long_name="log10 of the squared Frobenius norm"),
        "log_spectral_norm": Out(_OUT, long_name="log10 of the largest eigenvalue"),
        "stable_rank": Out(_OUT, long_name="squared Frobenius norm over largest eigenvalue"),
    }
    figures = (
        Figure("alpha"),
        Figure("log_spectral_norm"),
    )
    floor: float = option(1e-5, help="Leave eigenvalues up to this out of the fit.", min=0.0)
    relative: bool = option(False, help="The floor is a share of the largest eigenvalue.")

    def analyze(self, view: View) -> Mapping[str, Any]:
        """Return the fit and the norms of every matrix; NaN where fewer than two eigenvalues exceed the floor."""
        names = view.matrix_names()
        rows = [self._row(view.spectrum(name).values) for name in names]
        return {"matrix": names, **{key: [row[key] for row in rows] for key in self.outputs}}

    def _row(self, singular_values: Floats) -> dict[str, float]:
        top = float(singular_values[0]) if len(singular_values) else 0.0
        values = singular_values**2
        floor = self.floor * top**2 if self.relative else self.floor
        kept = values[values > floor]
        law = fit_power_law(kept)
        alpha, known, zero = law.alpha, top > 0, -math.inf if top == 0 else math.nan
        return {
            "alpha": alpha,
            "sigma": law.sigma,
            "D": law.distance,
            "xmin": law.xmin,
            "xmax": law.xmax,
            "num_evals": len(values),
            "num_pl_spikes": law.tail,
            "num_excluded": len(values) - len(kept),
            "alpha_weighted": alpha * 2 * math.log10(top) if known else math.nan,
            "log_alpha_norm": _log_sum(singular_values, 2 * alpha) if known else math.nan,
            "log_norm": _log_sum(singular_values, 2.0) if known else zero,
            "log_spectral_norm": 2 * math.log10(top) if known else zero,
            "stable_rank": float(((singular_values / top) ** 2).sum()) if known else 10**zero,
        }

    def summarize(self, series: Series) -> Mapping[str, Any]:
        """Return mean alpha and log norm at the first and last step, and which matrices end outside 2 ... 6."""
        if not len(series):
            return {}
        names, alpha = series.labels("matrix"), series["alpha"]
        ends = {"first": 0, "last": -1}
        return {
            "mean_alpha": {end: _mean(alpha[at]) for end, at in ends.items()},
            "mean_log_norm": {end: _mean(series["log_norm"][at]) for end, at in ends.items()},
            "over_trained": [name for name, a in zip(names, alpha[-1], strict=True) if a < 2],
            "under_trained": [name for name, a in zip(names, alpha[-1], strict=True) if a > 6],
        }


def _log_sum(s: Floats, power: float) -> float:
    """Return log10 of the sum of `s ** power`, safe from overflow."""
    return power * math.log10(s[0]) + math.log10(float(((s / s[0]) ** power).sum()))


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


@hookimpl
def ckpt_analyzers() -> list[type[Analyzer]]:
    """Offer the analyzer `heavytail`."""
    return [HeavyTail]
