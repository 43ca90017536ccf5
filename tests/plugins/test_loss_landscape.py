"""Oracles: the SVD of a run's offsets, and losses of modules whose weights were set by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from ckpt_plugins.loss_landscape import Landscape
from ckpt_tools import OptionError, analyze, open_trajectory
from ckpt_tools.figures import plot
from ckpt_tools.run import read_probe
from ckpt_tools.testing import analyzer_checks
from ckpt_trainers.mlp import MLP

pytestmark = pytest.mark.slow

STEPS = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("landscape") / "run"
    MLP.train("regression", {"hidden": (5,), "std": 0.5, "steps": STEPS, "save": "every:4"}, folder)
    return folder


def weights(run: Path) -> np.ndarray[Any, Any]:
    trajectory, rows = open_trajectory(run), []
    for step in trajectory.steps:
        with trajectory.checkpoint(step) as checkpoint:
            rows.append(np.concatenate([checkpoint.read(name).ravel() for name in checkpoint.tensors]))
    return np.array(rows, dtype=np.float64)


def measured(source: Path, out: Path, **options: Any) -> dict[str, np.ndarray[Any, Any]]:
    analyze(source, [Landscape(points=5, **options)], output=out)
    with h5py.File(out) as file:
        group = file["landscape"]
        return {name: group[name][()] for name in (*Landscape.outputs, "first", "second", "step")}


def test_the_plane_of_a_run_is_that_of_its_svd(run: Path, tmp_path: Path) -> None:
    found = measured(run, tmp_path / "r.h5", run=str(run), span="0:1000")
    offsets = weights(run) - weights(run)[-1]
    u, s, _ = np.linalg.svd(offsets, full_matrices=False)
    expected = u[:, :2] * s[:2]
    signs = np.sign((found["coordinate"] * expected).sum(axis=0))
    np.testing.assert_allclose(found["coordinate"], expected * signs, atol=1e-6 * s[0])
    np.testing.assert_allclose(found["explained"][0], s[:2] ** 2 / (s**2).sum(), rtol=1e-6)
    size, inside = np.linalg.norm(offsets, axis=1), np.linalg.norm(expected, axis=1)
    aside = np.sqrt(np.maximum(size**2 - inside**2, 0)) / np.where(size > 0, size, 1)
    np.testing.assert_allclose(found["off_plane"], aside, atol=1e-6)


@pytest.mark.parametrize("spanned", [True, False])
def test_the_map_is_the_loss_of_weights_set_by_hand(run: Path, tmp_path: Path, spanned: bool) -> None:
    found = measured(run, tmp_path / "r.h5", run=str(run) if spanned else "")
    assert np.isnan(found["loss_map"][:-1]).all() and np.isfinite(found["loss_map"][-1]).all()
    rows, places = weights(run), found["coordinate"]
    # Two checkpoints whose offsets lie in the plane give its directions back.
    offsets = rows - rows[-1]
    directions = np.linalg.lstsq(places, offsets, rcond=None)[0]
    if not spanned:  # from the last checkpoint along the line to the first, and at random aside
        line = offsets[0] / np.linalg.norm(offsets[0])
        np.testing.assert_allclose(places[:, 0], offsets @ line, rtol=1e-6, atol=1e-9)
        assert abs(places[0, 1]) < 1e-9 < np.abs(places[:, 1]).max()
        middle = loss(run, rows[-1] + found["first"][2] * line)
        assert found["second"][2] == pytest.approx(0, abs=1e-12)
        assert found["loss_map"][-1][2, 2] == pytest.approx(middle, rel=1e-6)
        return
    for i, j in ((0, 0), (2, 3), (4, 1)):
        at = rows[-1] + found["first"][i] * directions[0] + found["second"][j] * directions[1]
        assert found["loss_map"][-1][i, j] == pytest.approx(loss(run, at), rel=2e-4)


def loss(run: Path, flat: np.ndarray[Any, Any]) -> float:
    trajectory = open_trajectory(run)
    assert trajectory.run is not None
    module = MLP.build(trajectory.run["config"]).double()
    with trajectory.checkpoint(STEPS) as checkpoint:
        shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    parts = zip(shapes.items(), np.split(flat, ends[:-1]), strict=True)
    module.load_state_dict({name: torch.from_numpy(part.reshape(shape)) for (name, shape), part in parts})
    batch = {name: torch.from_numpy(array).double() for name, array in read_probe(run).items()}
    return float(MLP.loss(module, batch).detach())


def test_losses_are_those_of_the_checkpoints(run: Path, tmp_path: Path) -> None:
    found = measured(run, tmp_path / "r.h5")
    expected = [loss(run, row) for row in weights(run)]
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-6)
    assert found["coordinate"][-1].tolist() == [0, 0] and found["off_plane"][-1] == 0


def test_the_way_is_drawn_over_the_map(run: Path, tmp_path: Path) -> None:
    measured(run, tmp_path / "r.h5", run=str(run))
    written, notes = plot(tmp_path / "r.h5", tmp_path / "l.png", what=["landscape.loss_map"], dpi=50)
    assert written == [tmp_path / "l.png"] and notes == []


def test_a_run_without_these_weights_is_refused(run: Path, tmp_path: Path) -> None:
    MLP.train("regression", {"hidden": (5, 5), "steps": 1, "save": "every:1"}, tmp_path / "other")
    with pytest.raises(OptionError, match=r"landscape\.run: step 0 of .*other has other weights"):
        analyze(run, [Landscape(run=str(tmp_path / "other"))], output=tmp_path / "r.h5")


@pytest.mark.parametrize("check", analyzer_checks(Landscape, points=3), ids=str)
def test_it_conforms(check: Any) -> None:
    check()
