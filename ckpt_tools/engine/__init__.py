"""The engine: plan a call, compute what is missing, write one results file."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..analyzer import Analyzer
from ..errors import ResultsError
from ..registry import Registry
from ..results import check_target
from .journal import Journal, journal_path
from .plan import Job
from .run import Progress
from .session import Session


@dataclass(frozen=True)
class Outcome:
    """What `analyze` did.

    `steps` are those in the results now, of `planned` that were asked for. `computed` and `reused` count units (one
    analyzer at one step); `failures` lists (step, analyzer, reason).
    """

    path: Path
    steps: list[int]
    planned: int
    analyzers: list[str]
    matrices: int
    notes: list[str]
    seconds: float
    interrupted: bool
    computed: int
    reused: int
    failures: list[tuple[int, str, str]]

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
    data: Mapping[str, Any] | None = None,
    plugin_files: Iterable[str | Path] = (),
    registry: Registry | None = None,
    workers: int = 1,
    timeout: float | None = None,
    strict: bool = False,
    force: bool = False,
    cache_size: int | None = None,
    part: str = "",
    on_progress: Progress = lambda done, total, detail: None,
) -> Outcome:
    """Run analyzers over a source and write the results file; return what was done.

    `plugins` are names, classes or configured instances; `options` is `{"rank": {"k": 8}}`; `data` are keywords of
    `ckpt_tools.data.DataSource`. A results file that exists is extended: only what is missing is computed; `force`
    starts afresh. What cannot be read or measured is recorded and the rest goes on, unless `strict`. `cache_size`
    bounds in bytes the copies of remote files that cannot be read in parts; `part` chooses among several sets of
    weights in each checkpoint, such as "ema". Raises a CkptError for anything the caller
    can mend, before the long work where possible.
    """
    started = time.monotonic()
    job = Job(
        str(source),
        tuple(plugins),
        options or {},
        steps,
        tuple(matrices),
        tuple(map(str, plugin_files)),
        data or {},
        timeout,
        cache_size,
        part,
    )
    target = _target(Path(output), force)
    plan = job.plan(registry)
    with Journal(target) as journal:
        if force:
            journal.clear()
        session = Session(plan, journal, target, workers=workers, strict=strict)
        tally = session.run(on_progress)
        facts = session.store.facts
        findings = [f"{f.severity}: {f.message}" for f in session.store.findings() if f.severity != "note"]
        done = sorted({int(step) for name in session.tally_names() for step in session.store.groups[name]["keys"]})
    return Outcome(
        Path(output),
        done,
        len(plan.steps),
        [a.name for a in plan.analyzers],
        len(facts.get("matrices", [])),
        [*facts.get("notes", []), *findings],
        time.monotonic() - started,
        tally.interrupted,
        tally.computed,
        tally.reused,
        tally.failures,
    )


def _target(output: Path, force: bool) -> Path:
    """Return the results file after the checks that cost nothing; one without its journal cannot be extended."""
    known = journal_path(output.resolve()).exists()
    if output.exists() and not known and not force:
        raise ResultsError(
            f"{output} exists already, and its journal ({journal_path(output).name}) does not, so it cannot be "
            "extended. Add --force to replace it, or name another file with -o."
        )
    return check_target(output, force=True if known else force)
