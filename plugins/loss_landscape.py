"""The loss over a plane of weight space, and the way of a run through that plane.

The plane goes through the last checkpoint. With `run`, it is spanned by the two principal directions of the run's
checkpoints, as offsets from the last one (Li et al., "Visualizing the Loss Landscape of Neural Nets", 2018, section 7);
without, by the line to the first checkpoint and by a random direction whose every filter is as long as that of the
weights. Both directions are made orthonormal, so coordinates are distances in weight space. A plane shows a run only as
far as the run lies in it: `explained` and `off_plane` say how far that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ckpt_tools import Analyzer, Figure, OptionError, Out, hookimpl, open_trajectory, option, to_numpy

if TYPE_CHECKING:
    from ckpt_tools import View

Floats = NDArray[np.float64]

MOST_BYTES = 2 << 30
"""Most bytes of offsets held to find the plane."""


@dataclass(frozen=True)
class Plane:
    """Orthonormal `directions [2, n]`, places of the checkpoints that span it `[S, 2]`, share of squares `[2]`."""

    directions: Floats
    places: Floats
    explained: Floats

    def axes(self, points: int, margin: float) -> tuple[Floats, Floats]:
        """Return the grid's coordinates along both directions: all places, the origin, and a margin around them.

        From -1 to 1 where a place is not finite.
        """
        spread = np.vstack([self.places, np.zeros((1, 2))])
        if not np.isfinite(spread).all():
            spread = np.array([[-1.0, -1.0], [1.0, 1.0]])
        low, high = spread.min(axis=0), spread.max(axis=0)
        room = np.maximum(high - low, 1e-3 * max(float((high - low).max()), 1e-12)) * margin
        first, second = (np.linspace(low[i] - room[i], high[i] + room[i], points) for i in (0, 1))
        return first, second


class Landscape(Analyzer):
    """The loss around the last checkpoint over a plane, and where every checkpoint lies in that plane."""

    name = "landscape"
    needs = "loss"
    reference = ("first", "last")
    reading = (
        "Training walks through a space of as many dimensions as there are weights. This looks at the two in which the "
        "run moved most, and at the loss there: a wide valley or a narrow one, a straight way down or a bend. What the "
        "run did outside of this plane is not seen; off_plane says how much that is."
    )
    figures = (Figure("loss_map", "landscape", against="coordinate"), Figure("coordinate", lines="axis"))
    outputs: ClassVar[Mapping[str, Out]] = {
        "loss": Out(unit="nat", long_name="Loss on the batch"),
        "coordinate": Out(("axis",), long_name="Place in the plane, from the last checkpoint"),
        "off_plane": Out(long_name="Distance from the plane, over that from the last checkpoint"),
        "explained": Out(("axis",), long_name="Share of the run's squared offsets along each direction"),
        "loss_map": Out(("first", "second"), "nat", "Loss over the plane, at the last checkpoint"),
    }
    run: str = option("", help="Run whose checkpoints span the plane; none: first to last, and a random direction.")
    span: str = option("log:40", help="Steps of that run to span it with, as for --steps.")
    points: int = option(21, help="Points of the map along each direction.", min=3, max=201)
    margin: float = option(0.3, help="Room around the run, as a share of its extent.", min=0.0, max=10.0)
    params: tuple[str, ...] = option((), help="Only parameters whose role or name fits: layers.0.*; none: all.")

    def analyze(self, view: View) -> Mapping[str, Any]:
        """Return the checkpoint's place and loss, and at the last checkpoint the map."""
        last = view.references["last"]
        model, end = view.model(dtype="float64"), last.model(dtype="float64")
        names = tuple(end.select(self.params))
        origin = _flat(end.parameters(), names)
        plane = self._plane(view, names, origin)
        offset = _flat(model.parameters(), names) - origin
        place = plane.directions @ offset
        size = float(np.linalg.norm(offset))
        axes = plane.axes(self.points, self.margin)
        seen = view.step == last.step
        return {
            "axis": ["first", "second"],
            "first": axes[0],
            "second": axes[1],
            "loss": float(model.loss(view.batch())),
            "coordinate": place,
            "off_plane": float(np.linalg.norm(offset - place @ plane.directions)) / size if size else 0.0,
            "explained": plane.explained,
            "loss_map": self._map(view, names, plane, axes) if seen else np.full((self.points, self.points), np.nan),
        }

    def _plane(self, view: View, names: tuple[str, ...], origin: Floats) -> Plane:
        if self.run:
            return _spanned(self.run, self.span, names, origin.tobytes())
        first, last = view.references["first"], view.references["last"]
        return _drawn(first, last, names, origin)

    def _map(self, view: View, names: tuple[str, ...], plane: Plane, axes: tuple[Floats, Floats]) -> Floats:
        import torch

        from .landscape import landscape

        model, batch = view.model(dtype="float64"), view.batch()
        params = {name: model.parameters()[name] for name in names}
        sizes = [p.numel() for p in params.values()]
        directions = []
        for flat in plane.directions:
            parts = torch.split(torch.from_numpy(flat).to(model.device), sizes)
            directions.append({name: part.view_as(params[name]) for name, part in zip(names, parts, strict=True)})
        return landscape(lambda at: float(model.loss(batch, tensors=at)), params, directions, axes)


