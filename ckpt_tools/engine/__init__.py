"""The engine: plan a call, compute what is missing, write one results file."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

from ..analyzer import Analyzer
from ..arrays import CPU
from ..errors import ResultsError
from ..registry import Registry
from ..results import check_target, open_results
from ..results.html import results_html
from .cluster import Cluster
from .device import check_name, resolve, workers_for
from .estimate import Estimate, estimate_work, needs_of
from .journal import Journal, journal_path
from .keys import Keys
from .memory import workers_that_fit
from .plan import Job, Plan
from .run import Progress
from .session import Session, Tally, missing
from .watch import follow


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

    def open(self) -> Any:
        """Return the results as an `xarray.DataTree`, as `ckpt_tools.open_results` does."""
        return open_results(self.path)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: what was done, and the main outputs with small curves."""
        done = f"{len(self.steps)} checkpoint(s), {self.matrices} matrices, {', '.join(self.analyzers)}"
        failed = f", {len(self.failures)} failure(s)" if self.failures else ""
        return results_html(self.path, f"{done}{failed} in {self.seconds:.1f} s: {self.path}")


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
    workers: int | None = None,
    memory: int | None = None,
    device: str = CPU,
    timeout: float | None = None,
    strict: bool = False,
    force: bool = False,
    cache_size: int | None = None,
    part: str = "",
    watch: bool = False,
    cluster: Any = None,
    on_progress: Progress = lambda done, total, detail: None,
) -> Outcome:
    """Run analyzers over a source and write the results file; return what was done.

    `plugins` are names, classes or configured instances; `options` is `{"rank": {"k": 8}}`; `data` are keywords of
    `ckpt_tools.data.DataSource`. A results file that exists is extended: only what is missing is computed; `force`
    starts afresh. What cannot be read or measured is recorded and the rest goes on, unless `strict`. `memory` are the
    bytes that all processes together may take (default: half of what is free); as many of the `workers` are started as
    fit (default: one, or one for each GPU of `device` "cuda"). `device` is "cpu", "cuda", "cuda:N", "mps" or "auto", a
    GPU where CUDA finds one. `cache_size` bounds in bytes the copies of remote files that cannot be read in parts;
    `part` chooses among several sets of weights in each checkpoint, such as "ema". `watch` follows a run that is still
    training until it ends. `cluster` is a `Cluster` or a connected `distributed.Client`: its workers compute then, each
    within `memory` (default: half of its limit). Raises a CkptError for anything the caller can mend, before the long
    work where possible.
    """
    started = time.monotonic()
    job = _job(source, plugins, options, steps, matrices, plugin_files, data, timeout, cache_size, part, device)
    workers = _workers(workers, job, here=cluster is None)
    target = _target(Path(output), force)
    plans = follow(job, registry) if watch else iter([(job.plan(registry), True)])
    elsewhere = cluster is not None
    rounds = ((plan, cache(partial(_fitted, plan, workers, memory, elsewhere)), last) for plan, last in plans)
    first = next(rounds)
    if not journal_path(target).exists():  # what is refused leaves no journal behind
        first[1]()
    with _client(cluster) as client, Journal(target, fresh=force) as journal:
        total = Tally()
        session = None
        try:
            for plan, fit, last in chain([first], rounds):
                session = Session(plan, journal, target, fit, strict=strict, client=client)
                total.add(session.run(on_progress, last=last))
                if total.interrupted:
                    break
        except KeyboardInterrupt:  # while waiting for more
            total.interrupted = True
        if session is None:
            raise KeyboardInterrupt
        session.tally = total.without({a.name: set(journal.steps(a.name).tolist()) for a in session.plan.analyzers})
        return _outcome(session, Path(output), time.monotonic() - started)


def preview(
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
    workers: int | None = None,
    memory: int | None = None,
    device: str = CPU,
    force: bool = False,
    cache_size: int | None = None,
    part: str = "",
) -> Estimate:
    """Return what `analyze` with the same arguments would do; takes some seconds to measure how fast it would be.

    Writes no results. Raises the same errors as `analyze` before its long work.
    """
    job = _job(source, plugins, options, steps, matrices, plugin_files, data, None, cache_size, part, device)
    workers = _workers(workers, job)
    target = _target(Path(output), force)
    plan = job.plan(registry)
    if journal_path(target).exists() and not force:
        with Journal(target) as journal:
            wanted = missing(plan, Keys(plan, journal))
    else:
        wanted = dict.fromkeys(range(len(plan.steps)), tuple(a.name for a in plan.analyzers))
    return estimate_work(plan, wanted, workers=workers, memory=memory)


def _job(
    source: str | Path,
    plugins: Iterable[str | type[Analyzer] | Analyzer],
    options: Mapping[str, Mapping[str, Any]] | None,
    steps: str | None,
    matrices: Sequence[str],
    plugin_files: Iterable[str | Path],
    data: Mapping[str, Any] | None,
    timeout: float | None,
    cache_size: int | None,
    part: str,
    device: str,
) -> Job:
    check_name(device)
    files = tuple(map(str, plugin_files))
    chosen = str(source), tuple(plugins), options or {}, steps, tuple(matrices), files, data or {}
    return Job(*chosen, timeout, cache_size, part, device=device)


def _workers(asked: int | None, job: Job, here: bool = True) -> int:
    """Return how many processes to compute in; OptionError when that is `here`, and the device is not."""
    if here:
        resolve(job.device)
    return asked or (workers_for(job.device) if here else 1)


@contextmanager
def _client(cluster: Any) -> Iterator[Any]:
    """Yield the client of a cluster; None without one. A client that was given stays open."""
    if isinstance(cluster, Cluster):
        with cluster.client() as client:
            yield client
    else:
        yield cluster


def _fitted(plan: Plan, workers: int, memory: int | None, elsewhere: bool) -> tuple[int, int]:
    """Return how many processes fit and each one's share of the memory; workers elsewhere judge for themselves."""
    if elsewhere:
        return workers, memory or 0
    needs, _ = needs_of(plan, range(len(plan.steps)))
    return workers_that_fit(memory, workers, needs.least)


def _outcome(session: Session, output: Path, seconds: float) -> Outcome:
    store, tally = session.store, session.tally
    findings = [f"{f.severity}: {f.message}" for f in store.findings() if f.severity != "note"]
    return Outcome(
        output,
        session.steps(),
        len(session.plan.steps),
        [a.name for a in session.plan.analyzers],
        len(store.facts.get("matrices", [])),
        [*store.facts.get("notes", []), *findings],
        seconds,
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
