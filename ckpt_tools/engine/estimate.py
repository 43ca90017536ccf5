"""What a call would do, before it does it: how much to compute, to read and to keep, and for how long.

The time comes from a calibration of some seconds on the first checkpoint that is missing. A small one is measured
whole, and a few of its successors with it. Of a large one a single matrix of each shape is measured, the cheapest
shapes first; shapes for which there is no time go by the multiplications of their spectra.
"""

from __future__ import annotations

import glob
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

from ..errors import SourceError
from ..layouts import Resolved
from ..weights import Weights
from .device import described, placed, resolve
from .memory import BASE_BYTES, MODEL_BYTES, workers_that_fit
from .plan import Plan
from .run import MAX_BLOCK, Runner, Wanted
from .work import cost

CALIBRATION_SECONDS = 10.0
WHOLE_COST = 2e9
"""Multiplications up to which a checkpoint is measured whole."""
WHOLE_BYTES = 256 << 20
"""Size up to which the model of a checkpoint is run to see how long that takes."""


@dataclass(frozen=True)
class Needs:
    """What one checkpoint asks for: stored bytes to read, bytes of the selected weights in memory, and the least bytes
    a process must have."""

    stored: int
    resident: int
    least: int


@dataclass
class Estimate:
    """What `analyze` would do. `units` are analyzers times checkpoints yet to compute, `known` those in the journal.

    `bytes_to_read` and `bytes_per_checkpoint` are stored bytes, `memory` the budget of all processes, `peak` what they
    are expected to take at most, `device` where they compute, `seconds` the expected time (None when nothing could be
    timed), without the analyzers in `untimed`.
    """

    checkpoints: int
    analyzers: list[str]
    matrices: int
    units: int
    known: int
    bytes_to_read: int
    bytes_per_checkpoint: int
    memory: int
    peak: int
    workers: int
    device: str
    seconds: float | None = None
    untimed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the estimate as JSON-able data."""
        return asdict(self)


def needs_of(plan: Plan, positions: Sequence[int]) -> tuple[Needs, int]:
    """Return what the first readable of these checkpoints needs, and how many matrices are selected in it."""
    runner = Runner(plan)
    try:
        for position in positions:
            try:
                weights, resolved = runner.weights_of(plan.steps[position])
            except SourceError:
                continue
            return _needs(plan, weights, resolved), len(resolved.names)
    finally:
        runner.close()
    return Needs(0, 0, BASE_BYTES), 0


def _needs(plan: Plan, weights: Weights, resolved: Resolved) -> Needs:
    tensors = weights.checkpoint.tensors
    seen = tensors if plan.runs_models else weights.seen_tensors()
    stored = sum(tensors[name].nbytes for name in seen)
    resident = 4 * sum(tensors[name].size for name in seen)
    shapes = [resolved.layout.matrices[name].shape for name in resolved.names]
    largest = max((_working_bytes(shape) for shape in shapes), default=0)
    model = MODEL_BYTES + 2 * resident if plan.runs_models else 0
    return Needs(stored, resident, BASE_BYTES + largest + model)


def _working_bytes(shape: Sequence[int]) -> int:
    """Return the memory of a matrix at work: itself, one to compare it with and two results, and three Gram matrices.

    Spectra alone take less, since large tall matrices are streamed; what an analyzer does beside is not known.
    """
    rows, columns = shape
    return 16 * rows * columns + 24 * min(rows, columns) ** 2


def estimate_work(
    plan: Plan, wanted: Wanted, *, workers: int = 1, memory: int | None = None, calibrate: bool = True
) -> Estimate:
    """Return what computing the wanted analyzers at the wanted positions takes."""
    needs, matrices = needs_of(plan, sorted(wanted) or range(len(plan.steps)))
    fitting, share = workers_that_fit(memory, workers, needs.least)
    plan = replace(plan, job=replace(plan.job, memory=share))
    others = BASE_BYTES if fitting > 1 else 0  # the process that hands out the work
    units = sum(map(len, wanted.values()))
    found = Estimate(
        len(plan.steps),
        [a.name for a in plan.analyzers],
        matrices,
        units,
        len(plan.steps) * len(plan.analyzers) - units,
        needs.stored * len(wanted),
        needs.stored,
        share * fitting + others,
        _peak(plan, needs) * fitting + others,
        fitting,
        described(resolve(plan.job.device)),
        notes=[f"only {fitting} of {workers} workers fit into the memory"] if fitting < workers else [],
    )
    if calibrate and wanted:
        with placed(plan) as here:
            seconds, found.untimed = _seconds(here, wanted, needs)
        found.seconds = None if seconds is None else seconds * len(wanted) / min(fitting, len(wanted))
    elif not wanted:
        found.seconds = 0.0
    return found


def _peak(plan: Plan, needs: Needs) -> int:
    """Return what one process takes at most: itself, the largest matrix at work, and what is kept of a block."""
    budget, models = plan.job.budget, plan.runs_models
    block = max(1, min(MAX_BLOCK, budget.block(models) // max(needs.resident, 1)))
    return needs.least + min(needs.resident * block, budget.cache(models))


def _seconds(plan: Plan, wanted: Wanted, needs: Needs) -> tuple[float | None, dict[str, str]]:
    """Return the seconds of one checkpoint in one process, and the analyzers that are not in it with the reason."""
    untimed: dict[str, str] = {}
    if needs.stored > WHOLE_BYTES:
        models = [a.name for a in plan.analyzers if a.needs != "weights"]
        untimed = dict.fromkeys(models, "its model is too large to be run for an estimate")
        wanted = {p: [n for n in names if n not in untimed] for p, names in wanted.items()}
    runner = Runner(plan)
    first = min(wanted)
    try:
        _, resolved = runner.weights_of(plan.steps[first])
    except SourceError as error:
        return None, dict.fromkeys(wanted[first], str(error))
    finally:
        runner.close()
    matrices = resolved.layout.matrices
    if not any(wanted.values()):
        return None, untimed
    if (plan.runs_models and not untimed) or sum(cost(matrices[n].shape) for n in resolved.names) < WHOLE_COST:
        seconds, failed = _timed_whole(plan, wanted)
    else:
        shapes = Counter(matrices[name].shape for name in resolved.names)
        examples = {matrices[name].shape: name for name in reversed(resolved.names)}
        seconds, failed = _timed_by_shape(plan, first, wanted[first], shapes, examples)
    return seconds, {**untimed, **failed}


def _timed_whole(plan: Plan, wanted: Wanted) -> tuple[float | None, dict[str, str]]:
    """Measure whole checkpoints, those of one block if time allows."""
    failed: dict[str, str] = {}
    some = {position: wanted[position] for position in sorted(wanted)[:MAX_BLOCK]}
    started = last = time.perf_counter()
    laps = []
    for result in islice(Runner(plan).run(some), MAX_BLOCK):
        laps.append(time.perf_counter() - last)
        last = time.perf_counter()
        failed.update(result.failures)
        if last - started > CALIBRATION_SECONDS / 2:
            break
    # The first one also pays for imports.
    return min(sum(laps) / len(laps), sum(laps[1:]) / max(len(laps) - 1, 1) or laps[0]), failed


def _timed_by_shape(
    plan: Plan,
    position: int,
    names: Sequence[str],
    shapes: Mapping[tuple[int, ...], int],
    examples: Mapping[tuple[int, ...], str],
) -> tuple[float | None, dict[str, str]]:
    """Measure one matrix of each shape while there is time, the cheapest first; the rest goes by their cost."""
    failed: dict[str, str] = {}
    total, rate, spent = 0.0, 0.0, 0.0
    for shape in sorted(shapes, key=cost):
        if rate * cost(shape) <= CALIBRATION_SECONDS - spent:
            taken, failed = _timed_alone(plan, position, names, examples[shape])
            spent += taken
            rate = taken / cost(shape)
        total += rate * cost(shape) * shapes[shape]
    return total, failed


def _timed_alone(plan: Plan, position: int, names: Sequence[str], name: str) -> tuple[float, dict[str, str]]:
    job = replace(plan.job, matrices=(glob.escape(name),))
    alone = job.plan(plan.registry, plan.trajectory)
    started = time.perf_counter()
    result = next(Runner(replace(alone, device=plan.device)).run({position: names}))
    return time.perf_counter() - started, result.failures
