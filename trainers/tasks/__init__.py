"""Tasks: what a trainer learns. One file is one task; its options are settings of training.

A batch is a dict of tensors. Examples lie along the first axis of

- `tokens` int64 [B, T]
- `targets` token ids [B, T] or distributions [B, T, v]; without the T axis they are about the last position
- `weights` (optional) of the positions scored, of the targets' axes without v, summing to 1 over the batch

or, where a task `gives` vectors, `inputs` [B, d_in], `targets` [B, d_out] and `weights` (optional) of entries of the
targets, summing to 1, or, where it gives sequences, `inputs` [B, s, d] and `targets` [B]. What all examples share lies
beside them, such as `key_log_weight` [T]. Floating-point tensors are float64; the loop turns them into its own
precision. Probe and evaluation batches may say more about each example, such as

- `split` int64 [B]: which of the task's `splits` it belongs to; 0 are examples as they are trained on
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor

from ckpt_tools import OptionError, Options, nearest

Batch = Mapping[str, Tensor]

TASKS = {
    "anchor": "Anchor",
    "inverse": "Inverse",
    "markov": "Markov",
    "matrix": "Matrix",
    "memory_reasoning": "MemoryReasoning",
    "permutation": "Permutation",
    "next_item": "NextItem",
    "regression": "Regression",
    "signal": "Signal",
    "text": "Text",
    "two_hop": "TwoHop",
}
PER_EXAMPLE = ("tokens", "inputs", "targets", "weights")


class Task(Options):
    """Base of all tasks: a name, options, a vocabulary, and examples drawn from a generator."""

    gives: ClassVar[str] = "tokens"
    vocabulary: ClassVar[int] = 0
    context: ClassVar[int] = 0
    inputs: ClassVar[int | None] = None
    outputs: ClassVar[int | None] = None
    padding: ClassVar[int | None] = None
    characters: ClassVar[str | None] = None
    probe_size: ClassVar[int] = 256
    splits: ClassVar[tuple[str, ...]] = ()

    def defaults(self) -> Mapping[str, Any]:
        """Return defaults of model and loop settings that make this task a good example of itself."""
        return {}

    def examples(self, generator: torch.Generator) -> Batch | None:
        """Return the fixed training set, or None for a task whose every step draws fresh examples."""
        return None

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Return `size` fresh examples."""
        raise NotImplementedError(f"task {self.name!r} draws nothing: it has a fixed training set")

    def probe(self, examples: Batch | None, generator: torch.Generator) -> Batch:
        """Return the batch on which analyzers run the model: the first examples, or fresh ones."""
        if examples is None:
            return self.draw(self.probe_size, generator)
        return take(examples, torch.arange(min(self.probe_size, count(examples))))

    def evaluation(self, generator: torch.Generator) -> Batch | None:
        """Return the examples that metrics are about, or None: those of the step."""
        return None

    def metrics(self, logits: Tensor, batch: Batch) -> dict[str, float]:
        """Return numbers beside the loss, computed where a checkpoint is saved.

        `logits` is [B, T, v], or [B, 1, v] when the targets are about the last position.
        """
        return {}

    def files(self) -> Mapping[str, bytes]:
        """Return what a run on this task keeps beside its checkpoints, by file name."""
        return {}


def count(batch: Batch) -> int:
    """Return the number of examples."""
    return len(batch["targets"])


def share(batch: Batch, part: int, parts: int) -> tuple[float, Batch]:
    """Return the weight and the examples of one of several parts: the loss is the sum of weight times part's loss."""
    rows = torch.arange(count(batch) * part // parts, count(batch) * (part + 1) // parts)
    taken = take(batch, rows.to(batch["targets"].device))
    if "weights" not in batch:
        return len(rows) / count(batch), taken
    return (batch["weights"][rows].sum() / batch["weights"].sum()).item(), taken


def take(batch: Batch, rows: Tensor) -> dict[str, Tensor]:
    """Return the examples `rows` of a batch, weights summing to 1 again."""
    taken = {key: value[rows] if key in PER_EXAMPLE else value for key, value in batch.items()}
    if "weights" in taken:
        taken["weights"] = taken["weights"] / taken["weights"].sum()
    return taken


def task_class(name: str) -> type[Task]:
    """Return the task of that name; raises OptionError with the nearest name."""
    if name not in TASKS:
        fault = f"No task is named {name!r}" if name else "--task is missing"
        raise OptionError(f"{fault}.{nearest(name, TASKS)}")
    found: type[Task] = getattr(import_module(f".{name}", __name__), TASKS[name])
    return found
