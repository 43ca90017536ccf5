"""Plain facts beside the weights of a training checkpoint: its step, its configuration, a few numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .containers import items_of, key_text
from .inert import Blob, Global
from .leaves import Leaf
from .numpytypes import NumpyArray

COUNTERS = (
    "step", "global_step", "global_steps", "iteration", "iterations", "iter", "iter_num", "num_updates", "steps",
    "train_step", "total_steps", "num_timesteps", "epoch", "epochs", "current_epoch",
)  # fmt: skip
_CONFIGS = tuple(
    re.compile(pattern)
    for pattern in (
        r"model_(args|config|cfg|kwargs|params)",
        r"config|cfg|.*_?config|config_?dict",
        r"hyper_?parameters|hparams",
        r"args|arguments|options|opts?|.*_args",
    )
)
_MAX_TEXT = 2_000
_MAX_NODES = 10_000
_MAX_DEPTH = 12
_DROPPED = object()


def facts_of(levels: Iterable[Mapping[Any, Any]]) -> dict[str, Any]:
    """Return the numbers and short texts that stand beside the weights, by key; the outermost wins.

    `step` is the first counter that any of them has (`global_step`, `iter_num`, `epoch`, ...), `step_key` its own name.
    """
    found: dict[str, Any] = {}
    for level in levels:
        for key, value in level.items():
            plain = _scalar(value)
            if plain is not _DROPPED and isinstance(key, str) and len(key) < 200 and len(found) < 1_000:
                found.setdefault(key, plain)
    counter = next((key for key in COUNTERS if type(found.get(key)) is int and found[key] >= 0), None)
    return found if counter is None else {**found, "step": found[counter], "step_key": counter}


def config_of(levels: Iterable[Mapping[Any, Any]]) -> dict[str, Any]:
    """Return the first mapping beside the weights that is named like a configuration, as plain data (JSON-able)."""
    for pattern in _CONFIGS:
        for level in levels:
            for key, value in level.items():
                inner = items_of(value) if isinstance(key, str) and pattern.fullmatch(key.lower()) else None
                plain = _plain(inner, 0, [_MAX_NODES]) if inner and not isinstance(value, (list, tuple)) else None
                if isinstance(plain, dict) and plain:
                    return plain
    return {}


def _scalar(value: Any) -> Any:
    """Return a number or a short text, `_DROPPED` for anything else."""
    if isinstance(value, NumpyArray):
        value = value.small()
    if isinstance(value, bytes) and len(value) < _MAX_TEXT:
        value = value.decode("utf-8", "replace")
    if isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if (type(value) is int and abs(value) < 2**63) or (isinstance(value, str) and len(value) < _MAX_TEXT):
        return value
    return _DROPPED


def _plain(value: Any, depth: int, left: list[int]) -> Any:
    """Return nested plain data; what is not is left out, and all of it when there is too much."""
    left[0] -= 1
    if left[0] < 0 or depth > _MAX_DEPTH or isinstance(value, (Leaf, Blob)):
        return _scalar(value) if isinstance(value, NumpyArray) else _DROPPED
    if isinstance(value, (list, tuple)):
        items = [_plain(item, depth + 1, left) for item in value[:_MAX_NODES]]
        return [item for item in items if item is not _DROPPED]
    inner = items_of(value)
    if inner is None:
        return str(value)[:_MAX_TEXT] if isinstance(value, Global) else value if value is None else _scalar(value)
    pairs = ((key_text(key), _plain(child, depth + 1, left)) for key, child in list(inner.items())[:_MAX_NODES])
    kept = {key: child for key, child in pairs if child is not _DROPPED}
    return kept if kept or value == {} else _DROPPED
