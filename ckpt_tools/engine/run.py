"""Compute units: each checkpoint is opened once and shown to every analyzer that wants it.

Checkpoints of one layout go in blocks: `batched` analyzers see a block at once, and small spectra are computed for the
whole block, which spares the cost of a call per matrix. What is stored is the same whatever the block size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..analyzer import Analyzer, reference_kinds
from ..checkpoint import Checkpoint
from ..errors import CkptError, SourceError
from ..layouts import Resolved
from ..results import Record, check, check_batch
from ..verify.sighting import Sighting
from ..view import BatchView, View
from ..weights import Block, Cache, Lazy, Weights
from .ahead import Ahead
from .device import described
from .limits import time_limit
from .memory import keep_freed
from .plan import Plan
from .work import cost

if TYPE_CHECKING:
    from ..host import ModelHost

MAX_BLOCK = 16
_BACK = {"previous": 1, "before_previous": 2}

Wanted = Mapping[int, Sequence[str]]
Tick = Callable[[int, float, str], None]
"""Told within a checkpoint: its step, the share of its work that is done, and the weight being measured."""


@dataclass
class StepResult:
    """What became of one checkpoint: records and failures by analyzer, its content hash, and facts of its layout."""

    step: int
    path: str
    hash: str = ""
    records: dict[str, Record] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    errors: list[CkptError] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    sighting: str = ""


class Runner:
    """Computes units of a plan; reference checkpoints stay open only as long as they are needed."""

    def __init__(self, plan: Plan, tick: Tick | None = None, ahead: Callable[[Weights], Ahead] | None = None) -> None:
        self.plan = plan
        self._tick, self._ahead = tick, ahead
        self._cache = Cache(plan.job.budget.cache(plan.runs_models))
        self._open: dict[int, tuple[Weights, Resolved]] = {}
        self._hosts: dict[int, ModelHost] = {}
        self._told: set[int] = set()

    def run(self, wanted: Wanted) -> Iterator[StepResult]:
        """Yield the result of each position, for the analyzers wanted there, in order; close when done."""
        keep_freed()
        try:
            for block in self._blocks(sorted(wanted)):
                together = self._batched(block, wanted)
                for position in block:
                    yield self._step(position, wanted[position], together.get(position, {}))
                self.close(keep=self._kept(block[-1]))
        finally:
            self.close()

    def _blocks(self, positions: Sequence[int]) -> Iterator[list[int]]:
        """Yield positions in blocks that share a layout and fit the budget; their weights are open if they can be."""
        at = 0
        while at < len(positions):
            block = [positions[at]]
            first = self._try_open(positions[at])
            if first is not None:
                size = max(1, first[0].nbytes)
                room = self.plan.job.budget.block(self.plan.runs_models)
                stop = at + max(1, min(MAX_BLOCK, room // size))
                for position in positions[at + 1 : stop]:
                    other = self._try_open(position)
                    if other is None or other[1] is not first[1]:
                        break
                    block.append(position)
                Block([self.weights_of(self.plan.steps[p])[0] for p in block])
            yield block
            at += len(block)

    def _try_open(self, position: int) -> tuple[Weights, Resolved] | None:
        try:
            return self.weights_of(self.plan.steps[position])
        except SourceError:
            return None

    def _batched(self, block: Sequence[int], wanted: Wanted) -> dict[int, dict[str, Record]]:
        """Return the records of batched analyzers; one that fails on a block is tried again step by step."""
        found: dict[int, dict[str, Record]] = {position: {} for position in block}
        for analyzer in (a for a in self.plan.analyzers if a.batched):
            members = [p for p in block if analyzer.name in wanted[p]]
            if len(members) < 2:
                continue
            steps = [self.plan.steps[p] for p in members]
            where = f"steps {steps[0]} to {steps[-1]} of {self.plan.trajectory.path}"
            try:
                raw = analyzer.analyze(BatchView([self._view_at(analyzer, p) for p in members]))
                records = check_batch(analyzer, raw, where, steps=steps)
            except Exception:  # whatever it is, going step by step finds the step it belongs to and reports it
                continue
            for position, record in zip(members, records, strict=True):
                found[position][analyzer.name] = record
        return found

    def _step(self, position: int, names: Sequence[str], known: Mapping[str, Record]) -> StepResult:
        step = self.plan.steps[position]
        result = StepResult(step, str(self.plan.path_of(step)), records=dict(known))
        try:
            weights, resolved = self.weights_of(step)
        except SourceError as error:
            result.errors.append(error)
            result.failures = {name: str(error) for name in names}
            return result
        weights.ahead = ahead = self._ahead(weights) if self._ahead is not None else None
        waiting = [a for a in self.plan.analyzers if a.name in names and a.name not in known]
        try:
            for number, analyzer in enumerate(waiting):
                weights.watch = self._watch(weights, number, len(waiting))
                self._attempt(analyzer, position, result)
        finally:
            weights.watch = weights.ahead = None
            if ahead is not None:
                ahead.close()
        try:
            result.hash = weights.content_hash(everything=self.plan.runs_models)
            result.sighting = Sighting.of(
                weights.checkpoint,
                sorted(weights.seen_tensors()),
                unit=self.plan.trajectory.unit,
                nonfinite=weights.nonfinite_tensors(),
            ).text()
        except SourceError as error:
            result.errors.append(error)
            result.records.clear()
            result.failures = {name: str(error) for name in names}
        if id(resolved) not in self._told:
            self._told.add(id(resolved))
            result.facts = {**_layout_facts(weights.checkpoint, resolved), "devices": [described(self.plan.device)]}
        result.facts.setdefault("skipped", {}).update({s.name: s.reason for s in weights.checkpoint.skipped})
        return result

    def _watch(self, weights: Weights, number: int, count: int) -> Callable[[str], None] | None:
        """Return what turns the weights an analyzer touches into a share of the work at this checkpoint."""
        tick, step, layout = self._tick, weights.checkpoint.step, weights.layout.matrices
        if tick is None:
            return None
        total = sum(cost(layout[name].shape) for name in weights.names) or 1.0
        seen: set[str] = set()
        done = 0.0

        def touched(name: str) -> None:
            nonlocal done
            tick(step, (number + done / total) / count, name)
            if name in layout and name not in seen:
                seen.add(name)
                done += cost(layout[name].shape)

        return touched

    def _attempt(self, analyzer: Analyzer, position: int, result: StepResult) -> None:
        try:
            with time_limit(self.plan.job.timeout):
                result.records[analyzer.name] = self.record_of(analyzer, position)
        except CkptError as error:
            result.errors.append(error)
            result.failures[analyzer.name] = str(error)
        except Exception as error:  # a stranger's analyzer may raise anything; it is recorded and the rest goes on
            result.failures[analyzer.name] = f"{type(error).__name__}: {error}"

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
        return self._view(analyzer, self.plan.steps[reference_position(kind, position, len(self.plan.steps))])

    def _view(self, analyzer: Analyzer, step: int, references: Mapping[str, View] | None = None) -> View:
        weights, resolved = self.weights_of(step)
        host = self._host(resolved) if analyzer.needs != "weights" else None
        return View(
            weights, analyzer, step=step, config=resolved.config, seed=self.plan.seed, references=references, host=host
        )

    def refuse(self) -> None:
        """Raise SourceError when an analyzer needs a model that cannot be run; opens the first checkpoint only."""
        for analyzer in (a for a in self.plan.analyzers if a.needs != "weights"):
            try:
                _, resolved = self.weights_of(self.plan.steps[0])
            except SourceError:
                return
            reason = self._host(resolved).refusal(analyzer.needs, batch=not analyzer.files())
            if reason:
                raise SourceError(f"Analyzer {analyzer.name!r} cannot run on {self.plan.trajectory.path}: {reason}.")

    def _host(self, resolved: Resolved) -> ModelHost:
        if id(resolved) not in self._hosts:
            from ..host import ModelHost

            self._hosts[id(resolved)] = ModelHost(
                resolved.family, resolved.config, self.plan.batch_source, device=self.plan.device
            )
        return self._hosts[id(resolved)]

    def weights_of(self, step: int) -> tuple[Weights, Resolved]:
        """Return the weights of a step, opening its checkpoint if it is not open."""
        if step not in self._open:
            checkpoint = self.plan.trajectory.checkpoint(step)
            resolved = self.plan.layouts.of(checkpoint)
            weights = Weights(checkpoint, resolved.layout, resolved.names, cache=self._cache, device=self.plan.device)
            seen = (weights.info(name).tensor for name in (*weights.names, *weights.vector_names))
            checkpoint.expect(checkpoint.tensors if self.plan.runs_models else set(seen))
            self._open[step] = (weights, resolved)
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


def reference_position(kind: str, position: int, count: int) -> int:
    """Return the position of a reference checkpoint: at the start, "previous" is the first one itself."""
    at = {"first": 0, "last": count - 1}.get(kind)
    return max(position - _BACK[kind], 0) if at is None else at


def _layout_facts(checkpoint: Checkpoint, resolved: Resolved) -> dict[str, Any]:
    layout = resolved.layout
    return {
        "family": resolved.family.name if resolved.family else "",
        "matrices": list(resolved.names),
        "dtypes": sorted({layout.matrices[n].dtype for n in resolved.names}),
        "aliases": dict(layout.aliases),
        "skipped": {s.name: s.reason for s in layout.skipped},
        "notes": [*layout.notes] if resolved.family else [NO_FAMILY, *layout.notes],
    }


NO_FAMILY = "no family recognised: every matrix goes under its own tensor name, without a role"

Progress = Callable[[float, int, str], None]
"""Told what is done of how many checkpoints, the last one in part, and where that is."""
