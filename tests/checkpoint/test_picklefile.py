"""Pickles of arrays, against numpy and torch."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from ckpt_tools.checkpoint import open_checkpoint
from ckpt_tools.errors import FormatError


@pytest.mark.parametrize("protocol", range(6))
def test_a_dict_of_arrays(tmp_path, protocol):
    rng = np.random.default_rng(0)
    arrays = {
        "large": rng.normal(size=(50, 30)), "small": np.ones(2, np.float32), "turned": rng.normal(size=(20, 30)).T,
        "half": np.arange(6, dtype=np.float16).reshape(2, 3), "ids": np.arange(4), "flag": np.array([True, False]),
        "empty": np.zeros((0, 3)), "scalar": np.array(2.5),
    }  # fmt: skip
    path = tmp_path / "params.pkl"
    path.write_bytes(pickle.dumps({"params": arrays, "step": 3, "lr": np.float64(0.1)}, protocol))
    with open_checkpoint(path) as checkpoint:
        assert (checkpoint.format, checkpoint.step, checkpoint.metadata["lr"]) == ("pickle", 3, 0.1)
        assert set(checkpoint.tensors) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(checkpoint.read(name), array)
        np.testing.assert_array_equal(checkpoint.read("large", slice(10, 12)), arrays["large"][10:12])


def test_large_arrays_stay_in_the_file(tmp_path):
    array = np.ones((1_000, 1_000))
    (tmp_path / "x").write_bytes(pickle.dumps([array, array[:10]], 4))
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert checkpoint.bytes_read == 0
        checkpoint.read("0", slice(0, 3))
        assert checkpoint.bytes_read == 3 * 8_000


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_pickled_tensors(tmp_path, protocol):
    layer = torch.nn.Linear(30, 20)
    (tmp_path / "x").write_bytes(pickle.dumps(layer.state_dict(), protocol))
    with open_checkpoint(tmp_path / "x") as checkpoint:
        for name, tensor in layer.state_dict().items():
            np.testing.assert_array_equal(checkpoint.read(name), tensor.numpy())


def test_tensors_pickled_as_text_say_so(tmp_path):
    (tmp_path / "x").write_bytes(pickle.dumps({"w": torch.ones(3)}, 2))
    with pytest.raises(FormatError, match="a tensor pickled as text"):
        open_checkpoint(tmp_path / "x")


def test_what_numpy_cannot_number(tmp_path):
    odd = {"o": np.array([{"a": 1}], object), "s": np.array(["x"]), "b": np.ones(3, ">f4"), "w": np.ones(3)}
    (tmp_path / "x").write_bytes(pickle.dumps({**odd, "r": np.zeros(2, [("x", "f4")])}))
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert set(checkpoint.tensors) == {"w"}
        assert {skip.name for skip in checkpoint.skipped} == {"o", "s", "b", "r"}


def test_a_pickle_of_anything_else_is_passed_over(tmp_path):
    (tmp_path / "vocabulary.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(FormatError, match="is a pickle file that holds no tensors of a model"):
        open_checkpoint(tmp_path / "vocabulary.pkl")
    np.savez(tmp_path / "weights.npz", w=np.ones(2))
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["w"]


def test_an_array_that_claims_more_than_its_bytes(tmp_path):
    data = pickle.dumps({"w": np.arange(300.0)}, 2).replace(b"M\x2c\x01", b"M\xff\x7f")
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(FormatError, match="array 'w' needs 262,136 bytes; its storage has 2,400"):
        open_checkpoint(tmp_path / "x")


def called(name: str, *args: object) -> bytes:
    """The pickle of a call of a function, none of which need exist."""
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + pickle.dumps(args, 2)[2:-1] + b"R"


def test_arrays_of_jax(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    jax = called("jax._src.array._reconstruct_array", *array.__reduce__(), {"weak_type": False})
    (tmp_path / "x").write_bytes(b"\x80\x02}(X\1\0\0\0w" + jax + b"X\4\0\0\0stepK\x02u.")
    with open_checkpoint(tmp_path / "x") as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("w"), array)
        assert checkpoint.step == 2


def test_networks_pickled_with_their_source(tmp_path):
    state = {"_parameters": {"w": np.ones((2, 2))}, "_buffers": {}, "_modules": {}}
    source = {"class_name": "Generator", "module_src": "import os", "state": state}
    network = called("torch_utils.persistence._reconstruct_persistent_obj", source)
    (tmp_path / "x").write_bytes(b"\x80\x02}(X\1\0\0\0G" + network + b"X\1\0\0\0DNu.")
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert list(checkpoint.tensors) == ["w"]
