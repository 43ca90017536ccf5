"""`ckpt analyze`: run analyzers over a source and write the results file."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from ..errors import OptionError


def split_settings(texts: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return `{"rank": {"k": "8"}}` for `("rank.k=8",)`; raises OptionError for text of another form."""
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        analyzer, dot, option = key.strip().partition(".")
        if not (equals and dot and analyzer and option):
            raise OptionError(f"--set {text!r}: expected ANALYZER.OPTION=VALUE, as in rank.k=8.")
        found.setdefault(analyzer, {})[option] = value
    return found


def complete_plugins(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return entry-point names for shell completion, without importing any plugin."""
    from importlib.metadata import entry_points

    return sorted(e.name for e in entry_points(group="ckpt_tools") if e.name.startswith(incomplete))


def parse_cache_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return what a size says in bytes; what reads it is imported for remote sources only."""
    if value is None:
        return None
    from ..checkpoint.remote.cache import parse_size

    return parse_size(value)


@click.command()
@click.argument("source", type=click.Path())
@click.option(
    "--plugin",
    "-p",
    "plugins",
    multiple=True,
    required=True,
    shell_complete=complete_plugins,
    help="Analyzer to run; repeat for several. `ckpt plugins` lists them.",
)
@click.option(
    "--plugin-file", "plugin_files", multiple=True, type=click.Path(), help="Plugin in Python, or role table in TOML."
)
@click.option("--part", default="", help="Which of several sets of weights in a checkpoint, as in ema.")
@click.option("--steps", help="Steps to take: 0:1000:10, log:50, at:0,1,2, first, last, or a union with commas.")
@click.option("--matrices", multiple=True, help="Only matrices whose name fits this glob, as in 'layers.*.attn.q'.")
@click.option("--set", "settings", multiple=True, metavar="ANALYZER.OPTION=VALUE", help="Set an analyzer's option.")
@click.option("--data", type=click.Path(), help="Text or token ids to run models on (default: the run's probe batch).")
@click.option("--tokens", type=int, help="How many tokens of --data to take.")
@click.option("--sequence", type=int, help="Length of the sequences --data is cut into.")
@click.option("--tokenizer", type=click.Path(), help="Tokenizer file for --data (default: the one beside the model).")
@click.option("--output", "-o", type=click.Path(), default="results.h5", show_default=True, help="Results file.")
@click.option("--force", is_flag=True, help="Start an existing results file afresh instead of extending it.")
@click.option(
    "--cache-size", metavar="SIZE", callback=parse_cache_size, help="Most that copies of remote files take (20GiB)."
)
@click.option("--device", default="cpu", show_default=True, help="Where to compute: auto, cpu, cuda, cuda:N or mps.")
@click.option("--workers", type=click.IntRange(1), help="Processes to compute in (default: 1, with cuda 1 per GPU).")
@click.option(
    "--memory", metavar="SIZE", callback=parse_cache_size, help="Most that all processes take (default: half of free)."
)
@click.option("--scheduler", metavar="ADDRESS", help="Compute on the Dask cluster of this scheduler (tcp://...).")
@click.option("--scheduler-file", type=click.Path(), help="The same, by the file that the scheduler wrote.")
@click.option(
    "--cluster", type=click.Choice(["slurm", "k8s", "ssh", "local"]), help="Start a Dask cluster, and compute there."
)
@click.option("--cluster-config", type=click.Path(), help="TOML file with the keywords of the cluster's launcher.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Give up an analyzer at a checkpoint after this long.")
@click.option("--dry-run", is_flag=True, help="Say how much there is to compute, read and wait for; write nothing.")
@click.option("--watch", is_flag=True, help="Follow a run that is still training, until it ends.")
@click.option("--strict", is_flag=True, help="Stop at the first failure instead of recording it and going on.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object about what was done.")
def analyze(
    source: str,
    plugins: tuple[str, ...],
    settings: tuple[str, ...],
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **how: Any,
) -> int:
    """Run analyzers over SOURCE, a run, a folder of checkpoints or one checkpoint, and write HDF5.

    A results file that exists is extended: only what is missing is computed. What cannot be read or measured is
    recorded with its reason, the rest goes on, and the exit code is 3.

    \b
    ckpt analyze run --plugin rank -o results.h5
    ckpt analyze path/to/model --plugin rank --matrices 'layers.*.attn.*' --set rank.k=16
    """
    from ..engine import analyze as run_analysis
    from .progress import reporter

    data, cluster = data_settings(how), cluster_settings(how)
    if dry_run:
        from .estimate import show_estimate

        return show_estimate(source, plugins, options=split_settings(settings), data=data, as_json=as_json, **how)
    with reporter(quiet=quiet or as_json, label="analyze") as progress, sigterm_as_ctrl_c():
        outcome = run_analysis(
            source, plugins, options=split_settings(settings), data=data, cluster=cluster, on_progress=progress, **how
        )
    _report(outcome, quiet, as_json)
    return 130 if outcome.interrupted else 3 if outcome.failures else 0


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """End in order when a batch system asks for it: what is finished is written."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def data_settings(how: dict[str, Any]) -> dict[str, Any]:
    """Take the settings of --data out of the command's options and return those that were given."""
    found = {name: how.pop(name) for name in ("data", "tokens", "sequence", "tokenizer")}
    given = {name: value for name, value in found.items() if value is not None}
    if given and "data" not in given:
        raise OptionError(f"--{next(iter(given))} goes with --data FILE.")
    paths = {"path": Path(given.pop("data"))} if given else {}
    if "tokenizer" in given:
        paths["tokenizer"] = Path(given.pop("tokenizer"))
    return {**paths, **given}


def cluster_settings(how: dict[str, Any]) -> Any:
    """Take the settings of a cluster out of the command's options and return the `Cluster`, None without any."""
    names = {
        "scheduler": "scheduler",
        "scheduler_file": "scheduler_file",
        "cluster": "kind",
        "cluster_config": "config",
    }
    given = {names[key]: value for key in names if (value := how.pop(key)) is not None}
    if not given:
        return None
    from ..engine.cluster import Cluster

    return Cluster(**given, workers=how["workers"] or 1)


SHOWN_FAILURES = 5


def _report(outcome: Any, quiet: bool, as_json: bool) -> None:
    if as_json:
        import json

        click.echo(json.dumps(outcome.as_dict()))
        return
    for step, name, reason in outcome.failures[:SHOWN_FAILURES]:
        click.echo(f"failed: {name} at step {step}: {reason}", err=True)
    if len(outcome.failures) > SHOWN_FAILURES:
        click.echo(f"... and {len(outcome.failures) - SHOWN_FAILURES} more; the results file lists them all.", err=True)
    if outcome.interrupted:
        click.echo(f"Interrupted: {len(outcome.steps)} of {outcome.planned} checkpoints are in the results.", err=True)
    if not quiet:
        for note in outcome.notes:
            click.echo(f"note: {note}")
        reused = f", {outcome.reused} result(s) known already" if outcome.reused else ""
        click.echo(
            f"{len(outcome.steps)} checkpoint(s), {outcome.matrices} matrices, {', '.join(outcome.analyzers)} "
            f"in {outcome.seconds:.1f} s{reused} -> {outcome.path}"
        )
