"""Sharded checkpoints: complete, incomplete, contradictory, and pointing where they must not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ckpt_tools.checkpoint import open_checkpoint
from ckpt_tools.errors import FormatError, SourceError

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
W = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def folder(tmp_path, sharded) -> Path:
    return sharded(tmp_path / "ckpt", {A: {"x": W, "y": W + 1}, B: {"z": W + 2}})


def reindex(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_reads_each_tensor_from_its_shard(folder):
    with open_checkpoint(folder) as checkpoint:
        assert list(checkpoint.tensors) == ["x", "y", "z"] and len(checkpoint.tensors) == 3
        assert checkpoint.tensors["z"].file == folder / B
        np.testing.assert_array_equal(checkpoint.read("z"), W + 2)
        assert checkpoint.bytes_read == W.nbytes
        assert checkpoint.format == "sharded safetensors"
        assert checkpoint.skipped == []
        assert "q" not in checkpoint.tensors
        with pytest.raises(SourceError, match="no tensor 'q'"):
            checkpoint.read("q")


def test_a_missing_shard_is_named_with_what_it_holds(folder):
    (folder / A).unlink()
    with pytest.raises(FormatError, match=rf"1 of 2 shards missing: {A} \(2 tensors\). 2 of the 3 tensors"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/x", "a\\b", "C:x", "..", ".", "", "a\0b", "a\nb"])
def test_a_shard_must_be_a_plain_name(folder, name):
    reindex(folder, {"x": A, "y": A, "z": name})
    with pytest.raises(FormatError, match="must be the plain name of a file beside it"):
        open_checkpoint(folder)


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    (tmp_path / "elsewhere").write_bytes((folder / B).read_bytes())
    (folder / B).unlink()
    (folder / B).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FormatError, match="is a link that leaves its folder"):
        open_checkpoint(folder)


def test_a_link_inside_the_folder_is_fine(folder):
    (folder / B).rename(folder / "real")
    (folder / B).symlink_to("real")
    with open_checkpoint(folder) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("z"), W + 2)


@pytest.mark.parametrize("depth", [".", "checkpoint-5"])
def test_the_cache_of_the_hub_may_link_into_its_blobs(folder, tmp_path, depth):
    repository = tmp_path / "models--someone--something"
    snapshot = repository / "snapshots" / "main" / depth
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(folder.iterdir())):
        blob = repository / "blobs" / f"{i:064x}"
        file.rename(blob)
        (snapshot / file.name).symlink_to(blob)
    with open_checkpoint(snapshot) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("z"), W + 2)
    (snapshot / B).unlink()
    (repository / "blobs" / "notes.txt").write_bytes(b"x")
    (snapshot / B).symlink_to(repository / "blobs" / "notes.txt")
    with pytest.raises(FormatError, match="is a link that leaves its folder"):
        open_checkpoint(snapshot)


def test_a_shard_of_another_save_is_noticed(folder, save):
    save(folder / B, {"other": W})
    with pytest.raises(FormatError, match=f"{B} holds tensor 'z', which it does not. Index and shards"):
        open_checkpoint(folder)


def test_an_index_that_points_to_the_wrong_shard_is_noticed(folder):
    reindex(folder, {"x": A, "y": A, "z": A})
    with pytest.raises(FormatError, match=f"{A} holds tensor 'z', which it does not"):
        open_checkpoint(folder)
    reindex(folder, {"x": A, "y": B, "z": B})
    with pytest.raises(FormatError, match=f"{B} holds tensor 'y', which it does not; it is in {A}"):
        open_checkpoint(folder)


def test_tensors_beside_the_index_are_skipped_by_name(folder, save):
    save(folder / B, {"z": W + 2, "x": W * 0})
    with open_checkpoint(folder) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("x"), W)
        assert [(s.name, s.reason) for s in checkpoint.skipped] == [
            ("x", f"{B} holds it, but model.safetensors.index.json does not list it there")
        ]


@pytest.mark.parametrize("weight_map", [None, [], {}, {"x": 1}, {"x": ["a"]}])
def test_an_index_without_a_map_is_refused(folder, weight_map):
    reindex(folder, weight_map)
    with pytest.raises(FormatError, match=r"index.json: an index of shards needs 'weight_map'"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\nsize 9\n", "git-LFS pointer .* of 9 bytes"),
        (b"", "empty"),
        (b'{"weight_map": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"weight_map": {"x": "a", "x": "b"}}', "'x' occurs twice"),
    ],
)
def test_a_damaged_index_is_explained(folder, text, message):
    (folder / "model.safetensors.index.json").write_bytes(text)
    with pytest.raises(FormatError, match=message):
        open_checkpoint(folder)


def test_numbered_shards_without_an_index(folder):
    (folder / "model.safetensors.index.json").unlink()
    with open_checkpoint(folder) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("z"), W + 2)
        assert checkpoint.format == "sharded safetensors without index"
    (folder / A).unlink()
    with pytest.raises(FormatError, match=r"1 of 2 shards missing beside model-00002.*, number 1 first"):
        open_checkpoint(folder)


def test_a_tensor_in_two_numbered_shards_is_refused(folder, save):
    (folder / "model.safetensors.index.json").unlink()
    save(folder / B, {"z": W, "x": W})
    with pytest.raises(FormatError, match="'x' is both in"):
        open_checkpoint(folder)


def test_shards_and_one_file_have_the_same_layout_and_content(folder, tmp_path, save):
    whole = save(tmp_path / "whole", {"x": W, "y": W + 1, "z": W + 2})
    with open_checkpoint(folder) as one, open_checkpoint(whole) as other:
        assert one.layout_key == other.layout_key
        assert one.content_hash() == other.content_hash()


def test_real_shards(shared_data):
    from safetensors.torch import load_file

    folder = shared_data / "models/stories260k/hf_bf16_sharded"
    with open_checkpoint(folder) as checkpoint:
        assert len(checkpoint.tensors) == 47 and checkpoint.config["num_key_value_heads"] == 4
        for shard in sorted(folder.glob("*.safetensors")):
            for name, tensor in load_file(shard).items():
                np.testing.assert_array_equal(checkpoint.read(name), tensor.float().numpy())
    with pytest.raises(FormatError, match=r"1 of 4 shards missing: model-00003-of-00004.safetensors \(\d+ tensors\)"):
        open_checkpoint(shared_data / "models/stories260k-formats/sharded_one_missing")
