"""What families that are trained here share: building, running, the roles of modules, the spread of initial weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ckpt_tools import Activations, Family, Option, Rule

from .loop import train
from .settings import settings
from .tasks import Batch


class TrainedFamily(Family):
    """A family that the loop trains: it also says how its weights start and which logits are scored.

    `Model` is the module, made from a `Config`; `reads` is what its inputs are: "tokens", "vectors" or "sequences".
    """

    Model: ClassVar[type[nn.Module]]
    reads: ClassVar[str] = "tokens"

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> nn.Module:
        """Return the model of a configuration; torch's global random state is left as it was."""
        with torch.random.fork_rng(devices=[]):
            return cls.Model(cls.Config(**config))

    @classmethod
    def init(cls, module: nn.Module, config: Mapping[str, Any], generator: torch.Generator) -> None:
        """Fill the weights of a built module from a generator."""
        raise NotImplementedError(f"family {cls.name!r} must define init(module, config, generator)")

    @classmethod
    def forward(cls, module: Any, batch: Batch, *, record: bool = False) -> Activations:
        """Run the model on `tokens`, or `inputs` if it reads those; `module` needs only be callable like `Model`."""
        shown: Activations = module(batch["tokens" if cls.reads == "tokens" else "inputs"], record=record)
        return shown

    @classmethod
    def scored(cls, module: Any, batch: Batch) -> Tensor:
        """Return the logits of a batch where the task scores them; a family may leave out the other positions."""
        return cls.forward(module, batch).logits

    @classmethod
    def settings(cls, task: str, preset: str | None = None) -> Mapping[str, Option]:
        """Return every setting of training this family on a task, with the defaults of the task and of a preset."""
        return settings(cls, task, preset)

    @classmethod
    def train(
        cls,
        task: str,
        values: Mapping[str, Any],
        out: Path,
        *,
        resume: bool = False,
        on_step: Callable[[int, int, Mapping[str, float]], None] | None = None,
    ) -> str:
        """Train into run folder `out`; see `ckpt_tools.Family.train`. `resume` starts a run that is not there yet."""
        return train(cls, task, values, out, resume=resume, on_step=on_step)


def rules(modules: Mapping[str, str]) -> tuple[Rule, ...]:
    """Return the rules of modules with a weight and perhaps a bias; `modules` maps their names to roles."""
    return (
        *(Rule(f"{module}.weight", (role,)) for module, role in modules.items()),
        *(Rule(f"{module}.bias", (f"{role}.bias",)) for module, role in modules.items()),
    )


class Rated(Protocol):
    """A configuration with a rate `gamma`, a `std` or none, and a rate `gamma_NAME` for each group NAME of weights."""

    gamma: float
    std: float | None


def group_std(c: Rated, groups: Mapping[str, str], name: str, d_in: int) -> float:
    """Return the initial std of a weight: d_in^-rate with its group's rate if set, else `std` if set, else `gamma`.

    `groups` maps patterns of module names to groups.
    """
    module = name.removesuffix(".weight")
    group = next(group for pattern, group in groups.items() if re.fullmatch(pattern, module))
    rate: float | None = getattr(c, f"gamma_{group}")
    if rate is None and c.std is not None:
        return c.std
    return float(d_in ** -(c.gamma if rate is None else rate))
