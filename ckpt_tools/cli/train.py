"""`ckpt train`: train a small model on a task and keep its checkpoints."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptionError, SourceError
from .sweep import combinations, parse_sweeps

if TYPE_CHECKING:
    from ..family import Family
    from ..options import Option
    from .progress import Progress

REPORTS_PER_SECOND = 10


@click.command()
@click.argument("family")
@click.option("--task", "-t", default="", help="What to learn; leave it out to see which tasks there are.")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Run folder to create.")
@click.option("--steps", metavar="N", help="Updates.")
@click.option("--lr", metavar="RATE", help="Learning rate.")
@click.option("--optimizer", metavar="NAME", help="gd, sgd or adamw.")
@click.option("--seed", metavar="N", help="Decides initial weights, data and order of examples.")
@click.option("--dtype", metavar="NAME", help="float32, float64 or bfloat16.")
@click.option("--device", metavar="NAME", help="auto, cpu or cuda.")
@click.option("--data", metavar="FILE", help="Text to learn, for tasks that take one.")
@click.option("--preset", metavar="NAME", help="Shipped settings, such as mini or paper; what is given here wins.")
@click.option("--save", metavar="SCHEDULE", help="Steps to save: every:20, log:50, at:0,1,2, or a union with commas.")
@click.option("--set", "texts", multiple=True, metavar="NAME=VALUE", help="Any setting of model, task or training.")
@click.option("--sweep", "sweeps", multiple=True, metavar="NAME=VALUES", help="A run in --out for each: seed=0:3.")
@click.option("--help-settings", is_flag=True, help="List all settings of this family and task with their defaults.")
@click.option("--resume", is_flag=True, help="Continue the run in --out; start it when there is none.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object about the run.")
def train(
    family: str,
    task: str,
    out: Path | None,
    texts: tuple[str, ...],
    sweeps: tuple[str, ...],
    help_settings: bool,
    resume: bool,
    quiet: bool,
    as_json: bool,
    **shortcuts: str | None,
) -> int:
    """Train FAMILY on a task and write a run with its checkpoints.

    \b
    ckpt train transformer --task markov --out run
    ckpt train transformer --task markov --set lam=0.2 --lr 0.5 --save log:100 --out run
    ckpt train transformer --task markov --help-settings
    ckpt train transformer --task anchor --preset mini --sweep gamma=0.4,0.65 --sweep seed=0:3 --out runs
    torchrun --nproc-per-node 2 -m ckpt_tools.cli train gpt --task text --data FILE --out run
    """
    from ..registry import load_registry

    kind = load_registry().family(family)
    declared = kind.settings(task)
    values = merged(shortcuts, texts)
    if help_settings:
        shown = kind.settings(task, values["preset"]) if "preset" in values else declared
        click.echo(_settings_json(shown) if as_json else _settings_text(shown))
        return 0
    if out is None:
        raise OptionError("--out is missing: name the run folder to create.")
    quiet = quiet or os.environ.get("RANK", "0") != "0"  # torchrun: the first process speaks for all
    runs = list(combinations(parse_sweeps(sweeps, values, declared))) if sweeps else [("", {})]
    outcomes = []
    for name, chosen in runs:
        folder = out / name if name else out
        outcomes.append(_one(kind, task, {**values, **chosen}, folder, resume, quiet or as_json))
        if not as_json:
            again = _again(family, task, out, sweeps)
            _report(outcomes[-1], again, quiet)
        if outcomes[-1]["status"] == "interrupted":
            break
    if as_json and os.environ.get("RANK", "0") == "0":
        click.echo(json.dumps(outcomes if sweeps else outcomes[0]))
    return 130 if outcomes[-1]["status"] == "interrupted" else 0


def _one(
    kind: type[Family], task: str, values: Mapping[str, str], out: Path, resume: bool, silent: bool
) -> dict[str, Any]:
    from .progress import reporter

    with reporter(quiet=silent, label="train") as progress:
        watch = Watch(progress)
        status = kind.train(task, values, out, resume=resume, on_step=watch)
    return watch.outcome(out, status)


def _again(family: str, task: str, out: Path, sweeps: Iterable[str]) -> str:
    swept = "".join(f" --sweep {text}" for text in sweeps)
    rest = " and the other settings" if swept else ""
    return f"ckpt train {family} --task {task} --out {click.format_filename(out)}{swept} --resume{rest}"


def merged(shortcuts: Mapping[str, str | None], texts: Iterable[str]) -> dict[str, str]:
    """Return settings by name from options such as `--lr 0.1` and from `--set` texts; none may be given twice."""
    found = {name: value for name, value in shortcuts.items() if value is not None}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not (equals and name):
            raise OptionError(f"--set {text!r}: expected NAME=VALUE, as in d_model=32.")
        if name in found:
            raise OptionError(f"Setting {name!r} is given twice: {found[name]} and {value}.")
        found[name] = value.strip()
    return found


class Watch:
    """Counts steps for the progress display, which it bothers only a few times per second."""

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self.progress, self.clock = progress, clock
        self.started = self.shown = clock()
        self.first: int | None = None
        self.step: int | None = None
        self.loss: float | None = None
        self.tokens = 0.0

    def __call__(self, step: int, last: int, metrics: Mapping[str, float]) -> None:
        self.step, self.loss = step, metrics["loss"]
        if self.first is None:
            self.first, self.started = step, self.clock()
        else:
            self.tokens += metrics.get("tokens", 0.0)
        now = self.clock()
        if now - self.shown >= 1 / REPORTS_PER_SECOND or step == last:
            self.shown = now
            tokens = f"  {self.tokens_per_second(now):,.0f} tokens/s" if self.tokens else ""
            self.progress(step, last, f"loss {self.loss:.6g}  {self.speed(now):.0f} steps/s{tokens}")

    def speed(self, now: float) -> float:
        """Return steps per second since the first step of this call."""
        taken = (self.step or 0) - (self.first or 0)
        return taken / max(now - self.started, 1e-9)

    def tokens_per_second(self, now: float) -> float:
        """Return tokens per second since the first step of this call; 0 for tasks without tokens."""
        return self.tokens / max(now - self.started, 1e-9)

    def outcome(self, out: Path, status: str) -> dict[str, Any]:
        """Return what the report says: run, status, last step, its loss, seconds, tokens/s, number of checkpoints."""
        return {
            "run": str(out),
            "status": status,
            "step": self.step,
            "loss": self.loss,
            "seconds": round(self.clock() - self.started, 3),
            "tokens_per_second": round(self.tokens_per_second(self.clock())),
            "checkpoints": _count(out),
        }


def _count(out: Path) -> int:
    """Return the number of checkpoints in a run, in folders and in logs."""
    from ..checkpoint import open_trajectory

    try:
        return len(open_trajectory(out))
    except SourceError:
        return 0


def _report(outcome: Mapping[str, Any], again: str, quiet: bool) -> None:
    if outcome["status"] == "interrupted":
        click.echo(f"Interrupted after step {outcome['step']}. Continue with: {again}", err=True)
    elif quiet:
        return
    elif outcome["step"] is None:
        click.echo(f"{outcome['run']} is already finished.")
    else:
        speed = f" ({outcome['tokens_per_second']:,} tokens/s)" if outcome["tokens_per_second"] else ""
        click.echo(
            f"{outcome['step']} steps in {outcome['seconds']:.1f} s{speed}, loss {outcome['loss']:.6g}, "
            f"{outcome['checkpoints']} checkpoints -> {outcome['run']}"
        )


def _rows(declared: Mapping[str, Option]) -> list[dict[str, Any]]:
    from ..options import describe

    return [
        {"name": name, "default": o.default, "type": describe(o.kind), "choices": o.choices, "help": o.help}
        for name, o in declared.items()
    ]


def _settings_json(declared: Mapping[str, Option]) -> str:
    return json.dumps(_rows(declared), indent=1)


def _settings_text(declared: Mapping[str, Option]) -> str:
    rows = [(f"{row['name']}={_text(row['default'])}", row) for row in _rows(declared)]
    width = max(len(left) for left, _ in rows)
    return "\n".join(
        f"  {left:<{width}}  {row['help']} [{' | '.join(map(str, row['choices'])) if row['choices'] else row['type']}]"
        for left, row in rows
    )


def _text(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default).lower() if default is None or isinstance(default, bool) else str(default)
