"""Focus and dilution: when a query's attention gathers on one token and when it lets go (arXiv 2605.01199).

A cycle is read from two curves of one query token, the mass m on the most frequent token and the entropy e of its
attention over tokens. From a base (m0, e0), the first checkpoint's values:

- focus: the first step with m >= m0 + rise and e <= fall * e0;
- dilution: the first later step with m <= m0 - drop and e >= spread * e0;
- peak: the step of the largest m between the two.

After a dilution the base follows m down to its lowest value, and a next cycle may begin from there. Thresholds are
the caller's; the defaults are those of the miniature in which the stages are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Thresholds:
    """How far mass and entropy must go; see the module's text."""

    rise: float = 0.015
    fall: float = 0.96
    drop: float = 0.03
    spread: float = 1.08


@dataclass(frozen=True)
class Cycle:
    """Steps of one cycle; `dilution` is -1 while there is none. `mass` is the mass at base, peak and dilution."""

    base: int
    focus: int
    peak: int
    dilution: int
    mass: tuple[float, float, float]


def cycles(steps: Sequence[int], mass: Floats, entropy: Floats, thresholds: Thresholds | None = None) -> list[Cycle]:
    """Return the cycles of two curves, in order; steps where either is NaN are left out.

    >>> [(c.focus, c.peak, c.dilution) for c in cycles(range(4), np.array([.5, .6, .7, .4]), np.array([1, .9, .8, 2]))]
    [(1, 2, 3)]
    """
    t = thresholds or Thresholds()
    known = np.flatnonzero(np.isfinite(mass) & np.isfinite(entropy)).tolist()
    found: list[Cycle] = []
    base = focus = peak = -1
    for i in known:
        if base < 0 or (focus < 0 and found and mass[i] < mass[base]):
            base = i
        elif focus < 0:
            if mass[i] >= mass[base] + t.rise and entropy[i] <= t.fall * entropy[base]:
                focus = peak = i
        elif mass[i] <= mass[base] - t.drop and entropy[i] >= t.spread * entropy[base]:
            found.append(_cycle(steps, mass, base, focus, peak, i))
            base, focus = i, -1
        elif mass[i] > mass[peak]:
            peak = i
    return [*found, _cycle(steps, mass, base, focus, peak, -1)] if focus >= 0 else found


def _cycle(steps: Sequence[int], mass: Floats, base: int, focus: int, peak: int, end: int) -> Cycle:
    last = float(mass[end]) if end >= 0 else float("nan")
    return Cycle(
        base=int(steps[base]),
        focus=int(steps[focus]),
        peak=int(steps[peak]),
        dilution=int(steps[end]) if end >= 0 else -1,
        mass=(float(mass[base]), float(mass[peak]), last),
    )


def cycle_facts(
    steps: Sequence[int], mass: Floats, entropy: Floats, tokens: Sequence[int], target: int, thresholds: Thresholds
) -> dict[str, Any]:
    """Return the cycles of every layer, head and query token as columns, one entry per cycle.

    `mass` is `[step, layer, head, query token, key token]`, `entropy` the same without key token; `target` is the
    place of the most frequent token in `tokens`.
    """
    rows = [
        (layer, head, int(tokens[u]), cycle)
        for layer, head, u in np.ndindex(*entropy.shape[1:])
        for cycle in cycles(steps, mass[:, layer, head, u, target], entropy[:, layer, head, u], thresholds)
    ]
    return {
        "focus_on": int(tokens[target]),
        "cycle_layer": [layer for layer, *_ in rows],
        "cycle_head": [head for _, head, *_ in rows],
        "cycle_query_token": [token for *_, token, _ in rows],
        "focus_step": [c.focus for *_, c in rows],
        "peak_step": [c.peak for *_, c in rows],
        "peak_mass": [c.mass[1] for *_, c in rows],
        "dilution_step": [c.dilution for *_, c in rows],
    }
