"""The family contract: a kind of model, known by name: configuration -> module, tensor name -> role."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .errors import RunError
from .options import Option, Options
from .roles.table import RoleTable

if TYPE_CHECKING:
    import torch

    Batch = Mapping[str, torch.Tensor]


@dataclass
class Activations:
    """What a forward pass shows. `hidden[i]` is the residual stream `[batch, position, d]` before layer i (last: after
    all layers); `attention[i]` is `[batch, head, query, key]`, rows summing to 1; `logits` is `[batch, position, out]`.
    """

    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...] = ()
    attention: tuple[torch.Tensor, ...] = ()


class Family:
    """Base of all families. A table alone is enough for analyzers of weights; `build` and the rest add forward passes.

    `model_types` are the values of `model_type` in a third party's `config.json` that mean this family.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    table: ClassVar[RoleTable] = RoleTable(())
    model_types: ClassVar[tuple[str, ...]] = ()
    Config: ClassVar[type[Options]] = Options

    @classmethod
    def recognises(cls, config: Mapping[str, Any], names: Collection[str]) -> bool:
        """Return whether a checkpoint is of this family: by `model_type`, else by its tensor names."""
        model_type = config.get("model_type")
        if model_type is not None and cls.model_types:
            return model_type in cls.model_types
        return cls.table.signature_matches(names)

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> torch.nn.Module:
        """Return a module on CPU whose `state_dict` names are the checkpoint's; its weights are placeholders."""
        raise NotImplementedError(f"family {cls.name!r} has roles only: it cannot rebuild the model")

    @classmethod
    def forward(cls, module: Any, batch: Batch, *, record: bool = False) -> Activations:
        """Run `module` (or a functional call of it) on a batch; with `record`, hidden states and attention too."""
        raise NotImplementedError(f"family {cls.name!r} has roles only: it cannot run the model")

    @classmethod
    def loss(cls, module: Any, batch: Batch) -> torch.Tensor:
        """Return the scalar training loss in nats on a batch, differentiable to any order."""
        raise NotImplementedError(f"family {cls.name!r} has roles only: it has no loss")

    @classmethod
    def settings(cls, task: str, preset: str | None = None) -> Mapping[str, Option]:
        """Return every setting of training this family on a task: the model's, the task's and the loop's.

        Defaults are those that hold with a preset, if one is named.
        """
        raise RunError(f"Family {cls.name!r} cannot be trained here: it only reads checkpoints.")

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
        """Train into run folder `out` and return the run's final status ("finished" or "interrupted").

        `values` are settings as text or typed. `on_step(step, last_step, metrics)` is called after every step.
        """
        raise RunError(f"Family {cls.name!r} cannot be trained here: it only reads checkpoints.")
