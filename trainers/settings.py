"""Settings of training: the model's, the task's and the loop's, in one flat namespace.

A name belongs to one of the three, so `--set d_model=32 --set lam=0.2` needs no prefix. Unset model and loop settings
take the task's defaults before their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckpt_tools import Family, Option, OptionError, Options, Schedule, nearest, option

from .presets import preset
from .tasks import Task, task_class


class Loop(Options):
    """How training goes, whatever the model and the task."""

    name = "training"
    steps: int = option(1000, help="Updates; the run has checkpoints from step 0 to this one.", min=0)
    optimizer: str = option("adamw", help="gd uses all examples.", choices=("gd", "sgd", "adamw"))
    lr: float = option(1e-3, help="Learning rate; where it changes, the highest.", min=0.0)
    lr_schedule: str = option("constant", help="Course of lr after warm-up.", choices=("constant", "warmup-cosine"))
    warmup: int = option(0, help="Updates over which lr rises to its value, linearly.", min=0)
    lr_first: float = option(0.0, help="Where warm-up begins, as a share of lr.", min=0.0, max=1.0)
    lr_last: float = option(0.0, help="Where warmup-cosine ends, as a share of lr.", min=0.0, max=1.0)
    batch: int = option(0, help="Examples per step, drawn with replacement; 0: all.", min=0)
    momentum: float = option(0.0, help="Momentum (sgd).", min=0.0)
    beta1: float = option(0.9, help="Decay of the mean (adamw).", min=0.0, max=1.0)
    beta2: float = option(0.999, help="Decay of the mean square (adamw).", min=0.0, max=1.0)
    weight_decay: float = option(0.0, help="Decoupled for adamw, L2 for gd and sgd.", min=0.0)
    no_decay: tuple[str, ...] = option(
        (), help="Weights without decay: embeddings (of positions too), vectors.", choices=("embeddings", "vectors")
    )
    clip: float = option(0.0, help="Largest norm of the whole gradient; 0: any.", min=0.0)
    dtype: str = option("float32", help="Precision of weights and data.", choices=("float32", "float64", "bfloat16"))
    autocast: bool = option(False, help="Multiply matrices in bfloat16; weights stay as dtype says.")
    device: str = option(
        "auto", help="Where to compute; auto: cuda where there is one.", choices=("auto", "cpu", "cuda")
    )
    freeze: tuple[str, ...] = option((), help="Roles that keep their initial weights, such as layers.*.attn.q.")
    preset: str | None = option(None, help="Shipped settings, such as mini or paper, under those given here.")
    seed: int = option(0, help="Decides initial weights, data and order of examples.", min=0)
    save: str = option("every:20", help="Steps to save: every:N, log:N, at:A,B, joined by commas.")
    mode: str = option(
        "auto",
        help="Save into folders or a log; auto: as timing the first saves tells.",
        choices=("auto", "folders", "log"),
    )
    threads: int = option(1, help="Threads of torch; more are slower for small models.", min=1)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.schedule = Schedule.parse(self.save)
        if self.optimizer == "gd" and self.batch:
            raise OptionError("Optimizer gd uses all examples at every step. Leave batch at 0, or choose sgd.")

    def rate(self, step: int) -> float:
        """Return the learning rate of the update that leads from `step` to `step` + 1.

        Warm-up is linear from `lr_first * lr`, before the first update, to `lr` at update `warmup`. What follows is
        lr, or lr (last + (1 - last) (1 + cos(pi t)) / 2) with t rising from 0 to 1 at the end of the run.
        """
        if step < self.warmup:
            return self.lr * (self.lr_first + (1 - self.lr_first) * (step + 1) / self.warmup)
        if self.lr_schedule == "constant":
            return self.lr
        t = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.lr * (self.lr_last + (1 - self.lr_last) * (1 + math.cos(math.pi * t)) / 2)


@dataclass(frozen=True)
class Plan:
    """All settings of one run, checked."""

    config: Options
    task: Task
    loop: Loop

    def flat(self) -> dict[str, Any]:
        """Return every setting by its name."""
        return {**self.config.as_dict(), **self.task.as_dict(), **self.loop.as_dict()}


def declared(family: type[Family], task: type[Task]) -> dict[str, Option]:
    """Return all settings in the order model, task, loop. Raises OptionError when two declare the same name."""
    found: dict[str, Option] = {}
    owners: dict[str, str] = {}
    for owner, options in ((f"family {family.name}", family.Config), (f"task {task.name}", task), ("the loop", Loop)):
        for name, entry in options.declared.items():
            if name in found:
                raise OptionError(f"Setting {name!r} is declared by {owners[name]} and by {owner}. Rename one of them.")
            found[name], owners[name] = entry, owner
    return found


def settings(family: type[Family], task: str, named: str | None = None) -> dict[str, Option]:
    """Return every setting of training a family on a task, with the defaults that the task and a preset give."""
    kind = task_class(task)
    known = declared(family, kind)
    given = preset(family.name, task, named, known)
    chosen = kind.parse(_of(kind, given))
    defaults = {**_suited(chosen.defaults(), known), **given, "preset": named}
    return {name: replace(entry, default=defaults.get(name, entry.default)) for name, entry in known.items()}


def plan(family: type[Family], task: str, values: Mapping[str, Any]) -> Plan:
    """Return the checked settings of a run; `values` are text or typed. Raises OptionError with the nearest name."""
    kind = task_class(task)
    known = declared(family, kind)
    unknown = sorted(values.keys() - known.keys())
    if unknown:
        raise OptionError(
            f"Training {family.name} on {task} has no setting {unknown[0]!r}.{nearest(unknown[0], known)}"
        )
    if kind.gives != (reads := getattr(family, "reads", "tokens")):
        raise OptionError(
            f"Task {task} gives {kind.gives}, but family {family.name} reads {reads}. Choose another task."
        )
    values = {**preset(family.name, task, values.get("preset"), known), **values}
    chosen = kind.parse(_of(kind, values))
    values = {**_suited(chosen.defaults(), known), **values}
    config = family.Config.parse(_of(family.Config, values))
    for name in ("vocabulary", "context"):
        _fit_size(config, chosen, name)
    for name in ("inputs", "outputs", "padding", "characters"):
        _fit_exactly(config, chosen, name)
    return Plan(config, chosen, Loop.parse(_of(Loop, values)))


def _suited(defaults: Mapping[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
    """Return a task's defaults without those below what a family takes, such as no MLP where it cannot do without."""
    return {name: value for name, value in defaults.items() if name not in known or not _below(known[name], value)}


def _below(entry: Option, value: Any) -> bool:
    return entry.min is not None and isinstance(value, int | float) and value < entry.min


def _of(options: type[Options], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in options.declared}


def _fit_size(config: Options, task: Task, name: str) -> None:
    if name not in config.declared:
        return
    size, least = getattr(config, name), getattr(task, name)
    if size is None:
        setattr(config, name, least)
    elif size < least:
        raise OptionError(f"Task {task.name} needs {name} of at least {least}. Got {size} instead.")


def _fit_exactly(config: Options, task: Task, name: str) -> None:
    if name not in config.declared:
        return
    value, needed = getattr(config, name), getattr(task, name)
    if value is None:
        setattr(config, name, needed)
    elif needed is not None and value != needed:
        raise OptionError(f"Task {task.name} needs {name} = {needed!r}. Got {value!r} instead.")
