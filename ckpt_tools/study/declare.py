"""What a study file declares: runs, analyses, claims, figures, tables and the story around them.

study = Study(
    title="...", paper="arXiv 2402.15958", trained="...", claimed="...",
    runs={"three": Run("mlp", "regression", mini={"std": 1e-3}, paper={...})},
    analyses=[Analysis("condensation")],
    claims=[Claim("neurons align", lambda found: found["three"]["condensation"]("mean_abs_cos")[-1], above=0.95)],
)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .found import Found

PRESETS = ("mini", "paper")
DIRECTIONS = {"at_least": ">=", "at_most": "<=", "above": ">", "below": "<"}


@dataclass(frozen=True)
class Run:
    """One kind of run of a study, trained once for each seed: what `ckpt train FAMILY --task TASK` would train.

    `settings` hold in every preset, `mini` and `paper` are put over them; a run whose settings for a preset are None is
    no part of it. `data` names a text that the user gives with `--data NAME=FILE`, without which the run is skipped.
    """

    family: str
    task: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    mini: Mapping[str, Any] | None = field(default_factory=dict)
    paper: Mapping[str, Any] | None = None
    about: str = ""
    data: str = ""

    def chosen(self, preset: str) -> dict[str, Any] | None:
        """Return the settings of a preset, None when this run is no part of it."""
        own = {"mini": self.mini, "paper": self.paper}[preset]
        return None if own is None else {**self.settings, **own}


@dataclass(frozen=True)
class Analysis:
    """One analyzer on saved runs: its options, which steps, matrices and `runs` (all when empty).

    An option with the value "{run}" gets the run's folder.

    Analyses of one run go into one results file. Another use of the same analyzer needs a `label`: its results are
    then in a file of their own and go by the label instead of the analyzer's name. `data` is as for `analyze`.
    """

    analyzer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    runs: Sequence[str] = ()
    steps: str | None = None
    matrices: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def key(self) -> str:
        """The name its results go by."""
        return self.label or self.analyzer


@dataclass(frozen=True)
class Claim:
    """A number that a paper's claim is about, and the threshold it has to meet; exactly one threshold is given.

    `measure` takes the results of one seed and returns the number, None where what it is about never happened. With
    `over` (such as `statistics.mean`) the claim is about all seeds at once. `control` marks a negative control.
    """

    name: str
    measure: Callable[[Found], float | None]
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    over: Callable[[Sequence[float]], float] | None = None
    control: bool = False

    @property
    def label(self) -> str:
        """What it goes by in results: its name, behind "control:" for a negative control."""
        return f"control: {self.name}" if self.control else self.name

    def limits(self) -> list[tuple[str, float]]:
        """Return the thresholds given, each with its sign; a sound claim has one."""
        return [(sign, limit) for name, sign in DIRECTIONS.items() if (limit := getattr(self, name)) is not None]

    @property
    def direction(self) -> str:
        """The sign between number and threshold: `>=`, `<=`, `>` or `<`."""
        return self.limits()[0][0]

    @property
    def threshold(self) -> float:
        """The number to meet."""
        return float(self.limits()[0][1])

    def holds(self, measured: float) -> bool:
        """Return whether a number meets the threshold; NaN never does."""
        return {
            ">=": measured >= self.threshold,
            "<=": measured <= self.threshold,
            ">": measured > self.threshold,
            "<": measured < self.threshold,
        }[self.direction]


@dataclass(frozen=True)
class Figure:
    """A picture: `draw(figure, found)` fills a matplotlib figure with the results of all seeds that are complete.

    `needs` are the runs without which it is left out.
    """

    name: str
    caption: str
    draw: Callable[[Any, Sequence[Found]], None]
    size: tuple[float, float] = (7.2, 3.2)
    needs: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """A measured table without a threshold: `rows(found)` gives the cells of each row, numbers or texts."""

    title: str
    columns: Sequence[str]
    rows: Callable[[Sequence[Found]], Iterable[Sequence[Any]]]
    needs: Sequence[str] = ()


@dataclass(frozen=True)
class Study:
    """A paper's experiment. `trained`, `claimed` and `shown` are Markdown: the story that the report tells.

    `shown` says what the figures show; it is text, or a function of the results of all seeds that returns it.
    """

    title: str
    paper: str
    trained: str
    claimed: str
    runs: Mapping[str, Run]
    analyses: Sequence[Analysis]
    claims: Sequence[Claim]
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    shown: str | Callable[[Sequence[Found]], str] = ""


def first(mask: Iterable[Any], *, after: int = -1) -> int | None:
    """Return the index of the first true entry behind index `after`, None when there is none."""
    return next((i for i, value in enumerate(mask) if i > after and value), None)
