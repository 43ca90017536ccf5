"""Trajectories: what is found, in which order, what is left out, and how little of it is opened."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest

from ckpt_tools.checkpoint import open_trajectory
from ckpt_tools.errors import FormatError, SourceError

W = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def make(tmp_path, save):
    """`make(names)`: a folder of step folders; `a` of each is filled with its position."""

    def build(*names: str) -> Path:
        for i, name in enumerate(names):
            save(tmp_path / "run" / name / "model.safetensors", {"a": np.full((2, 2), i, np.float32)})
        return tmp_path / "run"

    return build


@pytest.mark.parametrize(
    "pattern",
    ["checkpoint-{}", "step-{:06d}", "step{}", "step_{}", "global_step{}", "epoch_{}", "iter_{:07d}", "pythia-step{}"],
)
def test_step_folders_are_ordered_by_number(make, pattern):
    path = make(*(pattern.format(step) for step in (10, 9, 0, 100)))
    trajectory = open_trajectory(str(path))
    assert trajectory.steps == [0, 9, 10, 100] and len(trajectory) == 4
    assert [entry.path.name for entry in trajectory.entries] == [pattern.format(step) for step in (0, 9, 10, 100)]
    with trajectory.checkpoint(9) as checkpoint:
        assert (checkpoint.step, checkpoint.label) == (9, pattern.format(9))
        assert checkpoint.read("a").max() == 1.0
    assert trajectory.run is None and trajectory.metrics() == {}
    assert trajectory.select("9:10") == [9, 10]
    assert "4 checkpoints" in repr(trajectory)


def test_what_is_left_out_is_listed(make, save):
    path = make("step-1", ".step-2", "step-3.tmp", "tmp-checkpoint-4", "plots", ".cache")
    (path / "step-9").write_text("not a folder")
    (path / "log.json").write_text("{}")
    save(path / "model.safetensors", {"a": W})
    trajectory = open_trajectory(path)
    assert trajectory.steps == [1]
    reasons = {skip.name: skip.reason for skip in trajectory.skipped}
    for name in (".step-2", "step-3.tmp", "tmp-checkpoint-4", ".cache"):
        assert reasons.pop(name) == "temporary or unfinished"
    assert reasons.pop("plots") == "a folder whose name holds no step of this run"
    assert reasons.pop("step-9") == "a file, where steps are folders"
    assert "of no known step" in reasons.pop("model.safetensors")
    assert reasons == {}


def test_a_step_that_is_not_there_names_its_neighbours(make):
    with pytest.raises(SourceError, match="there is no step 3; nearest: 2 and 5"):
        open_trajectory(make("step-2", "step-5")).checkpoint(3)


def test_two_folders_of_one_step_are_refused(make):
    with pytest.raises(SourceError, match="'step-05' and 'step-5' are both step 5"):
        open_trajectory(make("step-5", "step-05"))


@pytest.mark.parametrize(("name", "step"), [("checkpoint-128", 128), ("dcp_step7", 7), ("final", 0)])
def test_a_lone_checkpoint_is_a_trajectory_of_one(make, name, step):
    folder = make(name) / name
    for path in (folder, folder / "model.safetensors"):
        trajectory = open_trajectory(path)
        assert len(trajectory) == 1
        with trajectory.checkpoint(trajectory.steps[0]) as checkpoint:
            assert checkpoint.read("a").shape == (2, 2)
            assert (checkpoint.step, checkpoint.label) == (step, name)


def test_nothing_to_open_is_explained(tmp_path):
    with pytest.raises(SourceError, match="is an empty folder; expected a checkpoint or step folders"):
        open_trajectory(tmp_path)
    with pytest.raises(SourceError, match="does not exist: there is no 'missing'"):
        open_trajectory(tmp_path / "missing")
    (tmp_path / "x").write_bytes(b"BZh91AY")
    with pytest.raises(FormatError, match="bzip2-compressed"):
        open_trajectory(tmp_path / "x")
    (tmp_path / "run.json").write_text('{"status": "running"}')
    with pytest.raises(SourceError, match="a run without checkpoints yet"):
        open_trajectory(tmp_path)


def test_an_empty_step_folder_fails_alone(make):
    path = make("step-1", "step-2")
    (path / "step-1" / "model.safetensors").unlink()
    trajectory = open_trajectory(path)
    with pytest.raises(SourceError, match="step-1 is an empty folder"):
        trajectory.checkpoint(1)
    trajectory.checkpoint(2).close()


def test_a_run_of_our_own_writer(tmp_path):
    from ckpt_tools import RunWriter

    config = {"d_model": 3}
    with RunWriter(tmp_path / "run", family="toy", family_version=1, config=config, tied={"head": "embed"}) as run:
        for step in (0, 5, 10):
            run.save(step, {"embed": W * step}, {"loss": 1.0 / (step + 1)})
        run.log(7, {"loss": 0.5, "unsaved": 1.0})
        run.log(10, {"accuracy": 0.25})
    trajectory = open_trajectory(tmp_path / "run")
    assert trajectory.steps == [0, 5, 10] and trajectory.skipped == []
    assert trajectory.run["family"] == "toy"
    with trajectory.checkpoint(5) as checkpoint:
        assert checkpoint.config == {"d_model": 3, "ckpt_family": "toy"}
        assert checkpoint.aliases == {"head": "embed"}
        np.testing.assert_array_equal(checkpoint.read("head"), W * 5)
    (tmp_path / "run" / "run.json").rename(tmp_path / "away")
    with trajectory.checkpoint(10) as checkpoint:  # what was read once is not looked for again
        assert checkpoint.config == {"d_model": 3, "ckpt_family": "toy"}
    metrics = trajectory.metrics([5, 10])
    assert metrics["loss"] == [1 / 6, 1 / 11] and set(metrics) == {"loss", "accuracy"}
    assert math.isnan(metrics["accuracy"][0]) and metrics["accuracy"][1] == 0.25


def test_metrics_survive_a_torn_line_and_name_a_damaged_one(make):
    path = make("step-0", "step-1")
    (path / "run.json").write_text('{"family": "toy"}')
    (path / "metrics.jsonl").write_text('{"step": 0, "loss": 2.0, "note": "hi", "gap": null}\n{"step": 1, "lo')
    assert open_trajectory(path).metrics()["loss"][0] == 2.0
    assert set(open_trajectory(path).metrics()) == {"loss"}
    (path / "metrics.jsonl").write_text('{"step": 0}\n{"loss": 1}\n')
    with pytest.raises(FormatError, match="line 2: expected a number 'step'"):
        open_trajectory(path).metrics()
    (path / "metrics.jsonl").write_text("torn\n{}\n")
    with pytest.raises(FormatError, match="line 1: not valid JSON"):
        open_trajectory(path).metrics()


def test_a_damaged_run_file_is_named(make):
    path = make("step-0")
    (path / "run.json").write_text("{")
    with pytest.raises(FormatError, match=r"run.json is not valid JSON"):
        open_trajectory(path)


def test_checkpoints_of_a_trajectory_hash_while_they_are_read(make):
    trajectory = open_trajectory(make("step-0", "step-1"))
    with trajectory.checkpoint(0) as checkpoint:
        checkpoint.read("a")
        checkpoint.content_hash()
        assert checkpoint.bytes_read == 16
    with trajectory.checkpoint(1) as other:
        assert other.layout_key == checkpoint.layout_key
        assert other.content_hash() != checkpoint.content_hash()


def test_listing_2000_steps_opens_none_of_them(tmp_path):
    for step in range(2000):
        (tmp_path / f"step-{step:06d}").mkdir()
    trajectory = open_trajectory(tmp_path)
    assert trajectory.steps == list(range(2000))


def test_a_trajectory_can_be_sent_to_a_worker(make):
    copy = pickle.loads(pickle.dumps(open_trajectory(make("step-0", "step-4"))))
    assert copy.steps == [0, 4]
    copy.checkpoint(4).close()


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "mixtral_moe", "mamba"])
def test_real_trajectories(shared_data, family):
    from safetensors.torch import load_file

    path = shared_data / "trajectories/hf-layouts" / family
    trajectory = open_trajectory(path)
    assert trajectory.steps == json.loads((path / "log.json").read_text())["steps"]
    assert trajectory.skipped == [] and isinstance(trajectory.path, Path)
    keys, hashes = set(), set()
    for step in trajectory.steps:
        expected = load_file(path / f"checkpoint-{step}" / "model.safetensors")
        with trajectory.checkpoint(step) as checkpoint:
            assert checkpoint.config["model_type"] in (family, "mixtral")
            for name in checkpoint.tensors:
                np.testing.assert_array_equal(checkpoint.read(name), expected[name].numpy())
            keys.add(checkpoint.layout_key)
            hashes.add(checkpoint.content_hash())
            assert checkpoint.skipped == []
    assert len(keys) == 1 and len(hashes) == len(trajectory)
