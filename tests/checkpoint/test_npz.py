"""NumPy's own files, against numpy."""

from __future__ import annotations

import struct
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckpt_tools.checkpoint import open_checkpoint
from ckpt_tools.errors import FormatError

DTYPES = ["f8", "f4", "f2", "c8", "c16", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]
arrays = hnp.arrays(
    st.sampled_from([np.dtype(d) for d in DTYPES]), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(array=arrays, fortran=st.booleans(), compressed=st.booleans())
def test_whatever_numpy_writes(tmp_path, array, fortran, compressed):
    array = np.asfortranarray(array) if fortran else array
    (np.savez_compressed if compressed else np.savez)(tmp_path / "x.npz", a=array, w=np.ones(2))
    with open_checkpoint(tmp_path / "x.npz") as checkpoint:
        if "a" not in checkpoint.tensors:
            assert fortran and compressed and "Fortran" in checkpoint.skipped[0].reason
            return
        wanted = array.astype(np.float32) if array.dtype == np.float16 else array
        np.testing.assert_array_equal(checkpoint.read("a"), wanted)
        assert checkpoint.read("a").dtype == wanted.dtype
        if array.ndim:
            np.testing.assert_array_equal(checkpoint.read("a", slice(1, None)), wanted[1:])


def test_rows_of_a_compressed_array_forward_and_back(tmp_path):
    array = np.random.default_rng(0).normal(size=(3_000, 700))
    np.savez_compressed(tmp_path / "x.npz", a=array)
    with open_checkpoint(tmp_path / "x.npz", hashing=True) as checkpoint:
        assert checkpoint.tensors["a"].nbytes < array.nbytes
        for start in (0, 1_000, 2_000, 500):
            np.testing.assert_array_equal(
                checkpoint.read("a", slice(start, start + 1_000)), array[start : start + 1_000]
            )
        np.testing.assert_array_equal(checkpoint.read("a"), array)


def test_fortran_order(tmp_path):
    array = np.arange(24.0).reshape(2, 3, 4)
    np.savez(tmp_path / "x", a=np.asfortranarray(array), w=np.ones(2))
    with open_checkpoint(tmp_path / "x.npz") as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("a"), array)
        np.testing.assert_array_equal(checkpoint.read("a", slice(1, 2)), array[1:])


def test_names_keep_their_slashes_and_dots(tmp_path):
    np.savez(tmp_path / "x.npz", **{"params/dense/kernel": np.ones((2, 3)), "model.fc.weight": np.ones(2)})
    with open_checkpoint(tmp_path / "x.npz") as checkpoint:
        assert set(checkpoint.tensors) == {"params/dense/kernel", "model.fc.weight"}


def test_a_single_array(tmp_path):
    np.save(tmp_path / "weights.npy", np.ones((2, 3), np.float32))
    with open_checkpoint(tmp_path / "weights.npy") as checkpoint:
        assert checkpoint.read("weights").shape == (2, 3)
    np.save(tmp_path / "tokens.npy", np.arange(5))
    with pytest.raises(FormatError, match="a NumPy file of integers: data, not weights"):
        open_checkpoint(tmp_path / "tokens.npy")


@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_no_array_of_numbers_is_listed(tmp_path, compressed):
    odd = {
        "object": np.array([{"a": 1}], dtype=object), "text": np.array(["a"]), "big": np.ones(3, ">f4"),
        "record": np.zeros(2, [("x", "f4")]), "date": np.array(["2020-01-01"], "M8[D]"), "good": np.ones(2),
    }  # fmt: skip
    (np.savez_compressed if compressed else np.savez)(tmp_path / "x.npz", **odd)
    with open_checkpoint(tmp_path / "x.npz") as checkpoint:
        assert set(checkpoint.tensors) == {"good"}
        reasons = {skip.name: skip.reason for skip in checkpoint.skipped}
    assert set(reasons) == {"object", "text", "big", "record", "date"}
    assert "not of numbers" in reasons["object"] and "big-endian" in reasons["big"]


def header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


BAD = {
    "shape beyond the file": (header("(1000,)") + b"\0" * 8, "needs 4,000 bytes; its storage has 8"),
    "shape of a number too large": (header("(99999999999999999999,)"), "header of array .* is malformed"),
    "shape beyond 2^60": (header("(1152921504606846976,)"), "no list of sizes"),
    "code for a shape": (header("(__import__('os').system('x'),)"), "is malformed"),
    "not a header": (b"\x93NUMPY\x01\x00\x04\x00abcd", "is malformed"),
    "header too long": (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31), "has 2,147,483,648 bytes; it is not read"),
    "header cut off": (b"\x93NUMPY\x01\x00\xff\x00{", "truncated"),
    "version 9": (b"\x93NUMPY\x09\x00" + b"\0" * 20, "no array in the npy format"),
}


@pytest.mark.parametrize("kind", ["npy", "stored", "deflated"])
@pytest.mark.parametrize("case", BAD)
def test_bad_arrays(tmp_path, case, kind):
    content, message = BAD[case]
    path = tmp_path / "x"
    if kind == "npy":
        path.write_bytes(content)
    else:
        method = zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("a.npy", content)
    with pytest.raises(FormatError, match=message):
        open_checkpoint(path)


def test_a_compressed_array_shorter_than_it_says(tmp_path):
    with zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", header("(1000,)") + np.random.default_rng(0).bytes(4000))
    content = (tmp_path / "x").read_bytes()
    at = content.index(b"PK\x01\x02")
    real = struct.unpack_from("<I", content, at + 20)[0]
    cut = content[: at + 20] + struct.pack("<I", real // 2) + content[at + 24 :]
    (tmp_path / "x").write_bytes(cut)
    with open_checkpoint(tmp_path / "x") as checkpoint, pytest.raises(FormatError, match=r"truncated|damaged"):
        checkpoint.read("a")


def test_a_bomb_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("ckpt_tools.checkpoint.npz._BOMB_SIZE", 2**20)
    np.savez_compressed(
        tmp_path / "x", bomb=np.zeros(2**20, np.float32), w=np.random.default_rng(0).normal(size=500_000)
    )
    with open_checkpoint(tmp_path / "x.npz") as checkpoint:
        assert set(checkpoint.tensors) == {"w"}
        assert [skip.name for skip in checkpoint.skipped] == ["bomb"] and "a zip bomb" in checkpoint.skipped[0].reason


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "x", "w", method) as archive:
        archive.writestr("a.npy", header("(2,)") + b"\0" * 8)
    with pytest.raises(FormatError, match="only stored records are read here"):
        open_checkpoint(tmp_path / "x")
