"""The samples measure what they say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_tools.testing import analyzer_checks

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"sample_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pickling finds classes by their module
    spec.loader.exec_module(module)
    return module


calibration, sparsity = (load(SAMPLES / f"{name}.py") for name in ("calibration", "sparsity"))


@pytest.mark.parametrize("cls", [calibration.Calibration, sparsity.Sparsity], ids=lambda cls: cls.name)
def test_every_sample_conforms(cls: Any) -> None:
    for check in analyzer_checks(cls):
        check()


class Fixed:
    """A view of a model whose probabilities are given."""

    def __init__(self, p: Any, **batch: Any) -> None:
        self._logits = torch.log(torch.tensor(p, dtype=torch.float64))
        self._batch = {name: torch.tensor(value) for name, value in batch.items()}

    def batch(self) -> Any:
        return self._batch

    def model(self) -> Any:
        return self

    def forward(self, batch: Any) -> Any:
        return type("Shown", (), {"logits": self._logits})


SURE, FAIR = [0.9, 0.05, 0.05], [0.4, 0.3, 0.3]


def test_calibration_by_hand() -> None:
    """Two predictions at 0.9, one of them right, and two at 0.4, both right: |1/2 - .9| / 2 + |1 - .4| / 2."""
    view = Fixed([[SURE, SURE, FAIR, FAIR]], tokens=[[0, 0, 0, 0]], targets=[[0, 1, 0, 0]])
    found = calibration.Calibration(bins=2).analyze(view)
    assert found["accuracy"] == pytest.approx(0.75) and found["confidence"] == pytest.approx(0.65)
    assert found["calibration_error"] == pytest.approx(0.2 + 0.3)
    entropy = [-(np.array(p) * np.log(p)).sum() for p in (SURE, FAIR)]
    assert found["entropy"] == pytest.approx(np.mean(entropy))
    assert found["bin_share"].tolist() == [0.5, 0.5] and found["bin_accuracy"].tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("batch", "accuracy"),
    [
        ({"tokens": [[2, 0, 1]]}, 1 / 2),  # the next token: position 0 says 0, position 1 says 0
        ({"tokens": [[2, 0, 1]], "targets": [[-1, 0, 1]]}, 1 / 2),
        ({"tokens": [[2, 0, 1]], "targets": [1]}, 0.0),
        ({"tokens": [[2, 0, 1]], "targets": [[[0.2, 0.7, 0.1], SURE, SURE]]}, 2 / 3),
    ],
    ids=["next token", "not all scored", "last position", "distributions"],
)
def test_every_kind_of_target_is_scored(batch: Any, accuracy: float) -> None:
    assert calibration.Calibration().analyze(Fixed([[SURE, FAIR, SURE]], **batch))["accuracy"] == pytest.approx(
        accuracy
    )
