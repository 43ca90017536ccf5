"""GGUF, against the gguf package's writer and dequantisation."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from ckpt_tools.checkpoint import open_checkpoint
from ckpt_tools.errors import FormatError

RNG = np.random.default_rng(0)
W = RNG.normal(size=(6, 256)).astype(np.float32)
QUANTISED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


def write(path: Path, tensors: dict[str, tuple[np.ndarray, str]], **facts) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_head_count(8)
    writer.add_token_list([f"token {i}" for i in range(3_000)])
    writer.add_array("llama.rope.sections", [1, 2, 3])
    for name, (array, kind) in tensors.items():
        quantised = gguf.GGMLQuantizationType[kind]
        plain = kind in ("F32", "F16", "F64", "I32")
        writer.add_tensor(
            name, array if plain else gguf.quants.quantize(array, quantised), raw_dtype=None if plain else quantised
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_plain_tensors_and_facts(tmp_path):
    tensors = {"a.weight": (W, "F32"), "b.weight": (W.astype(np.float16), "F16"), "n": (W[0].astype(np.float64), "F64")}
    with open_checkpoint(write(tmp_path / "x", tensors)) as checkpoint:
        assert checkpoint.format == "GGUF"
        assert checkpoint.tensors["a.weight"].shape == (6, 256)
        for name, (array, _) in tensors.items():
            np.testing.assert_array_equal(checkpoint.read(name), array)
        assert checkpoint.config["block_count"] == 2 and checkpoint.config["attention.head_count"] == 8
        assert checkpoint.config["general.architecture"] == "llama"
        assert checkpoint.config["rope.sections"] == [1, 2, 3]
        assert not any(key.startswith("tokenizer") for key in checkpoint.config)


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_tensors(tmp_path, kind):
    with open_checkpoint(write(tmp_path / "x", {"w": (W, kind), "v": (W, "F32")}), hashing=True) as checkpoint:
        info = checkpoint.tensors["w"]
        block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        assert (info.dtype, info.encoding, info.nbytes) == ("float32", kind.lower(), W.size // block * nbytes)
        quantised = gguf.GGMLQuantizationType[kind]
        wanted = gguf.quants.dequantize(gguf.quants.quantize(W, quantised), quantised)
        np.testing.assert_array_equal(checkpoint.read("w"), wanted)
        np.testing.assert_array_equal(checkpoint.read("w", slice(2, 5)), wanted[2:5])
        assert checkpoint.bytes_read == info.nbytes + info.nbytes // 2
        assert len(checkpoint.digest("w")) == 64


def test_bfloat16(tmp_path):
    with open_checkpoint(write(tmp_path / "x", {"w": (W, "BF16")})) as checkpoint:
        assert checkpoint.tensors["w"].dtype == "bfloat16"
        np.testing.assert_allclose(checkpoint.read("w"), W, rtol=2**-8)


def test_experts_are_read_by_rows(tmp_path):
    experts = RNG.normal(size=(4, 6, 64)).astype(np.float32)
    with open_checkpoint(write(tmp_path / "x", {"e": (experts, "Q8_0")})) as checkpoint:
        whole = checkpoint.read("e")
        assert whole.shape == (4, 6, 64)
        np.testing.assert_array_equal(checkpoint.read("e", slice(2, 3)), whole[2:3])


def test_without_the_package_quantised_tensors_are_left_out(tmp_path, monkeypatch):
    path = write(tmp_path / "x", {"w": (W, "Q8_0"), "v": (W, "F32")})
    monkeypatch.setitem(sys.modules, "gguf", None)
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == ["v"]
        assert "pip install 'ckpt-tools[formats]'" in checkpoint.skipped[0].reason


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def head(tensors: int, facts: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, facts)


def tensor(shape: tuple[int, ...], kind: int = 0, offset: int = 0, name: str = "w") -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


PAD = b"\0" * 256
HOSTILE = {
    "2^60 tensors": (head(2**60, 0) + PAD, "header claims 1,152,921,504,606,846,976 tensors"),
    "2^60 facts": (head(0, 2**60) + PAD, "header claims 0 tensors and 1,152,921,504,606,846,976 facts"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + PAD, "a GGUF file big-endian"),
    "version 1": (head(0, 0, 1) + PAD, "of version 1"),
    "a key of an exabyte": (head(0, 1) + struct.pack("<Q", 2**60) + PAD, "it is not read"),
    "an array of an exabyte": (head(0, 1) + text("a") + struct.pack("<IIQ", 9, 0, 2**60) + PAD, "truncated"),
    "an array of arrays": (head(0, 1) + text("a") + struct.pack("<IIQ", 9, 9, 2**40) + PAD, "truncated|not read"),
    "arrays in arrays": (
        head(0, 1) + text("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9 + PAD, "unknown type 9"
    ),
    "a fact of type 99": (head(0, 1) + text("a") + struct.pack("<I", 99) + PAD, "of the unknown type 99"),
    "a thousand dimensions": (head(1, 0) + text("w") + struct.pack("<I", 1_000) + PAD, "has 1,000 dimensions"),
    "a tensor beyond the file": (head(1, 0) + tensor((1_000, 1_000)) + PAD, "needs 4,000,000 bytes; its storage has"),
    "an offset beyond the file": (head(1, 0) + tensor((2,), offset=2**40) + PAD, "its storage has 0"),
    "an offset that wraps": (head(1, 0) + tensor((2,), offset=2**64 - 64) + PAD, "its storage has 0"),
    "a shape that wraps": (head(1, 0) + tensor((2**63, 4)) + PAD, "no list of sizes"),
    "rows of no blocks": (head(1, 0) + tensor((33,), kind=8) + PAD, "no rows of blocks of 32"),
    "quantised beyond the file": (head(1, 0) + tensor((32, 1_000_000), kind=8) + PAD, "needs 34,000,000 bytes"),
    "one name twice": (head(2, 0) + tensor((1,)) + tensor((1,)) + PAD, "'w' occurs twice"),
    "alignment of zero": (
        head(1, 1) + text("general.alignment") + struct.pack("<II", 4, 0) + tensor((1,)) + PAD, "alignment is 0"
    ),
    "a token beyond the file": (
        head(0, 1) + text("t") + struct.pack("<IIQQ", 9, 8, 1_500, 2**50) + b"\0" * 12_000, "truncated"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers(tmp_path, case):
    content, message = HOSTILE[case]
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(FormatError, match=message):
        open_checkpoint(tmp_path / "x.gguf")


def test_an_unknown_type_is_left_out(tmp_path):
    content = head(2, 0) + tensor((1,), kind=4_000, name="odd") + tensor((1,)) + PAD
    (tmp_path / "x").write_bytes(content)
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert list(checkpoint.tensors) == ["w"]
        assert checkpoint.skipped[0].reason == "its type 4000 is unknown to the gguf package"


def test_truncated_anywhere(tmp_path):
    whole = write(tmp_path / "x", {"w": (W, "Q8_0")}).read_bytes()
    for end in range(4, len(whole), 1_009):
        (tmp_path / "y").write_bytes(whole[:end])
        with pytest.raises(FormatError):
            open_checkpoint(tmp_path / "y")
