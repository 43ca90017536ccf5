"""Trajectories in folders of all the usual shapes, and folders that only look like one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from ckpt_tools.checkpoint import open_trajectory
from ckpt_tools.errors import SourceError

W = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def files(tmp_path, save):
    """`files(name, ...)`: a folder of files, the tensors of each filled with its position; `tensor` names them."""

    def build(*names: str, tensor: str = "a", metadata: dict[str, dict[str, str]] | None = None) -> Path:
        for i, name in enumerate(names):
            tensors = {tensor: W + i, "bias": np.full(3, i, np.float32)}
            save(tmp_path / "run" / name, tensors, (metadata or {}).get(name))
        return tmp_path / "run"

    return build


def reasons(trajectory):
    return {skip.name: skip.reason for skip in trajectory.skipped}


@pytest.mark.parametrize(
    ("names", "steps", "unit"),
    [
        (["model_epoch_10.pt", "model_epoch_2.pt"], [2, 10], "epoch"),
        (["27-0.83.hdf5", "3-0.9.hdf5"], [3, 27], "step"),
        (["step=400.ckpt", "step=800.ckpt"], [400, 800], "step"),
        (["epoch=3-step=1200.ckpt", "epoch=4-step=1600.ckpt"], [1200, 1600], "step"),
        (["10.safetensors", "9.safetensors"], [9, 10], "step"),
        (["checkpoint_10", "checkpoint_20"], [10, 20], "step"),
        (["1000/model.safetensors", "200/model.safetensors"], [200, 1000], "step"),
        (["net-1000/model.safetensors", "net-200/model.safetensors"], [200, 1000], "step"),
        (["pythia-step0/model.safetensors", "pythia-step8/model.safetensors"], [0, 8], "step"),
    ],
)
def test_shapes(files, names, steps, unit):
    trajectory = open_trajectory(files(*names))
    assert (trajectory.steps, trajectory.unit, trajectory.skipped) == (steps, unit, [])
    with trajectory.checkpoint(steps[0]) as checkpoint:
        position = next(i for i, name in enumerate(names) if name.startswith(checkpoint.path.name))
        assert checkpoint.read("bias")[0] == position and checkpoint.step == steps[0]


def test_two_runs_are_listed_and_chosen(files):
    path = files("runA_step10.pt", "runB_step10.pt", "runA_step20.pt", "runB_step30.pt")
    with pytest.raises(SourceError, match=r"holds 2 runs: 'runA' \(2 checkpoints, step 10 to 20\), 'runB' .*::runA'"):
        open_trajectory(path)
    assert open_trajectory(f"{path}::runB").steps == [10, 30]
    assert open_trajectory(f"{path}::runA_*").steps == [10, 20]
    assert reasons(open_trajectory(f"{path}::runB"))["runA_step10.pt"].startswith("of no known step")
    with pytest.raises(SourceError, match=r"no single run 'runC'. Did you mean"):
        open_trajectory(f"{path}::runC")
    with pytest.raises(SourceError, match="no series of checkpoints"):
        open_trajectory(f"{files('lone/model.safetensors') / 'lone'}::runA")


def test_a_glob_names_checkpoints(files):
    path = files("runA_step10.pt", "runB_step10.pt", "runA_step20.pt", "sub/runA_step30.pt")
    assert open_trajectory(f"{path}/runA_*.pt").steps == [10, 20]
    with pytest.raises(SourceError, match=r"holds 2 runs: 'runA'.*Narrow the glob"):
        open_trajectory(f"{path}/*.pt")
    with pytest.raises(SourceError, match="No path fits"):
        open_trajectory(f"{path}/*_epoch_*.pt")
    assert open_trajectory(f"{path}/sub/*.pt").steps == [30]


def test_a_glob_takes_the_step_from_the_folder(files):
    path = files("step10/model.safetensors", "step20/model.safetensors", "best/model.safetensors")
    trajectory = open_trajectory(f"{path}/step*/model.safetensors")
    assert trajectory.steps == [10, 20]
    trajectory.checkpoint(20).close()


def test_a_glob_without_numbers_asks_for_a_list(files):
    path = files("first.pt", "second.pt")
    with pytest.raises(SourceError, match=r"no number in 'first.pt' tells its step"):
        open_trajectory(f"{path}/*.pt")


def test_a_name_that_looks_like_a_glob_and_exists_is_opened(files):
    path = files("a[1]/step-1/model.safetensors", "a[1]/step-2/model.safetensors")
    assert open_trajectory(path / "a[1]").steps == [1, 2]


def test_a_list_file(files, monkeypatch):
    path = files("one.pt", "two.pt", "with 3 blanks 4", "x_step7.pt", metadata={"two.pt": {"step": "99"}})
    text = "# my picks\n\none.pt\t5\nwith 3 blanks 4 11\nx_step7.pt\ntwo.pt\n"
    (path / "list.txt").write_text(text)
    trajectory = open_trajectory(f"@{path}/list.txt")
    assert [(e.step, e.path.name) for e in trajectory.entries] == [
        (5, "one.pt"), (7, "x_step7.pt"), (11, "with 3 blanks 4"), (99, "two.pt"),
    ]  # fmt: skip
    (path / "list.txt").write_text("one.pt 5\none.pt 6\nfirst.pt\n")
    with pytest.raises(SourceError, match=r"list.txt, line 3: .*first.pt does not exist"):
        open_trajectory(f"@{path}/list.txt")
    (path / "list.txt").write_text("one.pt\n")
    with pytest.raises(SourceError, match=r"line 1: no step is known of 'one.pt'"):
        open_trajectory(f"@{path}/list.txt")
    (path / "list.txt").write_text("one.pt 5\ntwo.pt 5\n")
    with pytest.raises(SourceError, match=r"'one.pt' and 'two.pt' are both step 5"):
        open_trajectory(f"@{path}/list.txt")
    (path / "list.txt").write_text("\n# nothing\n")
    with pytest.raises(SourceError, match="lists no checkpoint"):
        open_trajectory(f"@{path}/list.txt")
    (path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match="not UTF-8"):
        open_trajectory(f"@{path}/list.txt")
    with pytest.raises(SourceError, match=r"nowhere\.txt"):
        open_trajectory(f"@{path}/nowhere.txt")


@pytest.mark.parametrize(
    "names",
    [
        ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
        ["__0_0.distcp", "__1_0.distcp"],
        ["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"],
        ["consolidated.00.pth", "consolidated.01.pth"],
        ["layer_00-model_00-model_states.pt", "layer_01-model_00-model_states.pt"],
        ["optimizer_1.bin", "optimizer_2.bin"],
        ["rng_state_0.pth", "rng_state_1.pth"],
        ["p13_wd0_seed0.pt", "p13_wd0_seed1.pt", "p97_wd0_seed0.pt"],
    ],
)
def test_pieces_of_one_checkpoint_are_no_trajectory(tmp_path, save, names):
    for i, name in enumerate(names):
        save(tmp_path / "one" / name, {f"layer.{i}": W})
    try:
        trajectory = open_trajectory(tmp_path / "one")
    except SourceError as error:
        assert "runs" not in str(error)
    else:
        assert len(trajectory) == 1


def test_shards_with_an_index_and_state_beside_are_one_checkpoint(tmp_path, sharded, save):
    folder = sharded(
        tmp_path / "checkpoint-7",
        {f"model-0000{i}-of-00002.safetensors": {f"w{i}": W} for i in (1, 2)},
    )
    save(folder / "global_step7" / "zero_pp_rank_0_mp_rank_00_optim_states.pt", {"m": W})
    for i in (1, 2):
        save(folder / f"random_states_{i}.pkl", {"x": W})
        save(folder / f"buffer_{i}.safetensors", {f"only{i}": W})
    trajectory = open_trajectory(folder)
    assert trajectory.steps == [7]
    with trajectory.checkpoint(7) as checkpoint:
        assert sorted(checkpoint.tensors) == ["w1", "w2"]


def test_bare_numbers_need_the_same_tensors_inside(tmp_path, save):
    for i in range(3):
        save(tmp_path / "one" / f"piece_{i}.safetensors", {f"layer.{i}": W})
    with pytest.raises(SourceError, match="3 files with weights"):
        open_trajectory(tmp_path / "one")


def test_folders_of_data_beside_numbered_files(files):
    path = files("model_epoch_1.pt", "model_epoch_2.pt")
    for i in range(3):
        (path / f"batch_{i}").mkdir()
    trajectory = open_trajectory(path)
    assert trajectory.steps == [1, 2]
    assert reasons(trajectory)["batch_0"] == "a folder, where steps are files"


def test_aliases_are_left_out_with_the_reason(files):
    names = ["checkpoint_epoch_1.pt", "checkpoint_epoch_2.pt", "checkpoint_epoch_70.pt", "best_model.pt", "latest.pt"]
    names += ["other.pt", "optimizer.pt", "swa.pt", "final.pt", "final_1.tmp"]
    facts = {"latest.pt": {"epoch": "35"}, "best_model.pt": {"epoch": "2"}, "swa.pt": {"epoch": "1"}}
    path = files(*names, metadata=facts)
    two = path / "checkpoint_epoch_2.pt"
    (path / "final.pt").write_bytes(two.read_bytes())
    from safetensors.numpy import load_file, save_file

    save_file(load_file(two), path / "best_model.pt", {"epoch": "2"})
    (path / "best_link.pt").symlink_to("checkpoint_epoch_1.pt")
    (path / "broken.pt").write_bytes(b"not weights")
    trajectory = open_trajectory(path)
    assert (trajectory.steps, trajectory.unit) == ([1, 2, 70], "epoch")
    assert reasons(trajectory) == {
        "best_model.pt": "identical to epoch 2",
        "final.pt": "identical to epoch 2",
        "best_link.pt": "a link to epoch 1",
        "latest.pt": "stale: epoch 35 stored inside, while the numbered ones go on to 70",
        "swa.pt": "epoch 1 stored inside, but not the weights of epoch 1",
        "other.pt": "of no known step: none in its name, none inside; name this one itself to read it",
        "broken.pt": "its name holds no step, and it cannot be opened",
        "optimizer.pt": "state of the training loop, not weights",
        "final_1.tmp": "temporary or unfinished",
    }


def test_folder_aliases(files):
    path = files("step-1/model.safetensors", "step-2/model.safetensors", "last/model.safetensors", "model.safetensors")
    (path / "last" / "model.safetensors").write_bytes((path / "step-2" / "model.safetensors").read_bytes())
    (path / "latest").symlink_to("step-2")
    (path / "final").mkdir()
    assert reasons(open_trajectory(path)) == {
        "last": "identical to step 2",
        "latest": "a link to step 2",
        "final": "its name holds no step, and it cannot be opened",
        "model.safetensors": "of no known step: none in its name, none inside; name this one itself to read it",
    }


def test_a_configuration_beside_numbered_files_serves_them_all(files):
    path = files("step_1.safetensors", "step_2.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "toy"}))
    with open_trajectory(path).checkpoint(1) as checkpoint:
        assert checkpoint.config == {"model_type": "toy"}
    (path / "config.json").write_text("{")
    assert "not usable as a configuration" in reasons(open_trajectory(path))["config.json"]


def test_gaps_are_known(files):
    trajectory = open_trajectory(files(*(f"step_{i}.safetensors" for i in (10, 20, 30, 50, 60))))
    assert trajectory.gaps == [40]


def test_pointers_of_a_series_are_steps_too(files):
    path = files("model_epoch_1.pt", "model_epoch_2.pt", "model_epoch_3.pt")
    for name in os.listdir(path):
        (path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    trajectory = open_trajectory(path)
    assert trajectory.steps == [1, 2, 3]
    with pytest.raises(SourceError, match="git-LFS pointer"):
        trajectory.checkpoint(2)


def test_willmore(shared_data):
    trajectory = open_trajectory(shared_data / "trajectories" / "willmore-mlp")
    assert (trajectory.steps, trajectory.unit) == ([1, 2, 10, 20, 70], "epoch")
    try:
        trajectory.checkpoint(1).close()
    except SourceError:
        pytest.skip("torch files are not read yet")
    assert reasons(trajectory) == {
        "best_model.pt": "identical to epoch 2",
        "latest_model.pt": "stale: epoch 35 stored inside, while the numbered ones go on to 70",
    }
