"""What analyzers of weights are tried on: real checkpoints of a few tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ckpt_tools import Analyzer, open_checkpoint
from ckpt_tools.layouts import Layouts
from ckpt_tools.registry import load_registry
from ckpt_tools.view import View
from ckpt_tools.weights import Weights

Look = Callable[..., View]


@pytest.fixture(scope="session")
def layouts() -> Layouts:
    return Layouts(load_registry())


@pytest.fixture
def look(tmp_path: Path, layouts: Layouts) -> Look:
    """Return a function that writes tensors as a checkpoint and gives an analyzer's view of it."""
    count = iter(range(1000))

    def view(
        analyzer: Analyzer,
        tensors: Mapping[str, Any],
        *,
        step: int = 0,
        config: Mapping[str, Any] | None = None,
        references: Mapping[str, View] | None = None,
    ) -> View:
        folder = save(tmp_path / f"checkpoint-{next(count)}", tensors, config)
        checkpoint = open_checkpoint(folder)
        resolved = layouts.of(checkpoint)
        weights = Weights(checkpoint, resolved.layout, resolved.names)
        return View(weights, analyzer, step=step, config=resolved.config, seed="0", references=references)

    return view


@pytest.fixture
def trajectory(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes `{step: tensors}` as a folder of checkpoints."""

    def write(steps: Mapping[int, Mapping[str, Any]], config: Mapping[str, Any] | None = None) -> Path:
        for step, tensors in steps.items():
            save(tmp_path / "trajectory" / f"checkpoint-{step}", tensors, config)
        return tmp_path / "trajectory"

    return write


def save(folder: Path, tensors: Mapping[str, Any], config: Mapping[str, Any] | None) -> Path:
    folder.mkdir(parents=True)
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {}))
    return folder
