"""Files that lie: each must end in a FormatError that says what is wrong, in little memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from ckpt_tools.checkpoint import open_checkpoint
from ckpt_tools.errors import CkptError, FormatError

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 1234567\n"


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {**F32, **changes}}


def length(count: int) -> bytes:
    return count.to_bytes(8, "little")


# name: (header or whole file, data, what the message must say)
HEADERS: dict[str, tuple[Any, bytes, str]] = {
    "overlap": ({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, b"\0" * 12, "'a' and 'b' overlap at byte 4"),
    "same bytes twice": ({"a": F32, "b": F32}, b"\0" * 8, "overlap"),
    "hole between": ({"a": F32, "b": {**F32, "data_offsets": [12, 20]}}, b"\0" * 20, "hole of 4 bytes .* 'b'"),
    "hole in front": (entry(data_offsets=[8, 16]), b"\0" * 16, "hole of 8 bytes"),
    "truncated": (entry(), b"\0" * 5, "truncated: 3 bytes are missing"),
    "no data at all": (entry(), b"", "truncated"),
    "trailing bytes": (entry(), b"\0" * 9, "followed by 1 bytes"),
    "shape says more": (entry(shape=[3]), b"\0" * 8, r"\(F32 \[3\]\) needs 12 bytes, has 8"),
    "shape overflows": (entry(shape=[2**62, 4]), b"\0" * 8, "needs .* bytes, has 8"),
    "shape wraps to zero": (entry(shape=[2**62, 2**62]), b"\0" * 8, "needs .* bytes, has 8"),
    "beyond 64 bits": (entry(shape=[2**64], data_offsets=[0, 2**66]), b"", "has shape"),
    "negative offset": (entry(data_offsets=[-8, 0]), b"", "data_offsets"),
    "negative size": (entry(shape=[-2]), b"\0" * 8, "has shape"),
    "backwards": (entry(data_offsets=[8, 0]), b"\0" * 8, "data_offsets"),
    "fractional": (entry(shape=[2.0]), b"\0" * 8, "has shape"),
    "true is no size": (entry(shape=[True, 2]), b"\0" * 8, "has shape"),
    "shape is no list": (entry(shape="2"), b"\0" * 8, "has shape"),
    "three offsets": (entry(data_offsets=[0, 4, 8]), b"\0" * 8, "data_offsets"),
    "dtype is no text": (entry(dtype=["F32"]), b"\0" * 8, "dtype"),
    "field missing": ({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8, "not described by"),
    "half a nibble": (entry(dtype="F4", shape=[3]), b"\0" * 8, "needs 2 bytes, has 8"),
    "metadata of numbers": ({"__metadata__": {"step": 5}}, b"", "__metadata__ must map text to text"),
    "duplicate tensor": (
        b'{"a":' + json.dumps(F32).encode() + b',"a":' + json.dumps(F32).encode() + b"}",
        b"\0" * 8,
        "'a' occurs twice",
    ),
    "duplicate field": (b'{"a":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,8]}}', b"\0" * 8, "twice"),
    "a name of a megabyte": ({"a" * 2**20: {**F32, "shape": [3]}}, b"\0" * 8, "needs 12 bytes, has 8"),
    "a type of a megabyte": (entry(dtype=["F" * 2**20]), b"\0" * 8, "has dtype"),
    "nested as deep as the parser goes": (entry(shape=json.loads("[" * 900 + "]" * 900)), b"", "has shape"),
    "deep": (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, b"", "too deeply"),
    "not UTF-8": (b'{"\xff\xfe":1}', b"", "not valid JSON"),
    "lone surrogate": (b'{"\\ud800":' + json.dumps(F32).encode() + b"}", b"\0" * 8, "not valid Unicode"),
    "not closed": (b'{"a":', b"", "not valid JSON"),
    "two objects": (b"{}{}", b"", "not valid JSON"),
    "integer of 5,000 digits": (b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b']}}', b"", "not valid JSON"),
    "120,000 tensors": (
        {f"{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(120_000)}, b"", "100,000 tensors"
    ),
}  # fmt: skip
FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "seven bytes": (b"\x10\0\0\0\0\0\0", "no known format"),
    "header of 2^62 bytes": (length(2**62) + b'{"a":1}', "header claims 4,611,686,018,427,387,904 bytes, 7 follow"),
    "header of 2 GB": (length(2**31) + b'{"a":1}', "header claims 2,147,483,648 bytes"),
    "header cut off": (length(100) + b'{"a":', "truncated"),
    "header is a list": (length(2) + b"[]", "no known format"),
    "git-LFS pointer": (LFS, "git-LFS pointer that stands for a file of 1,234,567 bytes, .*git lfs pull"),
    "web page": (b"<!DOCTYPE html><html>404", "an HTML page"),
    "zip": (b"PK\x03\x04" + b"\0" * 30, "a zip archive without its end"),
    "pickle": (b"\x80\x04\x95\x10", "truncated or damaged"),
    "JSON": (b'{"error": {"not": "found"}}', "JSON text"),
    "JSON with a brace where a header begins": (b'{"oops":{"not": "found"}}', "JSON text"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_bad_header(tmp_path, pack, case):
    header, data, message = HEADERS[case]
    (tmp_path / "x.safetensors").write_bytes(pack(header, data))
    refuse(tmp_path / "x.safetensors", message)


@pytest.mark.parametrize("case", FILES)
def test_bad_file(tmp_path, case):
    content, message = FILES[case]
    (tmp_path / "x.safetensors").write_bytes(content)
    refuse(tmp_path / "x.safetensors", message)


def test_header_over_the_limit_in_a_file_large_enough(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        file.write(length(2**28) + b"{")
        file.truncate(2**29)
    refuse(tmp_path / "x", "at most 16,777,216 are accepted", memory=2**20)


def test_metadata_of_90_megabytes(tmp_path, pack):
    (tmp_path / "x").write_bytes(pack({"__metadata__": {"a": "x" * 90_000_000}}))
    refuse(tmp_path / "x", "at most 16,777,216 are accepted", memory=2**20)


def test_a_terabyte_of_nothing_is_listed_and_read_by_rows(tmp_path, pack):
    header = {"a": {"dtype": "F32", "shape": [2**28, 2**10], "data_offsets": [0, 2**40]}}
    with (tmp_path / "x").open("wb") as file:
        file.write(pack(header))
        file.truncate(file.tell() + 2**40)
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert checkpoint.tensors["a"].nbytes == 2**40
        assert checkpoint.read("a", slice(2**28 - 1, None)).shape == (1, 2**10)


def test_names_are_only_names(tmp_path, pack):
    name = "../../etc/x\0\n\x1b[31m"
    (tmp_path / "x").write_bytes(pack({name: F32}, b"\0" * 8))
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert checkpoint.read(name).tolist() == [0.0, 0.0]


def refuse(path: Path, message: str, memory: int = 64 * 2**20) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=message) as caught:
            open_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < memory
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


def whole_file(pack: Callable[..., bytes]) -> bytes:
    header = {
        "__metadata__": {"format": "pt"},
        "a": F32,
        "b": {"dtype": "BF16", "shape": [1, 3], "data_offsets": [8, 14]},
    }
    return pack(header, np.arange(14, dtype=np.uint8).tobytes())


edits = st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3), st.integers(0, 3)), min_size=1, max_size=3)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=edits)
def test_what_is_accepted_the_reference_library_accepts_too(tmp_path, pack, edits):
    content = whole_file(pack)
    for at, new, removed in edits:
        content = content[:at] + new + content[at + removed :]
    (tmp_path / "x").write_bytes(content)
    try:
        checkpoint = open_checkpoint(tmp_path / "x")
    except CkptError:
        return
    with checkpoint:
        arrays = {name: checkpoint.read(name) for name in checkpoint.tensors}
    try:
        accepted = dict(deserialize(content))
    except SafetensorError:
        assert any("unknown" in skip.reason for skip in checkpoint.skipped)
        return
    assert set(arrays) <= set(accepted)
    assert all(list(array.shape) == list(accepted[name]["shape"]) for name, array in arrays.items())
