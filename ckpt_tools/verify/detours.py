"""Where a path leaves itself and comes back, from a matrix of distances.

One run moves along a path: neighbours in time are neighbours in space, however uneven the steps and however fast it
moves, so from i - 1 to i + 1 it is about as far as to i, or farther. A detour is the opposite:

    r = min(d(a-1, a), d(b, b+1)) / d(a-1, b+1)   for checkpoints a ... b

is large. Measured on 34 clean trajectories (tiny steps to divergent ones, plateaus, restarts, weight decay, bfloat16;
docs/verify.md) r stays below 1.3 where the detour is at least a tenth of the whole way; the weights of another run give
13 to 200, final weights under an early step 2 to 15, and these lie near a distant checkpoint besides. The limits lie
between. Full-batch gradient descent with large steps does oscillate, by up to two per cent of the weights: `FLOOR` and
`SHARE` keep that out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .geometry import Floats

STRONG, WEAK = 3.0, 1.5
NEARER, NEAREST = 3.0, 6.0
FLOOR, SHARE = 0.05, 0.1


@dataclass(frozen=True)
class Detour:
    """Positions that leave the path: how far (`out`) while its ends are only `bridge` apart."""

    positions: tuple[int, ...]
    out: float
    bridge: float


def detours_in(distances: Floats, floor: float) -> list[Detour]:
    """Return the detours in a matrix of distances; those shorter than `floor` do not count.

    The ends of a path have one neighbour: they are out of it when they lie much nearer to a distant checkpoint.
    """
    found: list[Detour] = []
    count, anchor = len(distances), 0
    while anchor < count - 2:
        detour = _behind(distances, anchor, floor)
        if detour is not None:
            found.append(detour)
        anchor = max(anchor, detour.positions[-1] if detour else 0) + 1
    found = list({detour.positions: detour for detour in found}.values())
    out = {position for detour in found for position in detour.positions}
    inner = [position for position in range(count) if position not in out]
    if len(inner) > 3:
        ends = [*_end(distances, inner, floor), *_end(distances, inner[::-1], floor)]
        if len(ends) == 2 and max(end.out for end in ends) >= NEARER * float(distances[inner[0], inner[-1]]):
            ends = [max(ends, key=lambda end: end.out)]  # each lies near the other, so one of them is at home
        found += ends
    return sorted(found, key=lambda detour: detour.positions)


def _behind(distances: Floats, anchor: int, floor: float) -> Detour | None:
    """Return the shortest detour that begins right behind the anchor."""
    count, first = len(distances), anchor + 1
    jump = float(distances[anchor, first])
    if jump < floor:
        return None
    for last in range(first, min(first + count // 2, count - 1)):
        bridge = float(distances[anchor, last + 1])
        out = min(jump, float(distances[last, last + 1]))
        if out < floor or out < bridge:
            continue
        positions = tuple(range(first, last + 1))
        if _is_detour(out, bridge, nearest(distances[list(positions)], positions)[0]):
            end = _misplaced_end(distances, anchor, last + 1) if last > first else None
            if end is None:
                return Detour(positions, out, bridge)
            return Detour((end,), _to_neighbours(distances, end, min), bridge)
    return None


def _is_detour(out: float, bridge: float, near: float) -> bool:
    """Return whether the shape of the path tells, or together with it a distant checkpoint that lies much nearer."""
    return out >= STRONG * bridge or (out >= WEAK * bridge and out >= NEARER * near) or out >= NEAREST * near


def _misplaced_end(distances: Floats, a: int, b: int) -> int | None:
    """Return the end of a long detour which alone is out of place: far from its own neighbours, near the other end."""
    near = NEARER * float(distances[a, b])
    ends = [p for p in (a, b) if p > 0 and _to_neighbours(distances, p, min) >= near]
    return max(ends, key=lambda p: _to_neighbours(distances, p, np.mean)) if ends else None


def _to_neighbours(distances: Floats, position: int, combine: Callable[[list[float]], Any]) -> float:
    beside = (position - 1, position + 1)
    return float(combine([float(distances[position, p]) for p in beside if 0 <= p < len(distances)]))


def _end(distances: Floats, inner: Sequence[int], floor: float) -> list[Detour]:
    end, neighbour, *far = inner
    near = float(distances[end, far].min())
    out = float(distances[end, neighbour])
    return [Detour((end,), out, near)] if out >= floor and out >= NEARER * near else []


def nearest(rows: Floats, positions: Sequence[int]) -> tuple[float, int]:
    """Return the distance from positions to the nearest that is neither among them nor beside them, and which.

    `rows` are the distances from `positions` to everything.
    """
    away = np.median(rows, axis=0)
    away[max(0, positions[0] - 1) : positions[-1] + 2] = np.inf
    return float(away.min()), int(away.argmin())
