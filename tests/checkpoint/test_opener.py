"""Which files of a folder are opened, and the one line for everything that cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from ckpt_tools.checkpoint import open_checkpoint
from ckpt_tools.errors import FormatError, SourceError

W = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "pytorch_model.pt", "no_extension", "x.json"])
def test_the_extension_does_not_matter(tmp_path, save, name):
    with open_checkpoint(save(tmp_path / name, {"a": W})) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("a"), W)
        assert checkpoint.label == name and checkpoint.step == 0


def test_a_folder_of_hugging_face(tmp_path, save):
    folder = tmp_path / "checkpoint-128"
    save(folder / "model.safetensors", {"a": W})
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin", "tokenizer.json"):
        (folder / name).write_bytes(b"anything")
    for path in (folder, str(folder)):
        with open_checkpoint(path) as checkpoint:
            assert (checkpoint.step, checkpoint.label) == (128, "checkpoint-128")
            assert checkpoint.config == {"model_type": "gpt2"}
            reasons = {skip.name: skip.reason for skip in checkpoint.skipped}
    assert reasons.pop("pytorch_model.bin") == "not opened: the weights are read from model.safetensors"
    assert set(reasons) == {"optimizer.pt", "rng_state.pth", "training_args.bin"}
    assert set(reasons.values()) == {"state of the training loop, not weights"}
    with open_checkpoint(folder / "model.safetensors") as checkpoint:
        assert checkpoint.config == {"model_type": "gpt2"}
        assert checkpoint.skipped == []


def test_model_safetensors_comes_before_an_index(tmp_path, save, sharded):
    sharded(tmp_path, {"model-00001-of-00001.safetensors": {"old": W}})
    save(tmp_path / "model.safetensors", {"new": W})
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["new"]
        assert {s.name for s in checkpoint.skipped} == {
            "model-00001-of-00001.safetensors", "model.safetensors.index.json"
        }  # fmt: skip


def test_the_only_file_with_weights_is_found_by_content(tmp_path, save):
    save(tmp_path / "weights.dat", {"a": W})
    save(tmp_path / "optimizer.safetensors", {"m": W})
    (tmp_path / "README.md").write_text("# a model")
    (tmp_path / "old.bin").write_bytes(b"BZh91AY")
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]
        reasons = {skip.name: skip.reason for skip in checkpoint.skipped}
    assert set(reasons) == {"optimizer.safetensors", "old.bin"}
    assert "bzip2-compressed" in reasons["old.bin"]


def test_several_files_with_weights_leave_the_choice(tmp_path, save):
    save(tmp_path / "ema.safetensors", {"a": W})
    save(tmp_path / "raw.safetensors", {"a": W})
    with pytest.raises(
        SourceError, match=r"holds 2 files with weights: ema.safetensors, raw.safetensors. Name the one"
    ):
        open_checkpoint(tmp_path)


def test_two_indices_leave_the_choice_unless_one_has_the_usual_name(tmp_path, sharded):
    sharded(tmp_path, {"model-00001-of-00001.safetensors": {"a": W}})
    for name in ("model.fp16.safetensors.index.json", "pytorch_model.bin.index.json"):
        (tmp_path / name).write_text("{}")
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]
    (tmp_path / "model.safetensors.index.json").rename(tmp_path / "other.index.json")
    (tmp_path / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(SourceError, match="holds 2 indices of shards"):
        open_checkpoint(tmp_path)


def test_of_several_usual_names_the_first_is_read(tmp_path, save):
    save(tmp_path / "pytorch_model.bin", {"b": W})
    save(tmp_path / "flax_model.msgpack", {"c": W})
    (tmp_path / "tf_model.h5").write_bytes(b"anything")
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["b"]
        reasons = {skip.name: skip.reason for skip in checkpoint.skipped}
    assert set(reasons) == {"flax_model.msgpack", "tf_model.h5"}
    assert set(reasons.values()) == {"not opened: the weights are read from pytorch_model.bin"}


def test_folders_of_formats_that_are_not_read_say_what_to_do(tmp_path):
    for name, message in (("_CHECKPOINT_METADATA", "an Orbax checkpoint"), ("saved_model.pb", "a TensorFlow")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(b"{}")
        with pytest.raises(FormatError, match=f"is {message}.* which is not read. .* save"):
            open_checkpoint(folder)


def test_a_broken_file_is_not_passed_over_for_a_whole_one(tmp_path, save):
    save(tmp_path / "a.safetensors", {"a": W})
    whole = save(tmp_path / "b.safetensors", {"b": W}).read_bytes()
    (tmp_path / "b.safetensors").write_bytes(whole[:-1])
    with pytest.raises(FormatError, match=r"b.safetensors: the tensors are truncated: 1 bytes"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"\x1f\x8b\x08", "gzip-compressed"),
        (b"sys_info" + b"\0" * 500, "a tar archive"),
        (b"<?xml version='1.0'?>", "an XML document"),
        (b"epoch,loss\n1,2\n", "text that begins with 'epoch,loss"),
        ("Grüße 日本".encode()[:-1], "text that begins with 'Grüße 日'"),
        (b"\x01\xff\x02\xfe", "of no known format .first bytes 01 ff 02 fe"),
        (b"", "empty .0 bytes"),
    ],
)
def test_other_formats_are_named(tmp_path, head, message):
    (tmp_path / "x.pt").write_bytes(head)
    with pytest.raises(FormatError, match=f"x.pt is {message}.*Supported: safetensors"):
        open_checkpoint(tmp_path / "x.pt")
    with pytest.raises(FormatError, match=f"holds no weights that can be read: .*x.pt is {message}"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"PK\x03\x04", "a zip archive without its end"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02", "truncated or damaged"),
        (b"\x80\x02}q\x00", "truncated or damaged"),
        (b"GGUF\x03\0\0\0", "truncated or damaged"),
        (b"\x93NUMPY\x01\0", "truncated or damaged"),
        (b"\0" * 257 + b"ustar\0", "a tar archive of other files"),
    ],
)
def test_the_beginning_of_a_known_format_is_not_enough(tmp_path, head, message):
    (tmp_path / "x.pt").write_bytes(head)
    for path in (tmp_path / "x.pt", tmp_path):
        with pytest.raises(FormatError, match=f"x.pt is {message}"):
            open_checkpoint(path)


def test_a_missing_path_names_its_nearest_neighbour(tmp_path, save):
    save(tmp_path / "run" / "checkpoint-100" / "model.safetensors", {"a": W})
    with pytest.raises(SourceError, match=r"no 'checkpoint-10' in .*/run. Did you mean 'checkpoint-100'"):
        open_checkpoint(tmp_path / "run" / "checkpoint-10")
    with pytest.raises(SourceError, match=r"there is no 'rnu' in .*Did you mean 'run'"):
        open_checkpoint(tmp_path / "rnu" / "checkpoint-100")
    with pytest.raises(SourceError, match=r"there is no 'zzz' in [^ ]*\.$"):
        open_checkpoint(tmp_path / "run" / "zzz")


def test_what_is_no_file_and_no_folder_is_explained(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(SourceError, match=r"is a link to .*gone, which does not exist"):
        open_checkpoint(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="not a regular file"):
        open_checkpoint(tmp_path / "pipe")
    with pytest.raises(SourceError, match="no local path, and its scheme is not read; known: hf, http"):
        open_checkpoint("ftp://host/name")
    with pytest.raises(SourceError, match="embedded null"):
        open_checkpoint("a\0b")


def test_a_folder_without_weights_is_explained(tmp_path):
    with pytest.raises(SourceError, match="is an empty folder"):
        open_checkpoint(tmp_path)
    (tmp_path / "optimizer.pt").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"holds no weights and no step folders. Only optimizer.pt\.$"):
        open_checkpoint(tmp_path)
    (tmp_path / "logs").mkdir()
    with pytest.raises(SourceError, match=r"no step folders. Perhaps one of its folders is meant: logs\.$"):
        open_checkpoint(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(SourceError, match="is a run without checkpoints yet"):
        open_checkpoint(tmp_path)
    (tmp_path / "step-5").mkdir()
    with pytest.raises(SourceError, match="is a trajectory of 1 checkpoints, not one of them"):
        open_checkpoint(tmp_path)


def test_a_step_folder_of_a_run_takes_configuration_and_ties_from_it(tmp_path, save):
    folder = save(tmp_path / "step-000005" / "model.safetensors", {"embed": W}).parent
    run = {"family": "transformer", "config": {"d": 3}, "tied": {"head": "embed"}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    for path in (folder, folder / "model.safetensors"):
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.config == {"d": 3, "ckpt_family": "transformer"}
            assert checkpoint.aliases == {"head": "embed"}
    (folder / "config.json").write_text('{"own": 1}')
    with open_checkpoint(folder, run=run, step=7, label="seven") as checkpoint:
        assert (checkpoint.config, checkpoint.step, checkpoint.label) == ({"own": 1}, 7, "seven")
        assert checkpoint.aliases == {"head": "embed"}


def test_importing_the_readers_is_cheap():
    heavy = "torch", "safetensors", "scipy", "sklearn", "h5py"
    code = f"import ckpt_tools.checkpoint, sys; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
