"""Folders of torch.distributed.checkpoint, against torch's own writer."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from ckpt_tools.checkpoint import open_checkpoint
from ckpt_tools.errors import FormatError

pytestmark = pytest.mark.filterwarnings("ignore")


def state() -> dict:
    return {
        "model": {
            "a.weight": torch.arange(12.0).reshape(3, 4),
            "b.weight": torch.arange(6).reshape(2, 3).to(torch.bfloat16),
            "scalar": torch.tensor(2.5),
            "empty": torch.ones(0, 4),
        },
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
        "step": 7,
    }


@pytest.fixture
def folder(tmp_path):
    dcp.save(state(), checkpoint_id=str(tmp_path / "run"))
    return tmp_path / "run"


def test_as_torch_wrote_it(folder):
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.format == "torch.distributed.checkpoint"
        assert checkpoint.step == checkpoint.metadata["step"] == 7
        assert set(checkpoint.tensors) == set(state()["model"])
        assert [skip.name for skip in checkpoint.skipped] == ["optimizer"]
        assert checkpoint.bytes_read == 0
        for name, tensor in state()["model"].items():
            np.testing.assert_array_equal(checkpoint.read(name), tensor.float().numpy())
        assert checkpoint.bytes_read == 48 + 12 + 4
        np.testing.assert_array_equal(
            checkpoint.read("a.weight", slice(1, 2)), state()["model"]["a.weight"][1:2].numpy()
        )


def write(folder: Path, tensor: torch.Tensor, boxes: list[tuple[tuple[int, ...], tuple[int, ...]]], **changes) -> Path:
    """One tensor cut into boxes, as several ranks would write it."""
    folder.mkdir(exist_ok=True)
    chunks, stored = [], {}
    for rank, (offsets, sizes) in enumerate(boxes):
        piece = tensor[tuple(slice(at, at + n) for at, n in zip(offsets, sizes, strict=True))].clone()
        name = f"__{rank}_0.distcp"
        torch.save(piece, folder / name)
        chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
        length = (folder / name).stat().st_size
        stored[MetadataIndex("w", torch.Size(offsets), rank)] = _StorageInfo(name, 0, length)
    properties = TensorProperties(dtype=tensor.dtype)
    what = TensorStorageMetadata(properties, torch.Size(changes.pop("size", tensor.shape)), chunks)
    index = {"state_dict_metadata": {"w": what}, "storage_data": stored, **changes}
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata(**index)))
    return folder


QUARTERS = [((0, 0), (2, 3)), ((0, 3), (2, 1)), ((2, 0), (3, 3)), ((2, 3), (3, 1))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("boxes", [[((0, 0), (5, 4))], [((3, 0), (2, 4)), ((0, 0), (3, 4))], QUARTERS])
def test_a_sharded_tensor_is_put_together(tmp_path, boxes, dtype):
    tensor = torch.arange(20).reshape(5, 4).to(dtype)
    with open_checkpoint(write(tmp_path / "x", tensor, boxes)) as checkpoint:
        wanted = tensor.float().numpy() if dtype is torch.bfloat16 else tensor.numpy()
        np.testing.assert_array_equal(checkpoint.read("w"), wanted)
        for rows in (slice(0, 1), slice(1, 4), slice(4, 5), slice(2, 2)):
            np.testing.assert_array_equal(checkpoint.read("w", rows), wanted[rows])


def test_only_the_pieces_that_rows_touch_are_read(tmp_path):
    tensor = torch.arange(4000.0).reshape(1000, 4)
    boxes = [((at, 0), (100, 4)) for at in range(0, 1000, 100)]
    with open_checkpoint(write(tmp_path / "x", tensor, boxes)) as checkpoint:
        checkpoint.read("w", slice(150, 160))
        assert checkpoint.bytes_read == 10 * 4 * 4


WRONG = {
    "a hole": (QUARTERS[:3], {}, "3 pieces do not make up its shape"),
    "an overlap": ([*QUARTERS[:3], ((1, 3), (3, 1))], {}, "do not make up its shape"),
    "outside": (QUARTERS, {"size": (4, 5)}, "do not make up its shape"),
    "another size": (QUARTERS, {"size": (5, 5)}, "do not make up its shape"),
    "another number of axes": (QUARTERS, {"size": (20,)}, "another number of axes"),
    "no size": (QUARTERS, {"size": (-5, -4)}, "has no size"),
    "stored nowhere": (QUARTERS, {"storage_data": {}}, "is stored nowhere; the save is not complete"),
    "no index": (QUARTERS, {"storage_data": None}, "is no index of torch.distributed.checkpoint"),
}


@pytest.mark.parametrize("case", WRONG)
def test_pieces_that_do_not_fit(tmp_path, case):
    boxes, changes, message = WRONG[case]
    tensor = torch.arange(20.0).reshape(5, 4)
    with pytest.raises(FormatError, match=message):
        open_checkpoint(write(tmp_path / "x", tensor, boxes, **changes))


def test_a_missing_file_is_named(tmp_path):
    folder = write(tmp_path / "x", torch.ones(5, 4), QUARTERS)
    (folder / "__2_0.distcp").unlink()
    with pytest.raises(FormatError, match=r"1 of 4 files missing: __2_0.distcp"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/b", "..", "", "c:x"])
def test_an_index_names_only_files_beside_it(tmp_path, name):
    places = {MetadataIndex("w", torch.Size([0, 0]), 0): _StorageInfo(name, 0, 10)}
    folder = write(tmp_path / "x", torch.ones(5, 4), [((0, 0), (5, 4))], storage_data=places)
    with pytest.raises(FormatError, match="a shard must be the plain name of a file beside it"):
        open_checkpoint(folder)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    folder = write(tmp_path / "x", torch.ones(5, 4), [((0, 0), (5, 4))])
    shutil.move(folder / "__0_0.distcp", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", folder / "__0_0.distcp")
    with pytest.raises(FormatError, match="a link that leaves its folder"):
        open_checkpoint(folder)


def test_a_piece_that_is_something_else(tmp_path):
    folder = write(tmp_path / "x", torch.ones(5, 4), [((0, 0), (5, 4))])
    for value, message in ((torch.ones(4, 5), r"is float32 \[4, 5\]"), ({"a": 1}, "holds no tensor")):
        torch.save(value, folder / "__0_0.distcp")
        length = (folder / "__0_0.distcp").stat().st_size
        places = {MetadataIndex("w", torch.Size([0, 0]), 0): _StorageInfo("__0_0.distcp", 0, length)}
        index = pickle.loads((folder / ".metadata").read_bytes())
        index.storage_data = places
        (folder / ".metadata").write_bytes(pickle.dumps(index))
        with open_checkpoint(folder) as checkpoint, pytest.raises(FormatError, match=message):
            checkpoint.read("w")


def test_a_piece_that_claims_to_be_longer_than_its_file(tmp_path):
    places = {MetadataIndex("w", torch.Size([0, 0]), 0): _StorageInfo("__0_0.distcp", 10, 2**40)}
    folder = write(tmp_path / "x", torch.ones(5, 4), [((0, 0), (5, 4))], storage_data=places)
    with open_checkpoint(folder) as checkpoint, pytest.raises(FormatError, match="truncated or damaged"):
        checkpoint.read("w")


def test_transformed_pieces_are_left_out(tmp_path):
    places = {MetadataIndex("w", torch.Size([0, 0]), 0): _StorageInfo("__0_0.distcp", 0, 10, ["zstd"])}
    folder = write(tmp_path / "x", torch.ones(5, 4), [((0, 0), (5, 4))], storage_data=places)
    with pytest.raises(FormatError, match=r"holds no tensors that can be read.*its bytes were transformed"):
        open_checkpoint(folder)


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_a_payload_in_the_index_is_not_run(tmp_path):
    """torch reads `.metadata` with pickle.load: the same folder opened by torch runs it."""
    canary = tmp_path / "canary"
    folder = write(tmp_path / "x", torch.ones(5, 4), [((0, 0), (5, 4))], planner_data=Payload(canary))
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.read("w").sum() == 20
        assert any("system" in skip.name for skip in checkpoint.skipped)
    assert not canary.exists()
    dcp.FileSystemReader(str(folder)).read_metadata()
    assert canary.exists()


def test_bytes_are_not_weights(tmp_path):
    folder = write(tmp_path / "x", torch.ones(5, 4), [((0, 0), (5, 4))])
    index = pickle.loads((folder / ".metadata").read_bytes())
    index.state_dict_metadata["loader"] = BytesStorageMetadata()
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    with open_checkpoint(folder) as checkpoint:
        assert list(checkpoint.tensors) == ["w"]


def test_folders_around_it(tmp_path, folder):
    outer = tmp_path / "checkpoint-20"
    outer.mkdir()
    shutil.move(folder, outer / "pytorch_model_fsdp_0")
    (outer / "optimizer_0").mkdir()
    (outer / "config.json").write_text('{"model_type": "gpt2"}')
    with open_checkpoint(outer) as checkpoint:
        assert set(checkpoint.tensors) == set(state()["model"])
        assert (checkpoint.step, checkpoint.config) == (20, {"model_type": "gpt2"})
        assert checkpoint.notes == ["taken as step 20, but the file says step 7"]


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_one_of_its_files_alone_says_what_it_is(folder, name):
    with pytest.raises(FormatError, match=r"part of a torch.distributed.checkpoint folder; open the folder"):
        open_checkpoint(folder / name)
