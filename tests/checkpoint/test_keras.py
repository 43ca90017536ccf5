"""HDF5 as Keras writes it (made with h5py), and what HDF5 would do to whoever trusts it."""

from __future__ import annotations

import io
import json
import zipfile

import h5py
import numpy as np
import pytest

from ckpt_tools.checkpoint import open_checkpoint
from ckpt_tools.errors import FormatError

K = np.arange(12, dtype=np.float32).reshape(3, 4)
CONFIG = {"class_name": "Sequential", "config": {"layers": [{"units": 4}]}}


def keras_2(path, *, whole=True):
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole else file
        root.attrs["layer_names"] = [b"dense", b"norm"]
        root["dense/dense/kernel:0"], root["dense/dense/bias:0"] = K, np.ones(4, np.float32)
        root["norm/norm/gamma:0"] = np.ones(4, np.float32)
        if whole:
            file.attrs["model_config"] = json.dumps(CONFIG)
            file["optimizer_weights/Adam/iter:0"] = np.int64(5)
    return path


def keras_3(target):
    with h5py.File(target, "w") as file:
        file["layers/dense/vars/0"], file["layers/dense/vars/1"] = K, np.ones(4, np.float32)
        file["optimizer/vars/0"] = np.int64(3)
    return target


@pytest.mark.parametrize("whole", [True, False])
def test_keras_2(tmp_path, whole):
    with open_checkpoint(keras_2(tmp_path / "m.h5", whole=whole)) as checkpoint:
        assert set(checkpoint.tensors) == {"dense/kernel:0", "dense/bias:0", "norm/gamma:0"}
        np.testing.assert_array_equal(checkpoint.read("dense/kernel:0"), K)
        np.testing.assert_array_equal(checkpoint.read("dense/kernel:0", slice(1, 3)), K[1:])
        assert checkpoint.config == (CONFIG if whole else {})
        assert checkpoint.bytes_read == 48 + 32


def test_keras_3(tmp_path):
    made = io.BytesIO()
    keras_3(made)
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(CONFIG))
        archive.writestr("model.weights.h5", made.getvalue())
    keras_3(tmp_path / "m.weights.h5")
    for name, config in (("m.weights.h5", {}), ("m.keras", CONFIG)):
        with open_checkpoint(tmp_path / name) as checkpoint:
            assert set(checkpoint.tensors) == {"layers/dense/vars/0", "layers/dense/vars/1"}
            np.testing.assert_array_equal(checkpoint.read("layers/dense/vars/0"), K)
            assert checkpoint.config == config
            assert "optimizer/vars/0" in {skip.name for skip in checkpoint.skipped}


def test_chunked_and_compressed_datasets(tmp_path):
    wide = np.random.default_rng(0).normal(size=(100, 30))
    with h5py.File(tmp_path / "x", "w") as file:
        file.create_dataset("gz", data=wide, chunks=(7, 5), compression="gzip", shuffle=True)
        file.create_dataset("half", data=K.astype(np.float16), chunks=(2, 2))
        file.create_dataset("big", data=K.astype(">f4"))
        file.create_dataset("scalar", data=2.5)
    with open_checkpoint(tmp_path / "x", hashing=True) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("gz"), wide)
        np.testing.assert_array_equal(checkpoint.read("gz", slice(11, 40)), wide[11:40])
        np.testing.assert_array_equal(checkpoint.read("half"), K)
        np.testing.assert_array_equal(checkpoint.read("big"), K)
        assert checkpoint.read("scalar") == 2.5
        assert checkpoint.tensors["gz"].nbytes != wide.nbytes


def external_link(file, other):
    file["w"] = h5py.ExternalLink(str(other), "secret")


def soft_link(file, other):
    file["real"] = K
    file["w"] = h5py.SoftLink("/real")


def external_storage(file, other):
    file.create_dataset("w", (10,), "f4", external=[(str(other), 0, 40)])


def virtual(file, other):
    layout = h5py.VirtualLayout((10,), "f8")
    layout[:] = h5py.VirtualSource(str(other), "secret", (10,))
    file.create_virtual_dataset("w", layout)


def deep_link(file, other):
    file.create_group("a/b/c")["d"] = h5py.ExternalLink(str(other), "secret")


@pytest.mark.parametrize("trap", [external_link, soft_link, external_storage, virtual, deep_link])
def test_other_files_are_not_read(tmp_path, trap):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.arange(10.0)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        trap(file, tmp_path / "other.h5")
    with pytest.raises(FormatError, match=r"links are not followed|takes its numbers from other files"):
        open_checkpoint(tmp_path / "x.h5")


def test_a_dataset_of_terabytes_in_a_kilobyte(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("bomb", (2**20, 2**20), "f4", chunks=(2**10, 2**10))
        file.create_dataset("zeros", data=np.zeros(2**25, np.float32), compression="gzip")
        file["w"] = K
    with open_checkpoint(tmp_path / "x.h5") as checkpoint:
        assert set(checkpoint.tensors) == {"w"}
        assert {skip.name for skip in checkpoint.skipped} == {"bomb", "zeros"}
        assert all("stored ones inflated" in skip.reason for skip in checkpoint.skipped)


def test_filters_that_are_programs_of_their_own(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_chunk((2, 2))
        layout.set_filter(32_015, h5py.h5z.FLAG_OPTIONAL, ())
        h5py.h5d.create(file.id, b"v", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((4, 4)), layout)
        file["w"] = K
    with open_checkpoint(tmp_path / "x.h5") as checkpoint:
        assert list(checkpoint.tensors) == ["w"]
        assert checkpoint.skipped[0].reason.startswith("compressed by HDF5 filter 32015")


def test_groups_in_a_circle(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        group = file.create_group("a/b")
        group["w"], group["back"] = K, file["a"]
    with open_checkpoint(tmp_path / "x.h5") as checkpoint:
        assert list(checkpoint.tensors) == ["a/b/w"]


def test_texts_and_tables_are_no_weights(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["text"], file["table"], file["w"] = "hello", np.zeros(2, [("a", "f4")]), K
    with open_checkpoint(tmp_path / "x.h5") as checkpoint:
        assert list(checkpoint.tensors) == ["w"] and len(checkpoint.skipped) == 2


def test_a_results_file_is_no_checkpoint(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["w"], file.attrs["ckpt_schema"] = K, 1
    with pytest.raises(FormatError, match="is a results file of this tool, not a checkpoint"):
        open_checkpoint(tmp_path / "x.h5")


def test_a_truncated_file(tmp_path):
    whole = keras_2(tmp_path / "m.h5").read_bytes()
    for end in range(8, len(whole), 97):
        (tmp_path / "x.h5").write_bytes(whole[:end])
        with pytest.raises(FormatError), open_checkpoint(tmp_path / "x.h5") as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.read(name)
