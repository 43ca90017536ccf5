"""ZeRO folders written here the way DeepSpeed lays them out: flat partitions, padded and cut over the ranks."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt_tools.checkpoint import open_checkpoint, open_trajectory
from ckpt_tools.errors import FormatError

SHAPES = {"a.weight": (5, 3), "a.bias": (5,), "b.weight": (4, 5), "c": (7,)}
WEIGHTS = {
    name: torch.randn(shape, generator=torch.Generator().manual_seed(i))
    for i, (name, shape) in enumerate(SHAPES.items())
}


def groups() -> list[dict[str, torch.Size]]:
    names = list(SHAPES)
    return [{n: torch.Size(SHAPES[n]) for n in names[:2]}, {n: torch.Size(SHAPES[n]) for n in names[2:]}]


def write(folder: Path, stage: int, world: int) -> Path:
    """A folder as DeepSpeed's engine writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = {
        "module": {} if stage == 3 else {name: weight.to(torch.bfloat16) for name, weight in WEIGHTS.items()},
        "buffer_names": ["mask"], "param_shapes": groups(), "shared_params": [["tied", "b.weight"]],
        "global_steps": 12, "ds_version": "0.16.0",
    }  # fmt: skip
    model["module"]["mask"] = torch.ones(2)
    if stage < 3:
        torch.save(model, folder / "mp_rank_00_model_states.pt")
    for rank in range(world):
        if stage == 3:
            torch.save(model, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        flat = [partition(group, stage, world, rank) for group in groups()]
        state = {"zero_stage": stage, "partition_count": world, key: flat, "base_optimizer_state": {"x": torch.ones(3)}}
        torch.save({"optimizer_state_dict": state}, folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return folder


def partition(group: dict[str, torch.Size], stage: int, world: int, rank: int) -> torch.Tensor:
    if stage == 3:
        parts = []
        for name in group:
            flat, size = WEIGHTS[name].reshape(-1), ceil(WEIGHTS[name].numel() / world)
            parts.append(torch.nn.functional.pad(flat, (0, size * world - len(flat)))[rank * size : (rank + 1) * size])
        return torch.cat(parts).clone()
    flat = torch.cat([WEIGHTS[name].reshape(-1) for name in group])
    align = 2 * world
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % align))
    size = len(flat) // world
    return flat[rank * size : (rank + 1) * size].clone()


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_float32_copies_are_put_together(tmp_path, stage, world):
    folder = write(tmp_path / "global_step12", stage, world)
    with open_checkpoint(folder, part="fp32", hashing=True) as checkpoint:
        assert checkpoint.format == f"DeepSpeed ZeRO stage {stage} (float32)"
        assert checkpoint.step == 12 and checkpoint.notes == []
        assert checkpoint.bytes_read == 0
        for name, weight in WEIGHTS.items():
            np.testing.assert_array_equal(checkpoint.read(name), weight.numpy())
            np.testing.assert_array_equal(checkpoint.read(name, slice(1, 3)), weight.numpy()[1:3])
        assert checkpoint.aliases == {"tied": "b.weight"}
        assert checkpoint.read("mask").tolist() == [1.0, 1.0]


def test_rows_read_only_their_bytes(tmp_path):
    with open_checkpoint(write(tmp_path / "x", 3, 2)) as checkpoint:
        checkpoint.read("b.weight", slice(1, 2))
        assert checkpoint.bytes_read == 20


@pytest.mark.parametrize("stage", [1, 2])
def test_the_weights_computed_with_come_first(tmp_path, stage):
    with open_checkpoint(write(tmp_path / "x", stage, 2)) as checkpoint:
        assert checkpoint.format == "DeepSpeed ZeRO"
        assert checkpoint.tensors["a.weight"].dtype == "bfloat16"
        np.testing.assert_array_equal(checkpoint.read("a.weight"), WEIGHTS["a.weight"].bfloat16().float().numpy())
        reasons = {skip.name: skip.reason for skip in checkpoint.skipped}
        assert "part 'fp32' opens its float32 copies" in reasons["bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"]


def test_experts_lie_in_files_of_their_own(tmp_path):
    folder = write(tmp_path / "x", 2, 1)
    torch.save({"moe.experts.0.w": torch.ones(2, 2)}, folder / "layer_0_expert_0_mp_rank_00_model_states.pt")
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.read("moe.experts.0.w").sum() == 4 and "a.weight" in checkpoint.tensors


def test_a_folder_that_names_its_latest(tmp_path):
    write(tmp_path / "checkpoint-12" / "global_step12", 3, 2)
    (tmp_path / "checkpoint-12" / "latest").write_text("global_step12\n")
    with open_checkpoint(tmp_path / "checkpoint-12") as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("c"), WEIGHTS["c"].numpy())
    trajectory = open_trajectory(tmp_path / "checkpoint-12")
    assert trajectory.steps == [12]
    (tmp_path / "checkpoint-12" / "latest").write_text("../../etc")
    with pytest.raises(Exception, match="is a trajectory of 1 checkpoints"):
        open_checkpoint(tmp_path / "checkpoint-12")


def remove_rank(folder: Path) -> None:
    (folder / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()


def remove_all(folder: Path) -> None:
    for path in folder.glob("*optim_states.pt"):
        path.unlink()


def second_slice(folder: Path) -> None:
    torch.save({}, folder / "zero_pp_rank_0_mp_rank_01_model_states.pt")


def pipeline(folder: Path) -> None:
    torch.save({}, folder / "layer_00-model_00-model_states.pt")


def forget_shapes(folder: Path) -> None:
    for path in folder.glob("*model_states.pt"):
        torch.save({"module": {}}, path)


def more_parameters(folder: Path) -> None:
    for path in folder.glob("*model_states.pt"):
        torch.save({"param_shapes": [*groups(), {"z": torch.Size([2])}]}, path)


def larger(folder: Path) -> None:
    for path in folder.glob("*model_states.pt"):
        torch.save({"param_shapes": [groups()[0], {**groups()[1], "c": torch.Size([11])}]}, path)


def smaller(folder: Path) -> None:
    for path in folder.glob("*model_states.pt"):
        torch.save({"param_shapes": [groups()[0], {"c": torch.Size([7])}]}, path)


def halves(folder: Path) -> None:
    for path in folder.glob("*optim_states.pt"):
        torch.save({"optimizer_state_dict": {"fp32_flat_groups": [torch.ones(9).half()], "zero_stage": 3}}, path)


@pytest.mark.parametrize(
    ("spoil", "stage", "message"),
    [
        (remove_all, 3, "no files of optimizer states"), (second_slice, 3, "is tensor-parallel"),
        (pipeline, 2, "is pipeline-parallel"), (forget_shapes, 3, "does not say which parameters"),
        (more_parameters, 2, "3 groups of parameters, 2 of partitions"), (larger, 2, "the partitions end within 'c'"),
        (larger, 3, "the partitions end within 'c'"), (smaller, 2, "group 1.* 7 parameters, .*partitions.* 28"),
        (smaller, 3, "the partitions go on after the last parameter"), (halves, 3, "no flat array of float32"),
        (remove_rank, 2, "of 1 of 2 ranks are there"), (remove_rank, 3, "of 1 of 2 ranks are there"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path, spoil, stage, message):
    folder = write(tmp_path / "x", stage, 2)
    spoil(folder)
    with pytest.raises(FormatError, match=message):
        open_checkpoint(folder, part="fp32")
