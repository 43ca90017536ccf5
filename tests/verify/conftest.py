"""Runs to verify, and a writer of trajectories whose weights tests may tamper with."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.numpy import save_file


def load(name: str) -> ModuleType:
    """Return a helper module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"verify_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


Weights = dict[str, Any]
Run = dict[int, Weights]


@pytest.fixture(scope="session")
def runs() -> ModuleType:
    """The helpers `train`, `tampered`, `blurred`."""
    return load("runs")


@pytest.fixture(scope="session")
def dense(runs: ModuleType) -> Run:
    """31 evenly spaced checkpoints."""
    return runs.train()


@pytest.fixture(scope="session")
def sparse(runs: ModuleType) -> Run:
    """11 checkpoints, log-spaced."""
    return runs.train(runs.LOG)


@pytest.fixture(scope="session")
def other(runs: ModuleType) -> Run:
    """The run `dense` with other initial weights."""
    return runs.train(seed=1)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(run, shards=None, metadata=None, name="run")`: step folders; `shards` maps file names to tensor names."""

    def save(
        run: Mapping[int, Weights],
        shards: Mapping[str, Sequence[str]] | None = None,
        metadata: Mapping[int, Mapping[str, str]] | None = None,
        name: str = "run",
    ) -> Path:
        for step, weights in run.items():
            folder = tmp_path / name / f"step-{step}"
            folder.mkdir(parents=True)
            if shards is None:
                save_file(weights, folder / "model.safetensors", (metadata or {}).get(step))
            else:
                _save_shards(folder, weights, shards)
        return tmp_path / name

    def _save_shards(folder: Path, weights: Weights, shards: Mapping[str, Sequence[str]]) -> None:
        for file, names in shards.items():
            save_file({n: weights[n] for n in names}, folder / file)
        index = {"weight_map": {n: file for file, names in shards.items() for n in names}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return save
