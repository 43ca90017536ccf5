"""The checkpoints behind a results file, as it tells of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from .attributes import Written, put
from .datasets import scale, texts_dataset

TRAJECTORY = "trajectory"
_JOINED = 1024


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The checkpoints behind the results: per step the content hash, the path, and numbers logged in training.

    `metrics` maps a name (`loss`, `eval/loss`) to one number per step, NaN where it was not logged.
    """

    steps: Sequence[int]
    content_hashes: Sequence[str]
    paths: Sequence[str] = ()
    metrics: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def hashes(self) -> Written:
        """Return `{step: content hash}` as JSON."""
        pairs = zip(self.steps, self.content_hashes, strict=True)
        parts = (f"{json.dumps(str(step))}: {json.dumps(text, ensure_ascii=False)}" for step, text in pairs)
        return Written(f"{{{', '.join(_some_joined(parts))}}}")


def _some_joined(parts: Iterable[str]) -> Iterator[str]:
    """Yield the parts with commas between them, many in each text: one object each takes more than they do."""
    left = iter(parts)
    while some := ", ".join(islice(left, _JOINED)):
        yield some


def write_trajectory(file: Any, trajectory: Trajectory) -> None:
    """Write steps, content hashes, paths and metrics as a group of their own."""
    target = file.create_group(TRAJECTORY, track_order=True)
    put(target, {"description": "The checkpoints these results were computed from."})
    steps = np.asarray(trajectory.steps, dtype=np.int64)
    scale(target, "step", steps, {"units": "1", "long_name": "training step"})
    texts = {"content_hash": trajectory.content_hashes, "path": trajectory.paths}
    for name, values in texts.items():
        if len(values) or name == "content_hash":
            _along_step(target, texts_dataset(target, name, values), name.replace("_", " "))
    taken = {"step", *texts}
    for name, numbers in trajectory.metrics.items():
        key = _variable_name(name, taken)
        made = target.create_dataset(key, data=np.asarray(numbers, dtype=np.float64))
        made.attrs.create("_FillValue", np.array([np.nan]))
        _along_step(target, made, name, metric=name)


def _along_step(target: Any, made: Any, long_name: str, **facts: Any) -> None:
    if made.shape != target["step"].shape:
        raise ValueError(f"trajectory {long_name!r} has {made.shape[0]} entries for {target['step'].shape[0]} steps")
    made.dims[0].attach_scale(target["step"])
    put(made, {"units": "1", "long_name": long_name, **facts})


def _variable_name(metric: str, taken: set[str]) -> str:
    """Return an identifier for a metric such as `eval/loss`, and note it as taken."""
    stem = "".join(c if c.isascii() and c.isalnum() else "_" for c in metric)
    stem = stem if stem.isidentifier() else f"metric_{stem}"
    key = next(k for k in (stem, *(f"{stem}_{i}" for i in range(2, len(taken) + 3))) if k not in taken)
    taken.add(key)
    return key
