"""One pass over a trajectory: each checkpoint is opened once and shown to every analyzer of the call.

Checkpoints of one layout go in blocks: `batched` analyzers see a block at once, and small spectra are computed for the
whole block, which spares the cost of a call per matrix. What is stored is the same whatever the block size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..analyzer import Analyzer, reference_kinds
from ..checkpoint import Checkpoint, Skip
from ..layouts import Resolved
from ..results import Record, check, check_batch
from ..view import BatchView, View
from ..weights import Block, Lazy, Weights
from .plan import Plan

Progress = Callable[[int, int, str], None]

MAX_BLOCK = 16
BLOCK_BYTES = 64 << 20
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
    """Executes a plan block by block; reference checkpoints stay open only as long as they are needed."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.found = Pass({a.name: [] for a in plan.analyzers})
        self._open: dict[int, tuple[Weights, Resolved]] = {}
        self._noted: set[int] = set()

    def run(self, on_progress: Progress) -> Pass:
        """Return the pass; Ctrl-C ends it after the last whole checkpoint."""
        steps = self.plan.steps
        try:
            for block in self._blocks():
                together = self._batched_records(block)
                for position in block:
                    on_progress(position, len(steps), f"step {steps[position]}")
                    self._finish(position, together.get(position, {}))
                self.close(keep=self._kept(block[-1]))
            on_progress(len(steps), len(steps), "")
        except KeyboardInterrupt:
            self.found.interrupted = True
        finally:
            self.close()
        return self.found

    def _blocks(self) -> Iterator[list[int]]:
        """Yield positions in blocks that share a layout and fit the budget; their weights are open."""
        at, count = 0, len(self.plan.steps)
        while at < count:
            first, resolved = self.weights_of(self.plan.steps[at])
            size = max(1, first.nbytes)
            stop = min(count, at + max(1, min(MAX_BLOCK, BLOCK_BYTES // size)))
            block = [at]
            for position in range(at + 1, stop):
                if self.weights_of(self.plan.steps[position])[1] is not resolved:
                    break
                block.append(position)
            Block([self.weights_of(self.plan.steps[p])[0] for p in block])
            yield block
            at += len(block)

    def _batched_records(self, block: Sequence[int]) -> dict[int, dict[str, Record]]:
        found: dict[int, dict[str, Record]] = {position: {} for position in block}
        for analyzer in (a for a in self.plan.analyzers if a.batched):
            steps = [self.plan.steps[p] for p in block]
            raw = analyzer.analyze(BatchView([self._view_at(analyzer, p) for p in block]))
            where = f"steps {steps[0]} to {steps[-1]} of {self.plan.trajectory.path}"
            for position, record in zip(block, check_batch(analyzer, raw, where, steps=steps), strict=True):
                found[position][analyzer.name] = record
        return found

    def _finish(self, position: int, records: dict[str, Record]) -> None:
        alone = {a.name: self.record_of(a, position) for a in self.plan.analyzers if not a.batched}
        step = self.plan.steps[position]
        self._note(*self.weights_of(step), step)
        for name, record in {**records, **alone}.items():
            self.found.records[name].append(record)

    def record_of(self, analyzer: Analyzer, position: int) -> Record:
        """Return what an analyzer gives for the checkpoint at a position of the plan, checked."""
        step = self.plan.steps[position]
        view = self._view_at(analyzer, position)
        where = f"step {step} of {self.plan.trajectory.path}"
        if analyzer.batched:
            return check_batch(analyzer, analyzer.analyze(BatchView([view])), where, steps=[step])[0]
        return check(analyzer, analyzer.analyze(view), where, step=step)

    def _view_at(self, analyzer: Analyzer, position: int) -> View:
        kinds = reference_kinds(analyzer)
        references = Lazy(kinds, lambda kind: self._reference(analyzer, kind, position), "reference checkpoint")
        return self._view(analyzer, self.plan.steps[position], references)

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
            self._open.pop(step)[0].close()

    def _note(self, weights: Weights, resolved: Resolved, step: int) -> None:
        found, checkpoint = self.found, weights.checkpoint
        found.paths[step] = str(checkpoint.path)
        found.hashes[step] = checkpoint.content_hash(weights.tensor_names())
        found.skipped.update({s.name: s for s in checkpoint.skipped})
        if id(resolved) not in self._noted:
            self._noted.add(id(resolved))
            self._note_layout(checkpoint, resolved)

    def _note_layout(self, checkpoint: Checkpoint, resolved: Resolved) -> None:
        found, layout = self.found, resolved.layout
        found.matrices.update(dict.fromkeys(resolved.names))
        found.dtypes.update(dict.fromkeys(layout.matrices[n].dtype for n in resolved.names))
        found.aliases.update(layout.aliases)
        found.skipped.update({s.name: s for s in layout.skipped})
        if resolved.family is None:
            found.notes["no family recognised: every matrix goes under its own tensor name, without a role"] = None
        else:
            found.family = resolved.family.name
