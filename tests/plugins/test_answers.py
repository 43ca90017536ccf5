"""Shares of answers against examples counted by hand, and against what training logged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt_plugins.answers import _share, answers
from ckpt_tools import SourceError, analyze, read_results
from ckpt_trainers.transformer import Transformer

SMALL = {"layers": 1, "heads": 2, "d_model": 16, "d_ff": 16, "batch": 32, "save": "every:30"}


def test_likeliest_tokens_and_losses() -> None:
    logits = torch.tensor([[[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    answer, loss = answers(logits, {"targets": torch.tensor([0, 0])})
    assert answer.tolist() == [0, 2]
    e = np.e
    np.testing.assert_allclose(loss, [np.log((e**2 + 2) / e**2), np.log(e + 2)], rtol=1e-12)
    answer, loss = answers(logits, {"targets": torch.tensor([[1, 0], [-100, 2]])})
    assert answer.shape == (2, 2) and answer[0, 1] == 0 and answer[1, 1] == 2
    assert loss[0, 0] == pytest.approx(np.log(3))
    with pytest.raises(SourceError, match="no token ids as targets"):
        answers(logits, {"targets": torch.full((2, 3), 1 / 3)})


def test_candidates_need_not_be_right() -> None:
    batch = {"targets": torch.tensor([5, 5, 5]), "symmetric": torch.tensor([6, 6, 6])}
    found = _share(np.array([5, 6, 6]), np.array([True, True, False]), batch, "symmetric")
    np.testing.assert_array_equal(found, [0, 1, np.nan])
    assert np.isnan(_share(np.array([5, 6, 6]), np.ones(3, dtype=bool), batch, "inferential")).all()


def test_agrees_with_what_training_logged(tmp_path: Path) -> None:
    """The evaluation examples of `permutation` are those of its probe batch."""
    values = {**SMALL, "keys": 4, "anchors": 3, "pairs": 7, "steps": 60, "lr": 1e-2}
    Transformer.train("permutation", values, tmp_path / "run")
    analyze(tmp_path / "run", ["answers"], output=tmp_path / "found.h5")
    with read_results(tmp_path / "found.h5") as results:
        found = results["answers"]
        assert list(found.labels["split"]) == [0, 1]
        assert found["examples"].read().tolist() == [[28, 8]] * 3
        accuracy = found["accuracy"].read()
        assert results.trajectory is not None
        for split, name in enumerate(("trained", "ood")):
            np.testing.assert_allclose(accuracy[:, split], results.trajectory[name].read(), rtol=1e-12)
        assert accuracy[-1, 0] > accuracy[0, 0]
        assert np.isnan(found["inferential"].read()).all()


def test_candidates_are_counted_by_split(tmp_path: Path) -> None:
    Transformer.train("anchor", {**SMALL, "steps": 60, "lr": 1e-2, "probes": 600}, tmp_path / "run")
    analyze(tmp_path / "run", ["answers"], output=tmp_path / "found.h5")
    with read_results(tmp_path / "found.h5") as results:
        found = {name: results["answers"][name].read()[-1] for name in ("accuracy", "inferential", "symmetric")}
        assert list(results["answers"].labels["split"]) == [0, 1, 2, 3]
        assert results["answers"]["examples"].read()[0].tolist() == [300, 100, 100, 100]
    # Of ordinary pairs and of what is taught, answer and candidate are the same; (4, 3) is right when it is inferred.
    assert found["accuracy"][1] == found["inferential"][1] == found["symmetric"][1] > 0
    assert found["accuracy"][2] == found["symmetric"][2]
    assert found["accuracy"][3] == found["inferential"][3]
