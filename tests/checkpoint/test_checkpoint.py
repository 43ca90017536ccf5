"""What a checkpoint says about itself: keys, hashes, ties, configuration."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from ckpt_tools.checkpoint import Skip, TensorInfo, TensorSource, open_checkpoint
from ckpt_tools.checkpoint.checkpoint import Checkpoint, Opened

W = np.arange(6, dtype=np.float32).reshape(2, 3)


class Memory(TensorSource):
    """The smallest reader there can be."""

    def __init__(self, path, arrays, **fields):
        infos = {n: TensorInfo(n, str(a.dtype), a.shape, a.nbytes, path) for n, a in arrays.items()}
        super().__init__(path=path, tensors=infos, **fields)
        self.arrays = arrays

    def read(self, name, rows=None):
        self.bytes_read += self.arrays[name].nbytes
        return self.arrays[name][rows if rows is not None else ...]


def test_a_reader_needs_only_tensors_and_read(tmp_path, save):
    memory = Memory(tmp_path, {"a": W.T, "s": np.array(5)})
    with Checkpoint(tmp_path, Opened([memory], "memory"), step=3) as mine:
        out = np.empty((3, 2), np.float32)
        mine.read_into("a", out)
        np.testing.assert_array_equal(out, W.T)
        assert mine.digest("s") == hashlib.sha256(np.array(5).tobytes()).hexdigest()
        with open_checkpoint(save(tmp_path / "x", {"a": np.ascontiguousarray(W.T), "s": np.array(5)})) as other:
            assert mine.layout_key == other.layout_key
            assert mine.content_hash() == other.content_hash()
            assert mine.digest("a") == other.digest("a")
    assert "step 3, 2 tensors, memory" in repr(mine)


def test_ties_of_several_sources_and_of_the_opener(tmp_path):
    one = Memory(tmp_path, {"a": W}, aliases={"b": "a"}, skipped=[Skip("o", "state")], metadata={"k": "one", "i": 1})
    two = Memory(tmp_path, {"c": W}, metadata={"k": "two"})
    opened = Opened([one, two], "memory", tied={"head": "c", "a": "c", "lost": "nowhere"}, skipped=[Skip("f", "file")])
    checkpoint = Checkpoint(tmp_path, opened)
    assert checkpoint.aliases == {"b": "a", "head": "c"}
    assert checkpoint.skipped == [Skip("o", "state"), Skip("f", "file")]
    assert checkpoint.metadata == {"k": "one", "i": 1}
    np.testing.assert_array_equal(checkpoint.read("head"), W)
    assert checkpoint.content_hash(["head", "c"]) == checkpoint.content_hash(["c"])


def test_the_layout_key_is_equal_only_for_equal_names_types_shapes_and_configurations(tmp_path, save):
    def key(name, tensors, config=None):
        save(tmp_path / name / "model.safetensors", tensors)
        if config is not None:
            (tmp_path / name / "config.json").write_text(json.dumps(config))
        return open_checkpoint(tmp_path / name).layout_key

    same = key("1", {"a": W, "b": W}, {"n_head": 4, "n_layer": 2})
    assert key("2", {"b": W * 2, "a": W}, {"n_layer": 2, "n_head": 4}) == same
    others = [
        key("3", {"a": W, "c": W}, {"n_head": 4, "n_layer": 2}),
        key("4", {"a": W, "b": W.T.copy()}, {"n_head": 4, "n_layer": 2}),
        key("5", {"a": W, "b": W.astype("f8")}, {"n_head": 4, "n_layer": 2}),
        key("6", {"a": W, "b": W}, {"n_head": 8, "n_layer": 2}),
        key("7", {"a": W, "b": W}),
    ]
    assert len({same, *others}) == 6


def test_the_content_hash_changes_with_every_part_of_a_tensor(tmp_path, save):
    def content(i, **tensors):
        return open_checkpoint(save(tmp_path / str(i), tensors)).content_hash()

    hashes = [
        content(0, a=W), content(1, a=W + 1), content(2, b=W), content(3, a=W.reshape(3, 2)),
        content(4, a=W.view("i4")), content(5, a=W, b=W),
    ]  # fmt: skip
    assert len(set(hashes)) == 6
    with open_checkpoint(tmp_path / "5") as checkpoint:
        assert checkpoint.content_hash(["a"]) == hashes[0]


def test_hashing_reads_every_byte_once(tmp_path, save):
    path = save(tmp_path / "x", {"a": W, "b": W + 1})
    with open_checkpoint(path, hashing=True) as checkpoint:
        checkpoint.read("a")
        checkpoint.read_into("b", np.empty((2, 3), np.float32))
        hashed = checkpoint.content_hash()
        assert checkpoint.bytes_read == 2 * W.nbytes
    with open_checkpoint(path) as checkpoint:
        checkpoint.read("a")
        assert checkpoint.content_hash() == hashed
        assert checkpoint.bytes_read == 3 * W.nbytes


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\x80\x04"])
def test_a_damaged_configuration_is_listed_and_does_not_stop_reading(tmp_path, save, content):
    save(tmp_path / "model.safetensors", {"a": W})
    (tmp_path / "config.json").write_bytes(content)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config == {}
        assert [s.name for s in checkpoint.skipped] == ["config.json"]
        assert "not usable as a configuration" in checkpoint.skipped[0].reason
