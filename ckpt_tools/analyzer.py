"""The analyzer contract: a pure function of one checkpoint with named, dimensioned, unit-bearing outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .options import Options

if TYPE_CHECKING:
    from .results.series import Series

NEEDS = ("weights", "forward", "loss")
REFERENCES = ("first", "previous", "before_previous", "last")
SYMMETRIES = ("scale", "rotation", "sign", "neuron_permutation")
DTYPES = ("f8", "f4", "i8", "i4", "i1", "str")


@dataclass(frozen=True)
class Out:
    """One output: its dimensions beside `step`, its unit (`"1"` when none), what it is, and how it is stored.

    A dimension whose name the analyzer also returns as a key is labelled by those values (`"matrix": [...]`);
    others are numbered from 0. Shorter rows are padded with NaN (floats), -1 (ints) or "" (text).
    `error_of` names the output whose error this one states.
    """

    dims: tuple[str, ...] = ()
    unit: str = "1"
    long_name: str = ""
    dtype: Literal["f8", "f4", "i8", "i4", "i1", "str"] = "f8"
    error_of: str = ""


@dataclass(frozen=True)
class Figure:
    """A default figure of `ckpt plot`: one output, drawn as `kind`; empty: as its dimensions suggest.

    "curves" run over steps, a line for each label of the dimension `lines` and a panel for each cell of the others;
    "heatmap" has steps across and the last dimension up; "profile" runs over the last dimension, a line for each step;
    "map" shows the last two dimensions at a few steps; "scatter" sets the output against the output `against`;
    "landscape" draws a map as contours, and `against` `[step, 2]` as the way over it.
    `at` keeps one label of a dimension. `log` names logarithmic axes: of values or colours ("y") and below ("x").
    """

    output: str
    kind: Literal["", "curves", "heatmap", "profile", "map", "scatter", "landscape"] = ""
    lines: str = ""
    against: str = ""
    at: Mapping[str, Any] = field(default_factory=dict)
    log: Literal["", "x", "y", "xy"] = ""


class Analyzer(Options):
    """Base of all analyzers: declare `name`, `needs`, `outputs`, options; implement `analyze`.

    `needs` is what the view may hand out: "weights" < "forward" < "loss". `reference` asks for a second checkpoint
    as `view.reference`; a tuple of names asks for several, as `view.references["first"]`. With `batched`, arrays of
    `view.matrices()` carry a leading step axis and so do the outputs.
    `invariant_to` names symmetries the conformance kit then tests. `reading` says in plain words what the outputs
    mean, `events` what steps in the summary mean (`{"onset_step": "onset: {label} moves"}`): `ckpt report` shows both.
    `figures` are what `ckpt plot` draws of itself; without any, what the outputs' dimensions suggest.
    """

    version: ClassVar[str] = "1"
    needs: ClassVar[Literal["weights", "forward", "loss"]] = "weights"
    outputs: ClassVar[Mapping[str, Out]] = {}
    reference: ClassVar[str | tuple[str, ...] | None] = None
    batched: ClassVar[bool] = False
    invariant_to: ClassVar[frozenset[str] | set[str]] = frozenset()
    reading: ClassVar[str] = ""
    events: ClassVar[Mapping[str, str]] = {}
    figures: ClassVar[Sequence[Figure]] = ()

    def analyze(self, view: Any) -> Mapping[str, Any]:
        """Return every declared output of one checkpoint, and labels for the dimensions that have them.

        `view` is a `View`, or a `BatchView` when the class is `batched`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define analyze(self, view)")

    def files(self) -> tuple[str, ...]:
        """Return the paths of the files that `analyze` reads by itself, as its options name them.

        Results are computed anew when their content changes, and with such files a model may run without a batch.
        """
        return ()

    def summarize(self, series: Series) -> Mapping[str, Any]:
        """Return facts about the whole trajectory (onsets, stages, cycles) from this analyzer's own outputs.

        Values are numbers, texts or lists of them; they are stored as JSON in the group's `summary` attribute.
        """
        return {}


def reference_kinds(analyzer: Analyzer | type[Analyzer]) -> tuple[str, ...]:
    """Return the names of the reference checkpoints an analyzer declares, none to several."""
    declared = analyzer.reference
    return () if declared is None else (declared,) if isinstance(declared, str) else tuple(declared)


