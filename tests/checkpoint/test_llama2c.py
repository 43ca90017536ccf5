"""The files of llama2.c, written here after its export script."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from ckpt_tools.checkpoint import open_checkpoint
from ckpt_tools.checkpoint.llama2c import is_llama2c
from ckpt_tools.errors import FormatError

DIM, HIDDEN, LAYERS, HEADS, KV, VOCAB, LENGTH = 16, 32, 2, 4, 2, 10, 8
SHAPES = {
    "attention_norm": (DIM,), "attention.wq": (DIM, DIM), "attention.wk": (8, DIM), "attention.wv": (8, DIM),
    "attention.wo": (DIM, DIM), "ffn_norm": (DIM,), "feed_forward.w1": (HIDDEN, DIM), "feed_forward.w2": (DIM, HIDDEN),
    "feed_forward.w3": (HIDDEN, DIM),
}  # fmt: skip


def weights(tied: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {f"layers.{i}.{kind}.weight": shape for i in range(LAYERS) for kind, shape in SHAPES.items()}
    shapes |= {"tok_embeddings.weight": (VOCAB, DIM), "norm.weight": (DIM,)}
    shapes |= {} if tied else {"output.weight": (VOCAB, DIM)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def layers(kind: str) -> list[str]:
    return [f"layers.{i}.{kind}.weight" for i in range(LAYERS)]


def version_0(tied: bool) -> bytes:
    named = weights(tied)
    order = ["tok_embeddings.weight", *(name for kind in SHAPES for name in layers(kind)), "norm.weight"]
    parts = [struct.pack("<7i", DIM, HIDDEN, LAYERS, HEADS, KV, VOCAB if tied else -VOCAB, LENGTH)]
    parts += [named[name].tobytes() for name in order]
    parts.append(np.ones(LENGTH * DIM // HEADS, np.float32).tobytes())  # cosines and sines
    return b"".join([*parts, b"" if tied else named["output.weight"].tobytes()])


MATRICES = [kind for kind in SHAPES if "norm" not in kind]


def version_1(tied: bool, group: int = 0) -> bytes:
    named = weights(tied)
    header = struct.pack("<Ii7iB", 0x616B3432, 2 if group else 1, DIM, HIDDEN, LAYERS, HEADS, KV, VOCAB, LENGTH, tied)
    header += struct.pack("<i", group)
    norms = [*layers("attention_norm"), *layers("ffn_norm"), "norm.weight"]
    rest = ["tok_embeddings.weight", *(name for kind in MATRICES for name in layers(kind))]
    rest += [] if tied else ["output.weight"]
    parts = [header.ljust(256, b"\0"), *(named[name].tobytes() for name in norms)]
    return b"".join(parts + [packed(named[name], group) for name in rest])


def packed(weight: np.ndarray, group: int) -> bytes:
    if not group:
        return weight.tobytes()
    groups = weight.reshape(-1, group)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    return np.round(groups / scales[:, None]).astype(np.int8).tobytes() + scales.astype(np.float32).tobytes()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("make", [version_0, version_1])
def test_the_weights_come_back(tmp_path, make, tied):
    (tmp_path / "x.bin").write_bytes(make(tied))
    with open_checkpoint(tmp_path / "x.bin") as checkpoint:
        assert set(checkpoint.tensors) == set(weights(tied))
        for name, weight in weights(tied).items():
            np.testing.assert_array_equal(checkpoint.read(name), weight)
        assert checkpoint.aliases == ({"output.weight": "tok_embeddings.weight"} if tied else {})
        assert checkpoint.config == {
            "dim": DIM, "hidden_dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV,
            "vocab_size": VOCAB, "max_seq_len": LENGTH, "tie_word_embeddings": tied,
        }  # fmt: skip
        assert ("freqs_cos, freqs_sin" in {s.name for s in checkpoint.skipped}) == (make is version_0)


def test_groups_of_int8(tmp_path):
    (tmp_path / "x.bin").write_bytes(version_1(True, group=16))
    with open_checkpoint(tmp_path / "x.bin") as checkpoint:
        for name, weight in weights(True).items():
            read = checkpoint.read(name)
            if "norm" in name:
                np.testing.assert_array_equal(read, weight)
                continue
            assert checkpoint.tensors[name].encoding == "int8 groups"
            assert checkpoint.tensors[name].nbytes == weight.size + weight.size // 4
            bound = np.abs(weight.reshape(-1, 16)).max(axis=1) / 254
            assert (np.abs(read - weight).reshape(-1, 16) <= bound[:, None] * 1.001).all()
            np.testing.assert_array_equal(checkpoint.read(name, slice(1, 4)), read[1:4])


@pytest.mark.parametrize("change", [-4, 4])
@pytest.mark.parametrize("make", [version_0, version_1])
def test_a_size_that_does_not_fit(tmp_path, make, change):
    content = make(True)
    (tmp_path / "x").write_bytes(content[:change] if change < 0 else content + b"\0" * change)
    with pytest.raises(FormatError, match=f"looks like a llama2.c .*file, which has {len(content):,} bytes, not"):
        open_checkpoint(tmp_path / "x")


def test_a_header_that_makes_no_sense(tmp_path):
    content = bytearray(version_1(True))
    content[8:12] = struct.pack("<i", -5)
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(FormatError, match="whose header makes no sense"):
        open_checkpoint(tmp_path / "x")


def test_detection_wants_sizes_that_make_sense():
    assert is_llama2c(version_0(False)[:64])
    rng = np.random.default_rng(0)
    assert not any(is_llama2c(rng.bytes(64)) for _ in range(2_000))
    assert not is_llama2c(b"") and not is_llama2c(b"\0" * 64) and not is_llama2c(struct.pack("<7i", *[1] * 7))
