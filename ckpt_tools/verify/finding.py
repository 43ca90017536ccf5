"""What is suspicious about a trajectory, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]

KINDS: Mapping[str, str] = {
    "pointer": "a git-LFS or git-annex pointer lies where weights should be",
    "missing_shard": "shards of a checkpoint are not there",
    "damaged": "a file is truncated, malformed or not what it claims to be",
    "unreadable": "a checkpoint cannot be opened for another reason",
    "nonfinite": "tensors hold NaN or infinity",
    "identical": "checkpoints of different steps have the same bytes",
    "foreign_shard": "a whole file holds the bytes of another step, the rest of the checkpoint does not",
    "foreign_tensor": "a tensor holds the bytes of another step, or lies off its own path",
    "unchanged": "a tensor stood still between two checkpoints while the others moved",
    "misplaced": "a checkpoint lies on the path of the run, but at another step",
    "off_path": "a checkpoint is far from the path that its neighbours share",
    "mixed_runs": "two paths alternate: checkpoints of two runs in one trajectory",
    "run_change": "the checkpoints before and after a step share nothing",
    "not_descended": "the first checkpoint shares nothing with those after it",
    "oscillation": "every other checkpoint lies aside, all on one side: large steps, or two runs that began alike",
    "jump": "the change between two checkpoints is far above the trend",
    "shape_change": "tensors appear, disappear or change their shape",
    "dtype_change": "tensors are stored in another dtype",
    "stored_step": "the step stored inside is not the one in the name",
    "gap": "steps are missing from a regular grid",
    "left_out": "something in the folder is no step of the trajectory",
}
"""What each kind of finding means."""

_LISTED = 6


@dataclass(frozen=True)
class Finding:
    """One observation: `kind` is a key of `KINDS`; `numbers` are the measurements behind it (pure numbers).

    An `error` cannot be read, a `warning` should not happen in the trajectory of one run, a `note` is worth knowing.
    """

    kind: str
    severity: Severity
    message: str
    steps: tuple[int, ...] = ()
    tensors: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as JSON-able data."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "message": self.message,
            "steps": list(self.steps),
            "tensors": list(self.tensors),
            "numbers": dict(self.numbers),
        }


def listed(items: Sequence[object], unit: str = "") -> str:
    """Return `step 5`, `steps 5, 6 and 7`, or the first few and how many more."""
    texts = [str(item) for item in items]
    word = unit if len(texts) == 1 or not unit else f"{unit}s"
    if len(texts) > _LISTED + 1:
        text = f"{', '.join(texts[:_LISTED])} and {len(texts) - _LISTED} more"
    elif len(texts) > 1:
        text = f"{', '.join(texts[:-1])} and {texts[-1]}"
    else:
        text = texts[0]
    return f"{word} {text}".strip()