def declaration_faults(cls: type) -> list[str]:
    """Return every fault of an analyzer's declaration, empty when it is sound."""
    if not (isinstance(cls, type) and issubclass(cls, Analyzer)):
        return [f"{cls!r} is not a subclass of ckpt_tools.Analyzer"]
    faults = []
    if not (isinstance(cls.name, str) and cls.name.isidentifier()):
        faults.append(f"name {cls.name!r} is not an identifier")
    if cls.needs not in NEEDS:
        faults.append(f"needs {cls.needs!r} is none of {', '.join(NEEDS)}")
    unknown = [kind for kind in reference_kinds(cls) if kind not in REFERENCES]
    faults += [f"reference {kind!r} is none of {', '.join(REFERENCES)}" for kind in unknown]
    faults += [f"invariant_to {s!r} is none of {', '.join(SYMMETRIES)}" for s in set(cls.invariant_to) - {*SYMMETRIES}]
    if not isinstance(cls.reading, str):
        faults.append(f"reading is {type(cls.reading).__name__}, not a text")
    if not (isinstance(cls.events, Mapping) and all(isinstance(x, str) for pair in cls.events.items() for x in pair)):
        faults.append('events is no mapping from facts of the summary to sentences, as in {"onset_step": "onset"}')
    if cls.analyze is Analyzer.analyze:
        faults.append("analyze(self, view) is not defined")
    if not cls.outputs:
        faults.append("outputs is empty")
    for key, out in cls.outputs.items():
        faults += _out_faults(cls, key, out)
    if not faults:
        faults += [fault for figure in cls.figures for fault in _figure_faults(cls, figure)]
    return faults


# How many dimensions besides `step` a kind of figure takes at least.
PAIRED = ("scatter", "landscape")
FIGURES = {"": 0, "curves": 0, "heatmap": 1, "profile": 1, "map": 2, "scatter": 0, "landscape": 2}


def _figure_faults(cls: type[Analyzer], figure: Any) -> list[str]:
    if not isinstance(figure, Figure):
        return [f"figures holds {figure!r:.60}, not Figure(...)"]
    what, faults = f"figure of {figure.output!r}", []
    unknown = [name for name in (figure.output, figure.against) if name and name not in cls.outputs]
    if unknown:
        return [f"{what}: {unknown[0]!r} is not an output"]
    out = cls.outputs[figure.output]
    if figure.kind not in FIGURES:
        faults.append(f"{what}: kind {figure.kind!r} is none of {', '.join(filter(None, FIGURES))}")
    elif len(out.dims) < FIGURES[figure.kind]:
        faults.append(f"{what}: a {figure.kind} needs {FIGURES[figure.kind]} dimension(s), it has {len(out.dims)}")
    if out.dtype == "str":
        faults.append(f"{what}: texts cannot be drawn")
    if (figure.kind in PAIRED) != bool(figure.against):
        faults.append(f"{what}: kind 'scatter' or 'landscape' and `against` go together")
    elif figure.kind == "scatter" and cls.outputs[figure.against].dims != out.dims:
        faults.append(f"{what}: {figure.against!r} has other dimensions")
    named = [figure.lines] * bool(figure.lines) + list(figure.at)
    faults += [f"{what}: {dim!r} is not one of its dimensions" for dim in named if dim not in out.dims]
    if figure.log not in ("", "x", "y", "xy"):
        faults.append(f"{what}: log {figure.log!r} is none of x, y, xy")
    return faults


def _out_faults(cls: type[Analyzer], key: str, out: Any) -> list[str]:
    if not isinstance(out, Out):
        return [f"output {key!r} is {type(out).__name__}, not Out(...)"]
    faults = []
    if not key.isidentifier():
        faults.append(f"output name {key!r} is not an identifier")
    if isinstance(out.dims, str):
        return [*faults, f"output {key!r}: dims must be a tuple, as in dims=({out.dims!r},)"]
    if key in out.dims or "step" in (key, *out.dims):
        faults.append(f"output {key!r}: a name cannot be both output and dimension, and 'step' is added by the runner")
    faults += [f"output {key!r}: dimension {d!r} is not an identifier" for d in out.dims if not str(d).isidentifier()]
    if len(set(out.dims)) != len(out.dims):
        faults.append(f"output {key!r}: dims repeat")
    if out.dtype not in DTYPES:
        faults.append(f"output {key!r}: dtype {out.dtype!r} is none of {', '.join(DTYPES)}")
    if not out.unit:
        faults.append(f'output {key!r}: unit is empty; use "1" for a pure number')
    if out.error_of and out.error_of not in cls.outputs:
        faults.append(f"output {key!r}: error_of {out.error_of!r} is not an output")
    return faults
