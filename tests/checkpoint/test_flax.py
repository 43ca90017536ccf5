"""MessagePack as flax.serialization writes it, packed here by the msgpack library."""

from __future__ import annotations

import struct

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools.checkpoint import open_checkpoint
from ckpt_tools.checkpoint.flaxfile import is_msgpack
from ckpt_tools.errors import CkptError, FormatError


def extension(value):
    """What flax does with arrays and numpy scalars."""
    if isinstance(value, np.ndarray):
        return msgpack.ExtType(1, msgpack.packb((value.shape, value.dtype.name, value.tobytes())))
    if isinstance(value, np.generic):
        array = np.asarray(value)
        return msgpack.ExtType(3, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))
    raise TypeError(value)


def pack(tree) -> bytes:
    return msgpack.packb(tree, default=extension, strict_types=True)


@pytest.fixture
def write(tmp_path):
    def make(data: bytes):
        (tmp_path / "flax_model.msgpack").write_bytes(data)
        return tmp_path / "flax_model.msgpack"

    return make


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32", "bool", "complex64"])
def test_a_tree_of_arrays(write, dtype):
    kernel = (np.arange(300).reshape(20, 15) % 7).astype(dtype)
    tree = {"dense": {"kernel": kernel, "bias": np.ones(3, np.float32)}, "scale": np.float32(2)}
    with open_checkpoint(write(pack(tree))) as checkpoint:
        assert checkpoint.format == "msgpack (flax)"
        wanted = kernel.astype(np.float32) if dtype == "float16" else kernel
        np.testing.assert_array_equal(checkpoint.read("dense.kernel"), wanted)
        np.testing.assert_array_equal(checkpoint.read("dense.kernel", slice(3, 5)), wanted[3:5])
        assert checkpoint.read("scale") == 2 and checkpoint.read("dense.bias").tolist() == [1, 1, 1]


def test_bfloat16(write):
    raw = np.array([0x3F80, 0xC000], "<u2")
    data = msgpack.packb({"w": msgpack.ExtType(1, msgpack.packb(((2,), "bfloat16", raw.tobytes())))})
    with open_checkpoint(write(data)) as checkpoint:
        assert checkpoint.tensors["w"].dtype == "bfloat16" and checkpoint.read("w").tolist() == [1.0, -2.0]


def test_a_train_state(write):
    params = {"dense": {"kernel": np.ones((4, 3), np.float32)}}
    state = {"step": np.int32(9), "params": params, "opt_state": {"0": {"mu": params, "count": np.int32(9)}}}
    with open_checkpoint(write(pack(state))) as checkpoint:
        assert list(checkpoint.tensors) == ["dense.kernel"]
        assert (checkpoint.step, checkpoint.metadata["part"]) == (9, "params")
        assert [skip.name for skip in checkpoint.skipped] == ["opt_state"]


def test_only_the_array_is_read(write):
    with open_checkpoint(write(pack({"a": np.ones((1000, 100)), "b": np.ones((50, 2))}))) as checkpoint:
        checkpoint.read("b")
        assert checkpoint.bytes_read == 800


def test_a_large_array_in_pieces(write):
    flat = np.arange(60, dtype=np.float32)
    pieces = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 6, "1": 10},
        "chunks": {"0": flat[:25], "1": flat[25:50], "2": flat[50:]},
    }
    with open_checkpoint(write(pack({"w": pieces, "v": np.ones(30)}))) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("w"), flat.reshape(6, 10))
        np.testing.assert_array_equal(checkpoint.read("w", slice(2, 4)), flat.reshape(6, 10)[2:4])
    del pieces["chunks"]["1"]
    with pytest.raises(FormatError, match="of which some are missing"):
        open_checkpoint(write(pack({"w": pieces})))


ARRAY = msgpack.ExtType(1, msgpack.packb(((3,), "float32", b"\0" * 12)))
HOSTILE = {
    "array of four billion": (b"\x81\xa1a\xdd\xff\xff\xff\xff", "truncated"),
    "map of four billion": (b"\x81\xa1a\xdf\xff\xff\xff\xff", "truncated"),
    "bytes of four gigabytes": (b"\x81\xa1a\xc6\xff\xff\xff\xff", "truncated"),
    "text of four gigabytes": (b"\x81\xa1a\xdb\xff\xff\xff\xff", "it is not read"),
    "extension of four gigabytes": (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "truncated"),
    "nested without end": (b"\x81\xa1a" + b"\x91" * 100_000, "nests them too deeply"),
    "a key that is a list": (b"\x82\xa1a\x01\x91\x01\x01", "neither a text nor a number"),
    "a reserved code": (b"\x81\xa1a\xc1", "0xc1 begins no value"),
    "text that is none": (b"\x81\xa1a\xa2\xff\xfe", "malformed msgpack"),
    "cut off": (b"\x81\xa1a", "truncated"),
    "an array larger than its bytes": (
        msgpack.packb({"w": msgpack.ExtType(1, msgpack.packb(((4,), "float32", b"\0" * 12)))}), "needs 16 bytes"
    ),
    "an array of an unknown dtype": (
        msgpack.packb({"w": msgpack.ExtType(1, msgpack.packb(((3,), "object", b"\0" * 12)))}), "dtype 'object'"
    ),
    "an array without a shape": (
        msgpack.packb({"w": msgpack.ExtType(1, msgpack.packb(("x", "float32", b"\0" * 12)))}), "malformed"
    ),
    "an array of negative size": (
        msgpack.packb({"w": msgpack.ExtType(1, msgpack.packb(((-3,), "float32", b"\0" * 12)))}), "no list of sizes"
    ),
    "another extension": (msgpack.packb({"w": msgpack.ExtType(42, b"\0" * 12)}), "extension of type 42"),
    "no arrays": (msgpack.packb({"a": 1}), "holds no tensors of a model"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(write, case):
    data, message = HOSTILE[case]
    with pytest.raises(FormatError, match=message):
        open_checkpoint(write(data))


def test_a_million_empty_maps(write):
    with pytest.raises(FormatError, match="too many values"):
        open_checkpoint(write(b"\x81\xa1a\xdd" + struct.pack(">I", 2_100_000) + b"\x80" * 2_100_000))


def test_detection():
    assert is_msgpack(pack({"a": 1})) and is_msgpack(pack({f"{i}": i for i in range(100)}))
    assert not is_msgpack(b"\x80\x04\x95") and not is_msgpack(b"") and not is_msgpack(b"{json")
    assert not is_msgpack("ßtext".encode()) and not is_msgpack(b"\xde") and not is_msgpack(b"\x81")


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60))
def test_any_bytes_end_in_an_error_that_names_the_file(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.msgpack"
    path.write_bytes(b"\x82\xa1a" + data)
    with pytest.raises(CkptError, match=r"any\.msgpack"), open_checkpoint(path):
        raise CkptError(str(path))
