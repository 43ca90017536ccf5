"""One large checkpoint on several cores."""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from ckpt_tools import analyze
from ckpt_tools.engine import pool
from ckpt_tools.engine.ahead import Ahead
from ckpt_tools.engine.plan import Job
from ckpt_tools.engine.run import Runner
from ckpt_tools.errors import SourceError

pytestmark = pytest.mark.slow


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    tensors = {f"w{i}": rng.standard_normal((300, 260)).astype("f4") for i in range(5)}
    folder = tmp_path / "step-0"
    folder.mkdir()
    save_file({**tensors, "small": np.eye(20, dtype="f4")}, folder / "model.safetensors")
    return folder


def contents(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[...]}) if isinstance(item, h5py.Dataset) else None)
    return found


def test_the_same_bits_and_hashes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "SPLIT_COST", 0)
    asked: list[str] = []
    original = Ahead.__call__

    def counted(self: Ahead, name: str) -> Any:
        asked.append(name)
        found = original(self, name)
        assert (found is None) == (name == "small"), "small matrices are not worth a message"
        return found

    monkeypatch.setattr(Ahead, "__call__", counted)
    analyze(model, ["rank", "drift"], output=tmp_path / "one.h5")
    assert asked == []
    analyze(model, ["rank", "drift"], output=tmp_path / "two.h5", workers=2)
    assert sorted(set(asked)) == ["small", "w0", "w1", "w2", "w3", "w4"]
    one, two = contents(tmp_path / "one.h5"), contents(tmp_path / "two.h5")
    assert one.keys() == two.keys()
    for name in one:
        assert np.array_equal(one[name], two[name], equal_nan=one[name].dtype.kind == "f"), name


def _deadly(step: int, name: str) -> Any:
    os._exit(1)


def test_a_matrix_that_kills_its_process_is_given_up(model: Path) -> None:
    plan = Job(str(model), ("rank",)).plan()
    runner = Runner(plan)
    weights, _ = runner.weights_of(plan.steps[0])
    ahead = Ahead(weights, lambda: pool._pool(plan, 1), _deadly, window=2, tries=2)
    with pytest.raises(SourceError, match="the process that measured w1 died 2 times"):
        ahead("w1")
    ahead.close()
    runner.close()
