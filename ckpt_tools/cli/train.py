"""`ckpt train`: train a small model on a task and keep its checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptionError, SourceError

if TYPE_CHECKING:
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
@click.option("--dtype", metavar="NAME", help="float32 or float64.")
@click.option("--save", metavar="SCHEDULE", help="Steps to save: every:20, log:50, at:0,1,2, or a union with commas.")
@click.option("--set", "texts", multiple=True, metavar="NAME=VALUE", help="Any setting of model, task or training.")
@click.option("--help-settings", is_flag=True, help="List all settings of this family and task with their defaults.")
@click.option("--resume", is_flag=True, help="Continue the run in --out; start it when there is none.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object about the run.")
def train(
    family: str,
    task: str,
    out: Path | None,
    texts: tuple[str, ...],
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
    """
    from ..registry import load_registry
    from .progress import reporter

    kind = load_registry().family(family)
    declared = kind.settings(task)
    if help_settings:
        click.echo(_settings_json(declared) if as_json else _settings_text(declared))
        return 0
    if out is None:
        raise OptionError("--out is missing: name the run folder to create.")
    values = merged(shortcuts, texts)
    with reporter(quiet=quiet or as_json, label="train") as progress:
        watch = Watch(progress)
        status = kind.train(task, values, out, resume=resume, on_step=watch)
    again = f"ckpt train {family} --task {task} --out {click.format_filename(out)} --resume"
    _report(watch.outcome(out, status), again, quiet, as_json)
    return 130 if status == "interrupted" else 0


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

    def __call__(self, step: int, last: int, metrics: Mapping[str, float]) -> None:
        self.step, self.loss = step, metrics["loss"]
        if self.first is None:
            self.first, self.started = step, self.clock()
        now = self.clock()
        if now - self.shown >= 1 / REPORTS_PER_SECOND or step == last:
            self.shown = now
            self.progress(step, last, f"loss {self.loss:.6g}  {self.speed(now):.0f} steps/s")

    def speed(self, now: float) -> float:
        """Return steps per second since the first step of this call."""
        taken = (self.step or 0) - (self.first or 0)
        return taken / max(now - self.started, 1e-9)

    def outcome(self, out: Path, status: str) -> dict[str, Any]:
        """Return what the report says: run, status, last step, its loss, seconds, number of checkpoints."""
        return {
            "run": str(out),
            "status": status,
            "step": self.step,
            "loss": self.loss,
            "seconds": round(self.clock() - self.started, 3),
            "checkpoints": _count(out),
        }


def _count(out: Path) -> int:
    """Return the number of checkpoints in a run, in folders and in logs."""
    from ..checkpoint import open_trajectory

    try:
        return len(open_trajectory(out))
    except SourceError:
        return 0


def _report(outcome: Mapping[str, Any], again: str, quiet: bool, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(outcome))
    elif outcome["status"] == "interrupted":
        click.echo(f"Interrupted after step {outcome['step']}. Continue with: {again}", err=True)
    elif quiet:
        return
    elif outcome["step"] is None:
        click.echo(f"{outcome['run']} is already finished.")
    else:
        click.echo(
            f"{outcome['step']} steps in {outcome['seconds']:.1f} s, loss {outcome['loss']:.6g}, "
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
        f"  {left:<{width}}  {row['help']} [{' | '.join(row['choices']) if row['choices'] else row['type']}]"
        for left, row in rows
    )


def _text(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default).lower() if default is None or isinstance(default, bool) else str(default)
