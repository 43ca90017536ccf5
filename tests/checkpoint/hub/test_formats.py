"""Every kind of format read over the network gives what it gives from the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt_tools.checkpoint import open_checkpoint, open_trajectory

pytestmark = pytest.mark.filterwarnings("ignore")
STATE = {f"layers.{i}.weight": torch.randn(64, 128, generator=torch.Generator().manual_seed(i)) for i in range(4)}


def zipped(folder: Path) -> None:
    torch.save(STATE, folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"model_type": "x"}')


def legacy(folder: Path) -> None:
    torch.save({"model": STATE, "step": 7}, folder / "checkpoint.pt", _use_new_zipfile_serialization=False)


def arrays(folder: Path) -> None:
    np.savez(folder / "weights.npz", **{name: tensor.numpy() for name, tensor in STATE.items()})


def distributed(folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save({"model": STATE, "step": 7}, checkpoint_id=str(folder))


def deepspeed(folder: Path) -> None:
    torch.save({"module": STATE, "global_steps": 7, "ds_version": "0.16"}, folder / "mp_rank_00_model_states.pt")


def sharded(folder: Path) -> None:
    import json

    names = list(STATE)
    shards = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[2 * i : 2 * i + 2] for i in range(2)}
    for shard, held in shards.items():
        torch.save({name: STATE[name] for name in held}, folder / shard)
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("write", [zipped, legacy, arrays, distributed, deepspeed, sharded])
def test_a_remote_folder_holds_what_the_local_one_holds(hub, tmp_path, write):
    folder = tmp_path / "local"
    folder.mkdir()
    write(folder)
    hub.commit("org/name", {path.name: path.read_bytes() for path in folder.iterdir()}, branch="step7")
    local, remote = open_checkpoint(folder), open_checkpoint("hf://org/name@step7")
    assert (remote.format, list(remote.tensors), remote.config) == (local.format, list(local.tensors), local.config)
    assert remote.step == 7 and remote.metadata["commit"]
    for name, tensor in STATE.items():
        assert np.array_equal(remote.read(name), tensor.numpy())
        assert np.array_equal(remote.read(name, slice(3, 9)), tensor[3:9].numpy())
    assert remote.digest("layers.1.weight") == local.digest("layers.1.weight")
    assert open_trajectory("hf://org/name@step*").checkpoint(7).content_hash() == local.content_hash()


def test_wrappers_around_the_names_do_not_hide_the_traffic(hub, packed):
    tensors = {f"_orig_mod.{name}": tensor.numpy() for name, tensor in STATE.items()}
    hub.commit("org/name", {"model.safetensors": packed(tensors)}, branch="main")
    with open_checkpoint("hf://org/name") as checkpoint:
        assert list(checkpoint.tensors) == list(STATE) and checkpoint.metadata["commit"]
        checkpoint.expect(STATE)
        before = len(hub.asked("cdn/"))
        for name, tensor in STATE.items():
            assert np.array_equal(checkpoint.read(name), tensor.numpy())
        assert len(hub.asked("cdn/")) == before + 1 and checkpoint.bytes_transferred >= 4 * 4 * 64 * 128