def _flat(params: Mapping[str, Any], names: tuple[str, ...]) -> Floats:
    return np.concatenate([to_numpy(params[name]).astype(np.float64).ravel() for name in names])


@lru_cache(maxsize=1)
def _spanned(run: str, span: str, names: tuple[str, ...], end: bytes) -> Plane:
    """Return the principal plane of a run's checkpoints around weights `end`; kept, as every step needs it."""
    from .landscape import principal_directions

    trajectory, origin = open_trajectory(Path(run)), np.frombuffer(end)
    steps = trajectory.select(span)
    if len(steps) * len(end) > MOST_BYTES:
        raise OptionError(
            f"landscape.span takes {len(steps)} steps of {len(origin)} weights; take fewer, or set params."
        )
    offsets = np.empty((len(steps), len(origin)))
    for row, step in zip(offsets, steps, strict=True):
        with trajectory.checkpoint(step) as checkpoint:
            if not set(names) <= set(checkpoint.tensors) or sum(checkpoint.tensors[n].size for n in names) != len(
                origin
            ):
                raise OptionError(
                    f"landscape.run: step {step} of {run} has other weights; name the run that is analyzed."
                )
            np.concatenate([checkpoint.read(name).ravel() for name in names], out=row, casting="same_kind")
        row -= origin
    directions, places, explained = principal_directions(offsets)
    return Plane(directions, places, explained)


def _drawn(first: View, last: View, names: tuple[str, ...], origin: Floats) -> Plane:
    """Return the plane of the line between two checkpoints and a random direction, the same at every step."""
    from .landscape import filter_normalised

    end = last.model(dtype="float64")
    line = _flat(first.model(dtype="float64").parameters(), names) - origin
    chosen = {name: end.parameters()[name] for name in names}
    aside = _flat(filter_normalised(chosen, last.rng, end.transposed), names)
    length = float(np.linalg.norm(line))
    along = line / length if length else np.zeros_like(line)
    aside = np.nan_to_num(aside) - (np.nan_to_num(aside) @ along) * along
    across = float(np.linalg.norm(aside))
    directions = np.stack([along, aside / across if across else aside])
    reach = max(length, across) / 2
    places = np.array([[length, 0.0], [0.0, -reach], [0.0, reach]])
    return Plane(directions, places, np.array([float(length > 0), 0.0]))


@hookimpl
def ckpt_analyzers() -> list[type[Analyzer]]:
    """Offer the analyzer `landscape`."""
    return [Landscape]
