"""Checkpoints without a number of their own (`last`, `best_model.pt`): which numbered one they are, or why none.

Contents are compared tensor by tensor, smallest first: two different checkpoints cost a few bytes, and only equal ones
are read, up to a limit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CkptError
from .checkpoint import Checkpoint
from .location import Location
from .opener import open_checkpoint

ALIAS = re.compile(r"(?<![a-z])(best|last|latest|final|newest|current|recent|average|swa|ema)(?![a-z])", re.IGNORECASE)
_NEWEST = re.compile(r"(?<![a-z])(last|latest|final|newest|current|recent)(?![a-z])", re.IGNORECASE)
_EPOCHS = ("epoch", "epochs", "current_epoch")
_STEPS = (
    "global_step", "global_steps", "iteration", "iterations", "iter", "iter_num", "num_updates", "steps", "train_step",
    "total_steps", "num_timesteps",
)  # fmt: skip
_COMPARED = 64
_READ = 64 << 20

Entries = Sequence[tuple[int, Location]]


def stored_number(metadata: Mapping[str, Any], unit: str) -> int | None:
    """Return the step or epoch (`unit`) that a checkpoint's own metadata states, None when it states none."""
    if unit == "epoch":
        return _first(metadata, _EPOCHS)
    found = _first(metadata, _STEPS)
    plain = _first(metadata, ("step",))
    # A reader that finds only an epoch offers it as the step too.
    return plain if found is None and plain != _first(metadata, _EPOCHS) else found


def _first(metadata: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    for key in keys:
        value = metadata.get(key)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18:
            return int(value)
        if type(value) is int and value >= 0:
            return value
    return None


def explain(path: Location, entries: Entries, unit: str) -> str:
    """Return why the checkpoint at `path`, whose name holds no number, is no step of the trajectory `entries`.

    Says whether it is identical to a numbered one, stale, or neither; opens it, and the numbered ones as needed.
    """
    link = _link(path, entries, unit)
    if link:
        return link
    try:
        with open_checkpoint(path) as checkpoint:
            return _explain(checkpoint, path.name, entries, unit)
    except CkptError:
        return "its name holds no step, and it cannot be opened"


def _link(path: Location, entries: Entries, unit: str) -> str:
    if isinstance(path, Path) and path.is_symlink():
        target = os.path.realpath(path)
        for step, entry in entries:
            if isinstance(entry, Path) and target == os.path.realpath(entry):
                return f"a link to {unit} {step}"
    return ""


def _explain(checkpoint: Checkpoint, name: str, entries: Entries, unit: str) -> str:
    stored = stored_number(checkpoint.metadata, unit)
    steps = [step for step, _ in entries]
    for step, path in _candidates(name, entries, stored):
        if _same(checkpoint, path):
            return f"identical to {unit} {step}"
    if stored is None:
        return "of no known step: none in its name, none inside; name this one itself to read it"
    if stored in steps:
        return f"{unit} {stored} stored inside, but not the weights of {unit} {stored}"
    if _NEWEST.search(name) and steps and stored < steps[-1]:
        return f"stale: {unit} {stored} stored inside, while the numbered ones go on to {steps[-1]}"
    return f"{unit} {stored} stored inside, which is not among the numbered ones; name this one itself to read it"


def _candidates(name: str, entries: Entries, stored: int | None) -> Entries:
    """Return the numbered checkpoints to compare with: the one stored inside, else the latest first."""
    if stored is not None:
        return [entry for entry in entries if entry[0] == stored]
    return list(reversed(entries[-_COMPARED:])) if _NEWEST.search(name) else list(entries[-_COMPARED:])


def _same(checkpoint: Checkpoint, path: Location) -> bool:
    """Return whether all tensors have the same bytes; of large checkpoints the smallest tensors, up to a limit."""
    try:
        with open_checkpoint(path) as other:
            if {_key(i) for i in checkpoint.tensors.values()} != {_key(i) for i in other.tensors.values()}:
                return False
            read = 0
            for info in sorted(checkpoint.tensors.values(), key=lambda info: (info.nbytes, info.name)):
                read += info.nbytes
                if read > _READ:
                    break
                if checkpoint.digest(info.name) != other.digest(info.name):
                    return False
            return read > 0
    except CkptError:
        return False


def _key(info: Any) -> tuple[Any, ...]:
    return info.name, info.dtype, info.shape
