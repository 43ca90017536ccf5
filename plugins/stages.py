"""Stages of a run: plateaus, descents and onsets of how far the weights have moved, and of what the run logged.

An analyzer sees weights, not the loss of training. This one measures at each checkpoint the norm of all matrices and
their distance from the first checkpoint, and its summary segments these curves. The loss and other metrics that a
trainer logged are segmented too when `run` names the run's folder: at the checkpoints' steps, no others. How curves are
cut is defined in `stages_segments`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ckpt_tools import Analyzer, Figure, OptionError, Out, Series, hookimpl, nearest, open_trajectory, option

from .stages_segments import Segment, onset, segments, slopes

if TYPE_CHECKING:
    from ckpt_tools import View

__all__ = ["Segment", "Stages", "onset", "segments", "slopes"]


class Stages(Analyzer):
    """Norm of the weights and their distance from the start; plateaus, descents and onsets of these and of metrics."""

    name = "stages"
    needs = "weights"
    reference = "first"
    reading = (
        "Training does not go evenly: a curve rests on a plateau, falls, and rests again. This cuts the curves of a"
        " run into plateaus, descents and rises, each with its first and last step, and says when a curve leaves "
        "its first value for good. The timeline shows them beneath the loss."
    )
    run: str = option("", help="Run folder whose logged metrics are segmented too; none: weights alone.")
    metrics: tuple[str, ...] = option(("loss",), help="Which logged metrics; they must be positive.")
    window: int = option(5, help="Points under which a speed is taken.", min=2)
    pace: float = option(0.5, help="A point moves if faster than so many times the curve's mean speed.", min=0.0)
    least: int = option(3, help="Fewest points of a segment.", min=1)
    flat: float = option(0.01, help="A curve whose logarithm varies less is one plateau.", min=0.0)
    log_steps: bool = option(False, help="Take speeds over ln(step + 1), for logarithmic schedules.")

    figures = (
        Figure("distance"),
        Figure("relative_distance"),
    )
    outputs: ClassVar[Mapping[str, Out]] = {
        "norm": Out((), "1", "Frobenius norm of all matrices together"),
        "distance": Out((), "1", "Frobenius distance of all matrices from the first checkpoint"),
        "relative_distance": Out(
            ("matrix",), "1", "Distance of a matrix from the first checkpoint over its norm there"
        ),
    }

    def analyze(self, view: View) -> Mapping[str, Any]:
        """Return norm and distance of the selected matrices; 0 over 0 counts as 0."""
        names, first = view.matrix_names(), view.reference.matrices()
        parts = np.array([_sizes(matrix, first[name]) for name, matrix in view.matrices().items()]).reshape(-1, 3)
        distance, start = np.sqrt(parts[:, 1]), np.sqrt(parts[:, 2])
        moved = np.divide(distance, start, out=np.where(distance > 0, np.inf, distance), where=start > 0)
        return {
            "matrix": names,
            "norm": np.sqrt(parts[:, 0].sum()),
            "distance": np.sqrt(parts[:, 1].sum()),
            "relative_distance": moved,
        }

    def summarize(self, series: Series) -> Mapping[str, Any]:
        """Return, for each curve, columns `CURVE_kind`, `_start`, `_stop`, `_change`, `_margin`, and `CURVE_onset`."""
        curves = {"norm": series["norm"], "distance": series["distance"], **self._logged(series.steps.tolist())}
        facts: dict[str, Any] = {}
        for name, curve in curves.items():
            facts |= self._facts(name, series.steps.tolist(), curve)
        return facts

    def _logged(self, steps: list[int]) -> dict[str, NDArray[np.float64]]:
        if not self.run:
            return {}
        logged = open_trajectory(Path(self.run)).metrics(steps)
        for name in self.metrics:
            if name not in logged:
                raise OptionError(f"{self.run} logged no metric {name!r}.{nearest(name, logged)}")
        return {name: np.array(logged[name]) for name in self.metrics}

    def _facts(self, name: str, steps: list[int], curve: NDArray[np.float64]) -> dict[str, Any]:
        found = segments(
            steps,
            curve,
            window=self.window,
            pace=self.pace,
            least=self.least,
            flat=self.flat,
            log_steps=self.log_steps,
        )
        return {
            f"{name}_kind": [s.kind for s in found],
            f"{name}_start": [s.start for s in found],
            f"{name}_stop": [s.stop for s in found],
            f"{name}_change": [s.change for s in found],
            f"{name}_margin": [s.margin for s in found],
            f"{name}_onset": onset(steps, curve),
        }


def _sizes(matrix: NDArray[Any], first: NDArray[Any]) -> tuple[float, float, float]:
    """Return squared norm, squared distance from the first, and the first's squared norm."""
    one, other = matrix.astype(np.float64), first.astype(np.float64)
    return float(np.square(one).sum()), float(np.square(one - other).sum()), float(np.square(other).sum())


@hookimpl
def ckpt_analyzers() -> list[type[Analyzer]]:
    """Provide the analyzer `stages`."""
    return [Stages]
