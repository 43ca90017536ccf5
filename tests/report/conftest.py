"""Results files made by hand, with every kind of dimension, and texts that try to become markup."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from ckpt_tools import Analyzer, Out
from ckpt_tools.results import Group, Trajectory, check, write_results

STEPS = [0, 10, 20, 30, 40]
EVIL = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>\"'&amp;\u202e\x1b[2J"
MATRICES = ["layers.0.attn.q", "layers.1.attn.q", EVIL]


class Kinds(Analyzer):
    """One output of every kind. `code` <b>bold</b>"""

    name = "kinds"
    reading = "Read it <i>so</i>."
    events: ClassVar = {
        "onset_step": "onset: {label} moves.",
        "focus_step..dilution_step": "focus of {token}: on {target}.",
    }
    outputs: ClassVar = {
        "count": Out(("matrix",), dtype="i8"),
        "rising": Out(("matrix",), unit="bit", long_name=f"rising {EVIL}"),
        "rising_error": Out(("matrix",), error_of="rising"),
        "total": Out(),
        "map": Out(("row", "column")),
        "spectrum": Out(("matrix", "k")),
        "five": Out(("layer", "head", "query", "key")),
        "dtype": Out(("matrix",), dtype="str"),
        "never": Out(("matrix",)),
    }


def outputs(i: int) -> dict[str, Any]:
    """Outputs at step number i: `rising` goes up in the first matrix, `map` moves its one 1 from corner to corner."""
    where = np.zeros((2, 2))
    where[i % 2, i % 2] = 1.0
    return {
        "matrix": MATRICES,
        "row": ["a", EVIL],
        "column": ["x", "y"],
        "count": [7, -1, 3],
        "rising": [i, 4.0 - i, 2.0],
        "rising_error": [0.25, 0.25, 0.25],
        "total": 10.0 - i,
        "map": where,
        "spectrum": np.outer([1, 2, 3], [8.0, 4, 2, 1]) + i,
        "five": np.arange(16.0).reshape(1, 1, 4, 4) * (i + 1),
        "dtype": ["float32", "float32", EVIL],
        "never": [np.nan] * 3,
    }


SUMMARY = {
    "onset_step": {"layers.0.attn.q": 10, EVIL: 20, "layers.1.attn.q": None},
    "target": 0,
    "token": [1, 2],
    "focus_step": [10, 20],
    "dilution_step": [30, -1],
    "loss_kind": ["plateau", "descent"],
    "loss_start": [0, 20],
    "loss_stop": [20, 40],
}


def written(path: Path, count: int = len(STEPS), **facts: Any) -> Path:
    """Write results of `count` checkpoints and return their path."""
    steps = STEPS[:count]
    records = [check(Kinds(), outputs(i), "here", step=step) for i, step in enumerate(steps)]
    loss = {"loss": [1 / (1 + i) for i in range(count)], "eval/loss": [2.0] * count}
    attrs = {
        "failures": {"50": f"ran out of memory {EVIL}"},
        "reading": Kinds.reading,
        "events": Kinds.events,
    }
    group = Group.of(Kinds(), records, summary=SUMMARY, skipped=[(EVIL, "buffer")], attrs=attrs)
    root = {
        "source": f"runs/{EVIL}",
        "history": "ckpt analyze runs/a --plugin kinds",
        "created": "2026-01-01T00:00:00+00:00",
        "notes": [EVIL],
        "findings": [{"kind": "gap", "severity": "warning", "message": f"a gap {EVIL}"}],
        "skipped_checkpoints": {"step_50": "truncated"},
        **facts,
    }
    hashes = [f"hash{i}" for i in range(count)]
    trajectory = Trajectory(steps, hashes, [f"runs/a/{s}" for s in steps], metrics=loss)
    return write_results(path, [group], root, trajectory=trajectory)


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    """Return the function that writes results files."""
    return written


@pytest.fixture(scope="session")
def evil() -> str:
    """Return the text that tries to become markup, as a page shows it."""
    return EVIL.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of five checkpoints."""
    return written(tmp_path_factory.mktemp("many") / "many.h5")


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one checkpoint."""
    return written(tmp_path_factory.mktemp("single") / "single.h5", 1)
