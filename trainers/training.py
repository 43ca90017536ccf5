"""Everything that makes up one run in memory: model, optimizer, examples and random state.

Independent random streams follow from the seed: initial weights, data, probe batch, order of examples, and evaluation.
Only the order advances during training, so weights, optimizer, that stream and the step are all that a run needs to go
on.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ckpt_tools import Family, OptionError, RunError, nearest

from .distributed import Processes
from .settings import Loop, Plan
from .tasks import Batch, count, take

if TYPE_CHECKING:
    from .family import TrainedFamily

STREAMS = ("weights", "data", "probe", "order", "evaluation")


class Training:
    """Model, optimizer, data and random state of one run."""

    def __init__(self, family: type[TrainedFamily], task: str, chosen: Plan, group: Processes | None = None) -> None:
        self.family, self.task_name, self.plan, self.group = family, task, chosen, group or Processes()
        self.device = self.group.device
        self.dtype = getattr(torch, chosen.loop.dtype)
        streams = {name: generator(chosen.loop.seed, name) for name in STREAMS}
        self.config = chosen.config.as_dict()
        self.module = family.build(self.config).to(self.dtype)
        family.init(self.module, self.config, streams["weights"])
        freeze(family, self.module, chosen.loop.freeze)
        self.module.to(self.device)
        self.model = self.group.wrap(self.module)
        self.optimizer = optimizer(family, self.module, chosen.loop)
        self.examples = chosen.task.examples(streams["data"])
        if self.examples is None and not chosen.loop.batch:
            raise OptionError(f"Task {task} draws fresh examples at every step: say how many with --set batch=N.")
        self.probe = self.cast(chosen.task.probe(self.examples, streams["probe"]))
        self.examples = None if self.examples is None else self.cast(self.examples)
        evaluation = chosen.task.evaluation(streams["evaluation"])
        self.evaluation = None if evaluation is None else self.cast(evaluation)
        self.order = streams["order"]
        self.step = 0

    def cast(self, batch: Batch) -> Batch:
        """Return the batch on the run's device, its floating-point tensors in the run's precision."""
        return {k: v.to(self.device, self.dtype if v.is_floating_point() else None) for k, v in batch.items()}

    def batch(self) -> Batch:
        """Return the examples of the next update."""
        size = self.plan.loop.batch
        if self.examples is None:
            return self.cast(self.plan.task.draw(size, self.order))
        if not size:
            return self.examples
        rows = torch.randint(count(self.examples), (size,), generator=self.order)
        return take(self.examples, rows.to(self.device))

    def loss(self, batch: Batch) -> Tensor:
        """Return this process's part of the loss of a batch; the sum over processes is the loss."""
        weight, part = self.group.part(batch)
        with self.precision():
            loss = self.family.loss(self.model, part)
        return loss if self.group.size == 1 else weight * loss

    def precision(self) -> AbstractContextManager[Any]:
        """Return the context in which models run."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.loop.autocast)

    def metrics(self, batch: Batch) -> dict[str, float]:
        """Return the task's metrics of the current weights, on its evaluation examples if it has any."""
        batch = batch if self.evaluation is None else self.evaluation
        with torch.no_grad(), self.precision():
            return self.plan.task.metrics(self.family.scored(self.module, batch), batch)

    def update(self, loss: Tensor) -> None:
        """Take one step down the gradient of the loss."""
        self.optimizer.zero_grad()
        (self.group.size * loss).backward()  # type: ignore[no-untyped-call]
        if self.plan.loop.clip:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.plan.loop.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.loop.rate(self.step)
        self.optimizer.step()
        self.step += 1

    def keep(self, path: Path) -> None:
        """Write the side file from which `restore` continues bit for bit, whole or not at all."""
        draft = path.with_name(f".{path.name}")
        state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        try:
            torch.save({**state, "order": self.order.get_state(), "step": self.step}, draft)
            os.replace(draft, path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            draft.unlink(missing_ok=True)
            raise RunError(f"Cannot write {path}: {str(error).splitlines()[0]}. Make room, then resume.") from error

    def restore(self, path: Path) -> None:
        """Continue from a side file; raises RunError when it is damaged or of another model."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.order.set_state(state["order"].cpu())
            self.step = state["step"]
        except (RuntimeError, pickle.UnpicklingError, KeyError, TypeError, ValueError, EOFError) as error:
            # torch's own text advises to load without safeguards.
            kind = type(error).__name__
            raise RunError(f"{path} does not fit this run ({kind}). Delete it to start again at step 0.") from error


def generator(seed: int, stream: str) -> torch.Generator:
    """Return the generator of one of `STREAMS`, independent of the others."""
    words = np.random.SeedSequence([seed, STREAMS.index(stream)]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))


def optimizer(family: type[Family], module: nn.Module, loop: Loop) -> torch.optim.Optimizer:
    """Return the optimizer of the settings; gd is sgd on all examples without momentum."""
    groups = decay_groups(family, module, loop)
    if loop.optimizer == "adamw":
        betas = (loop.beta1, loop.beta2)
        return torch.optim.AdamW(groups, lr=loop.lr, betas=betas, weight_decay=loop.weight_decay, fused=True)
    momentum = loop.momentum if loop.optimizer == "sgd" else 0.0
    return torch.optim.SGD(groups, lr=loop.lr, momentum=momentum, weight_decay=loop.weight_decay)


def decay_groups(family: type[Family], module: nn.Module, loop: Loop) -> list[dict[str, Any]]:
    """Return the optimizer's groups of parameters: those that decay, and those that `no_decay` excepts."""

    def excepted(name: str, p: nn.Parameter) -> bool:
        if p.dim() < 2:
            return "vectors" in loop.no_decay
        return "embeddings" in loop.no_decay and role_of(family, name).partition(".")[0] == "embed"

    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    kept = [p for name, p in trained if not excepted(name, p)]
    free = [p for name, p in trained if excepted(name, p)]
    return [{"params": kept}, *([{"params": free, "weight_decay": 0.0}] if free else [])]


def role_of(family: type[Family], name: str) -> str:
    """Return the role of a parameter of the family's module, or "" where the table has none."""
    found = family.table.find(name)
    return found[1].roles[0].format(**found[2]) if found and found[1].roles else ""


def freeze(family: type[Family], module: nn.Module, patterns: Sequence[str]) -> None:
    """Exempt parameters from training whose role, or the role of one tied to it, fits a pattern.

    Raises OptionError for a pattern that fits nothing, and when nothing is left to train.
    """
    roles = [(role_of(family, name), p) for name, p in module.named_parameters(remove_duplicate=False)]
    for pattern in patterns:
        found = [p for role, p in roles if fnmatchcase(role, pattern)]
        if not found:
            raise OptionError(f"freeze: no weight has role {pattern!r}.{nearest(pattern, dict(roles))}")
        for p in found:
            p.requires_grad_(False)
    if not any(p.requires_grad for p in module.parameters()):
        raise OptionError("freeze leaves nothing to train. Name fewer roles.")


def tied(module: nn.Module) -> dict[str, str]:
    """Return `{alias: name}` of parameters that are one and the same."""
    first: dict[int, str] = {}
    found = {name: first.setdefault(id(p), name) for name, p in module.named_parameters(remove_duplicate=False)}
    return {name: target for name, target in found.items() if name != target}
