"""The engine: plan a call, make one pass over the trajectory, write one results file."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..analyzer import Analyzer
from ..registry import Registry, load_registry
from ..results import Group, Series, check_summary, check_target, write_results
from ..results import Trajectory as TrajectoryFacts
from .plan import Plan, make_plan
from .run import Pass, Progress, Runner


@dataclass(frozen=True)
class Outcome:
    """What `analyze` did: where the results are, the steps in them, how many were planned, and what to know."""

    path: Path
    steps: list[int]
    planned: int
    analyzers: list[str]
    matrices: int
    notes: list[str]
    seconds: float
    interrupted: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON-able data."""
        return {**asdict(self), "path": str(self.path)}


def analyze(
    source: str | Path,
    plugins: Iterable[str | type[Analyzer] | Analyzer],
    *,
    output: str | Path = "results.h5",
    steps: str | None = None,
    matrices: Sequence[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    plugin_files: Iterable[str | Path] = (),
    registry: Registry | None = None,
    force: bool = False,
    on_progress: Progress = lambda done, total, detail: None,
) -> Outcome:
    """Run analyzers over a source and write the results file; return what was done.

    `plugins` are names, classes or configured instances; `options` is `{"rank": {"k": 8}}`; `steps` and `matrices` are
    as on the command line. Raises a CkptError for anything the caller can mend, before the long work where possible.
    """
    started = time.monotonic()
    target = check_target(output, force)
    plan = make_plan(
        source, plugins, registry or load_registry(plugin_files), steps=steps, matrices=matrices, options=options
    )
    found = Runner(plan).run(on_progress)
    done = sorted(found.hashes)
    if done:
        write_results(target, _groups(plan, found), _root(plan, found), trajectory=_facts(plan, found), force=force)
    return Outcome(
        Path(output),
        done,
        len(plan.steps),
        [a.name for a in plan.analyzers],
        len(found.matrices),
        list(found.notes),
        time.monotonic() - started,
        found.interrupted,
    )


def _groups(plan: Plan, found: Pass) -> list[Group]:
    return [_group(plan, found, analyzer) for analyzer in plan.analyzers]


def _group(plan: Plan, found: Pass, analyzer: Analyzer) -> Group:
    series = Series(analyzer.outputs, found.records[analyzer.name])
    summary = check_summary(analyzer, analyzer.summarize(series), f"the summary of {plan.trajectory.path}")
    facts: dict[str, Any] = {}
    for plugin in plan.registry.plugins:
        if type(analyzer) in plugin.analyzers:
            facts = {"distribution": plugin.distribution, "distribution_version": plugin.version}
    skipped = [(s.name, s.reason) for s in found.skipped.values()]
    return Group.of(analyzer, series, summary=summary, skipped=skipped, **facts)


def _root(plan: Plan, found: Pass) -> dict[str, Any]:
    run = plan.trajectory.run or {}
    return {
        "source": str(plan.trajectory.path),
        "family": found.family,
        "seed": plan.seed,
        "history": shlex.join(["ckpt", *sys.argv[1:]]) if Path(sys.argv[0]).stem == "ckpt" else "ckpt_tools.analyze",
        "storage_dtypes": sorted(found.dtypes),
        "matrix_selection": list(plan.patterns),
        "tied": found.aliases,
        "notes": list(found.notes),
        "skipped_checkpoints": {s.name: s.reason for s in plan.trajectory.skipped},
        "run": {k: run[k] for k in ("family", "task", "task_config", "config", "train", "seed") if k in run},
    }


def _facts(plan: Plan, found: Pass) -> TrajectoryFacts:
    steps = sorted(found.hashes)
    paths = [found.paths[s] for s in steps]
    return TrajectoryFacts(steps, [found.hashes[s] for s in steps], paths, plan.trajectory.metrics(steps))
