"""One pass over a trajectory: each checkpoint is opened once and shown to every analyzer of the call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ..analyzer import Analyzer, reference_kinds
from ..checkpoint import Checkpoint, Skip
from ..layouts import Resolved
from ..results import Record, check
from ..view import View
from ..weights import Lazy, Weights
from .plan import Plan

Progress = Callable[[int, int, str], None]

_BACK = {"previous": 1, "before_previous": 2}


@dataclass
class Pass:
    """What one pass found: records per analyzer, what each checkpoint was, and what was left out."""

    records: dict[str, list[Record]]
    hashes: dict[int, str] = field(default_factory=dict)
    paths: dict[int, str] = field(default_factory=dict)
    skipped: dict[str, Skip] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    dtypes: dict[str, None] = field(default_factory=dict)
    matrices: dict[str, None] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    family: str = ""
    interrupted: bool = False


class Runner:
    """Executes a plan step by step; reference checkpoints stay open only as long as they are needed."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.found = Pass({a.name: [] for a in plan.analyzers})
        self._open: dict[int, tuple[Weights, Resolved]] = {}

    def run(self, on_progress: Progress) -> Pass:
        """Return the pass; Ctrl-C ends it after the last whole checkpoint."""
        steps = self.plan.steps
        try:
            for done, step in enumerate(steps):
                on_progress(done, len(steps), f"step {step}")
                self._one(done)
            on_progress(len(steps), len(steps), "")
        except KeyboardInterrupt:
            self.found.interrupted = True
        finally:
            self.close()
        return self.found

    def _one(self, position: int) -> None:
        step = self.plan.steps[position]
        weights, resolved = self.weights_of(step)
        records = {a.name: self.record_of(a, position) for a in self.plan.analyzers}
        self._note(weights.checkpoint, resolved, step)
        for name, record in records.items():
            self.found.records[name].append(record)
        self.close(keep=self._kept(position))

    def record_of(self, analyzer: Analyzer, position: int) -> Record:
        """Return what an analyzer gives for the checkpoint at a position of the plan, checked."""
        step = self.plan.steps[position]
        kinds = reference_kinds(analyzer)
        references = Lazy(kinds, lambda kind: self._reference(analyzer, kind, position), "reference checkpoint")
        view = self._view(analyzer, step, references)
        return check(analyzer, analyzer.analyze(view), f"step {step} of {self.plan.trajectory.path}", step=step)

    def _reference(self, analyzer: Analyzer, kind: str, position: int) -> View:
        at = {"first": 0, "last": -1}.get(kind)
        return self._view(analyzer, self.plan.steps[max(position - _BACK[kind], 0) if at is None else at])

    def _view(self, analyzer: Analyzer, step: int, references: Mapping[str, View] | None = None) -> View:
        weights, resolved = self.weights_of(step)
        return View(weights, analyzer, step=step, config=resolved.config, seed=self.plan.seed, references=references)

    def weights_of(self, step: int) -> tuple[Weights, Resolved]:
        """Return the weights of a step, opening its checkpoint if it is not open."""
        if step not in self._open:
            checkpoint = self.plan.trajectory.checkpoint(step)
            resolved = self.plan.layouts.of(checkpoint)
            self._open[step] = (Weights(checkpoint, resolved.layout, resolved.names), resolved)
        return self._open[step]

    def _kept(self, position: int) -> Iterator[int]:
        """Yield the steps that later checkpoints refer to."""
        kinds = {kind for analyzer in self.plan.analyzers for kind in reference_kinds(analyzer)}
        back = max((_BACK[kind] for kind in kinds if kind in _BACK), default=0)
        yield from self.plan.steps[max(position + 1 - back, 0) : position + 1]
        yield from (self.plan.steps[i] for kind, i in (("first", 0), ("last", -1)) if kind in kinds)

    def close(self, keep: Iterable[int] = ()) -> None:
        """Close all open checkpoints but those of the steps to keep."""
        kept = set(keep)
        for step in [s for s in self._open if s not in kept]:
            self._open.pop(step)[0].checkpoint.close()

    def _note(self, checkpoint: Checkpoint, resolved: Resolved, step: int) -> None:
        found, layout = self.found, resolved.layout
        found.paths[step] = str(checkpoint.path)
        found.hashes[step] = checkpoint.content_hash([layout.matrices[n].tensor for n in resolved.names])
        found.matrices.update(dict.fromkeys(resolved.names))
        found.dtypes.update(dict.fromkeys(layout.matrices[n].dtype for n in resolved.names))
        found.aliases.update(layout.aliases)
        found.skipped.update({s.name: s for s in [*checkpoint.skipped, *layout.skipped]})
        if resolved.family is None:
            found.notes["no family recognised: every matrix goes under its own tensor name, without a role"] = None
        else:
            found.family = resolved.family.name
