"""Train what is missing, analyze what was saved.

Runs lie in `OUT/runs/RUN/seed-N`, results in `OUT/results/RUN/seed-N.h5`. Training is that of `ckpt train`, analysis
that of `ckpt analyze`: both continue where they were stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from ..engine import Outcome, analyze
from ..errors import CkptError, RunError, SourceError
from ..registry import Registry
from ..results import read_results
from ..run import is_run
from .declare import Analysis
from .found import TRAJECTORY, Found, RunResults
from .load import Loaded, check_settings

Progress = Callable[[float, int, str], None]
Reporter = Callable[[str], AbstractContextManager[Progress]]


class Interrupted(Exception):
    """Ctrl-C: what is done is kept."""


@dataclass
class Performance:
    """What was done: results of each seed, and by run why it is not there.

    `skipped` are those that data or preset leave out, `failed` those that went wrong. `trained` counts runs that were
    trained now, `known` those that were finished before.
    """

    found: list[Found] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    trained: int = 0
    known: int = 0


@dataclass(frozen=True)
class Stage:
    """Where a study is performed, and with what."""

    loaded: Loaded
    registry: Registry
    out: Path
    preset: str
    data: Mapping[str, Path]
    reporter: Reporter

    def settings(self, run: str, seed: int) -> dict[str, Any] | str:
        """Return all settings given to a run, or why there is no such run."""
        declared = self.loaded.study.runs[run]
        chosen = declared.chosen(self.preset)
        if chosen is None:
            return f"is no part of preset {self.preset}"
        if not declared.data:
            return {**chosen, "seed": seed}
        if declared.data not in self.data:
            return f"needs --data {declared.data}=FILE"
        return {**chosen, "data": str(self.data[declared.data]), "seed": seed}


def perform(
    loaded: Loaded,
    out: Path,
    *,
    preset: str = "mini",
    seeds: Sequence[int] = (0, 1, 2),
    data: Mapping[str, Path] | None = None,
    reporter: Reporter,
) -> Performance:
    """Train and analyze all runs of a study for all seeds; return the results to read.

    Raises Interrupted at Ctrl-C, and a CkptError for what a user can mend before anything is trained. A run that cannot
    be trained or analyzed is recorded with its reason, and the rest goes on.
    """
    registry = loaded.registry()
    check_settings(loaded, preset, registry)
    stage = Stage(loaded, registry, out, preset, _checked(loaded, data or {}), reporter)
    done = Performance()
    for seed in seeds:
        outcomes = {run: _one(stage, run, seed, done) for run in loaded.study.runs}
        absent = {run: outcome for run, outcome in outcomes.items() if isinstance(outcome, str)}
        results = {run: outcome for run, outcome in outcomes.items() if isinstance(outcome, RunResults)}
        done.found.append(Found(seed, results, absent))
    return done


def _checked(loaded: Loaded, data: Mapping[str, Path]) -> Mapping[str, Path]:
    wanted = {run.data for run in loaded.study.runs.values() if run.data}
    for name, path in data.items():
        if name not in wanted:
            asked = f"It reads {', '.join(sorted(wanted))}" if wanted else "It reads no files"
            raise SourceError(f"--data {name}={path}: study {loaded.name} has no such data. {asked}.")
        if not path.is_file():
            raise SourceError(f"--data {name}={path}: no such file.")
    return data


def _one(stage: Stage, run: str, seed: int, done: Performance) -> RunResults | str:
    """Train and analyze one run; return its results, or why there are none."""
    settings = stage.settings(run, seed)
    if isinstance(settings, str):
        done.skipped[run] = settings
        return settings
    try:
        fresh = train(stage, run, seed, settings)
    except CkptError as error:
        done.failed[f"{run}, seed {seed}"] = str(error)
        return f"failed: {error}"
    done.trained += fresh
    done.known += not fresh
    problem, absent = measure(stage, run, seed)
    if problem:
        done.failed[f"{run}, seed {seed}"] = problem
    return RunResults(*result_files(stage, run, seed), settings, absent)


def run_folder(out: Path, run: str, seed: int) -> Path:
    """Return where a run lies."""
    return out / "runs" / run / f"seed-{seed}"


def result_files(stage: Stage, run: str, seed: int) -> tuple[Path, dict[str, Path]]:
    """Return the results file of a run, and those of its labelled analyses by label."""
    folder = stage.out / "results" / run
    labels = [a.label for a in stage.loaded.study.analyses if a.label and run in (a.runs or (run,))]
    return folder / f"seed-{seed}.h5", {label: folder / f"seed-{seed}.{label}.h5" for label in labels}


def train(stage: Stage, run: str, seed: int, settings: Mapping[str, Any]) -> bool:
    """Train a run unless it is finished; return whether there was anything to train.

    Raises RunError when the folder holds a run of other settings.
    """
    declared = stage.loaded.study.runs[run]
    folder = run_folder(stage.out, run, seed)
    note = folder.with_name(f"{folder.name}.json")
    asked = json.dumps({"family": declared.family, "task": declared.task, "settings": settings}, indent=1)
    if is_run(folder) and (not note.is_file() or note.read_text("utf-8") != asked):
        raise RunError(f"{folder} was trained with other settings. Choose another --out, or remove that folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(asked, encoding="utf-8")
    steps: list[int] = []
    with stage.reporter(f"train {run}, seed {seed}") as progress:
        status = stage.registry.family(declared.family).train(
            declared.task, settings, folder, resume=True, on_step=_watch(steps, progress)
        )
    if status != "finished":
        raise Interrupted
    return bool(steps)


def _watch(steps: list[int], progress: Progress) -> Callable[[int, int, Mapping[str, float]], None]:
    every = 50  # a terminal is slower than a step

    def on_step(step: int, last: int, metrics: Mapping[str, float]) -> None:
        if not steps:
            steps.append(step)
        if step % every == 0 or step == last:
            progress(step, last, f"loss {metrics['loss']:.4g}")

    return on_step


def measure(stage: Stage, run: str, seed: int) -> tuple[str, dict[str, str]]:
    """Run the study's analyses on a saved run; return the first failure, "" when there was none, and by the names
    that results go by why there are none."""
    base, labelled = result_files(stage, run, seed)
    base.parent.mkdir(parents=True, exist_ok=True)
    first, absent = "", dict[str, str]()
    for target, analyses in _calls(stage.loaded.study.analyses, run, base, labelled):
        problem, without = _measured(stage, run, seed, target, analyses)
        first = first or problem
        absent |= without
    if first and not base.exists():
        absent[TRAJECTORY] = first
    return first, {name: f"run {run}: {reason}" for name, reason in absent.items()}


def _measured(stage: Stage, run: str, seed: int, target: Path, these: Sequence[Analysis]) -> tuple[str, dict[str, str]]:
    try:
        outcome = _analyzed(stage, run, seed, target, these)
    except CkptError as error:  # nothing at all was measured
        return str(error), {a.key: str(error) for a in these}
    if outcome.interrupted:
        raise Interrupted
    problem = next((f"{name} at step {step}: {reason}" for step, name, reason in outcome.failures), "")
    with read_results(target) as results:
        without = [a for a in these if a.analyzer not in results.groups]
    return problem, {a.key: _failure(a.analyzer, outcome) for a in without}


def _analyzed(stage: Stage, run: str, seed: int, target: Path, analyses: Sequence[Analysis]) -> Outcome:
    one, folder = analyses[0], run_folder(stage.out, run, seed)
    with stage.reporter(f"analyze {run}, seed {seed}") as progress:
        return analyze(
            folder,
            [a.analyzer for a in analyses],
            output=target,
            steps=one.steps,
            matrices=one.matrices,
            data=one.data,
            options={a.analyzer: _placed(a.options, folder) for a in analyses},
            plugin_files=stage.loaded.plugin_files,
            registry=stage.registry,
            force=_from_elsewhere(target, folder),
            on_progress=progress,
        )


def _failure(analyzer: str, outcome: Outcome) -> str:
    step, reason = min((step, reason) for step, name, reason in outcome.failures if name == analyzer)
    return f"{analyzer} failed at every step, at step {step} with {reason}"


def _from_elsewhere(target: Path, run: Path) -> bool:
    """Return whether results there are of a run in another place: the folder was moved, and they start afresh."""
    if not target.exists():
        return False
    with read_results(target) as results:
        return bool(results.attrs.get("source") != str(run))


def _placed(options: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """Return options with the run's folder in place of the text `{run}`, as `stages.run` needs it."""
    return {name: str(run) if value == "{run}" else value for name, value in options.items()}


def _calls(
    analyses: Iterable[Analysis], run: str, base: Path, labelled: Mapping[str, Path]
) -> list[tuple[Path, list[Analysis]]]:
    """Return which analyses go through the checkpoints together: those with equal target, steps, matrices, data."""

    def together(a: Analysis) -> tuple[str, str, str, str]:
        return a.label, a.steps or "", repr(list(a.matrices)), repr(dict(a.data))

    own = sorted((a for a in analyses if run in (a.runs or (run,))), key=together)
    return [(labelled.get(key[0], base), list(members)) for key, members in groupby(own, key=together)]
