"""Canonical weights against the arrays they come from."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ckpt_tools import open_checkpoint
from ckpt_tools.layouts import Layouts
from ckpt_tools.registry import load_registry
from ckpt_tools.weights import Cache, Weights

RNG = np.random.default_rng(0)


def weights_of(folder: Path, tensors: dict[str, np.ndarray], config: str, **how: int) -> Weights:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(config)
    checkpoint = open_checkpoint(folder)
    resolved = Layouts(load_registry()).of(checkpoint)
    return Weights(checkpoint, resolved.layout, resolved.names, **how)


@pytest.fixture
def gpt2(tmp_path: Path) -> tuple[Weights, dict[str, np.ndarray]]:
    tensors = {
        "transformer.wte.weight": RNG.standard_normal((11, 6)).astype("f4"),
        "transformer.wpe.weight": RNG.standard_normal((5, 6)).astype("f4"),
        "transformer.h.0.attn.c_attn.weight": RNG.standard_normal((6, 18)).astype("f4"),
        "transformer.h.0.attn.c_attn.bias": RNG.standard_normal(18).astype("f4"),
        "transformer.h.0.attn.c_proj.weight": RNG.standard_normal((6, 6)).astype("f4"),
        "transformer.h.0.mlp.c_fc.weight": RNG.standard_normal((6, 24)).astype("f4"),
        "transformer.h.0.attn.bias": np.ones((1, 1, 5, 5), "f4"),
    }
    return weights_of(tmp_path / "gpt2", tensors, '{"model_type": "gpt2", "n_head": 2, "n_embd": 6}'), tensors


def test_conv1d_is_transposed_back_and_split(gpt2: tuple[Weights, dict[str, np.ndarray]]) -> None:
    weights, tensors = gpt2
    fused, bias = tensors["transformer.h.0.attn.c_attn.weight"], tensors["transformer.h.0.attn.c_attn.bias"]
    x = RNG.standard_normal(6).astype("f4")
    q, k, v = np.split(x @ fused + bias, 3)
    for role, expected in (("q", q), ("k", k), ("v", v)):
        mine = weights.read(f"layers.0.attn.{role}") @ x + weights.read(f"layers.0.attn.{role}.bias")
        assert np.allclose(mine, expected, atol=1e-6)
    assert weights.read("layers.0.mlp.up").shape == (24, 6)
    assert weights.layout.aliases == {"unembed": "embed"}
    assert [(s.name, s.reason) for s in weights.layout.skipped] == [("transformer.h.0.attn.bias", "causal mask buffer")]


def test_heads_rebuild_the_attention_scores(gpt2: tuple[Weights, dict[str, np.ndarray]]) -> None:
    weights, tensors = gpt2
    (attention,) = weights.attention()
    x = RNG.standard_normal((3, 6)).astype("f4")
    q, k, v = (p.reshape(3, 2, 3) for p in np.split(x @ tensors["transformer.h.0.attn.c_attn.weight"], 3, axis=1))
    scores = np.einsum("shd,thd->hst", q, k)
    assert np.allclose(np.einsum("sd,hed,hef,tf->hst", x, attention.q, attention.k, x), scores, atol=1e-4)
    assert attention.v is not None and attention.o is not None
    out = np.einsum("hdx,hxe,te->htd", attention.o, attention.v, x)
    proj = tensors["transformer.h.0.attn.c_proj.weight"].reshape(2, 3, 6)
    assert np.allclose(out, np.einsum("thx,hxd->htd", v, proj), atol=1e-4)


def test_a_tall_matrix_is_streamed(tmp_path: Path) -> None:
    tall = RNG.standard_normal((300_000, 32)).astype("f4")
    weights = weights_of(tmp_path / "tall", {"w": tall}, "{}")
    spectrum = weights.spectrum("w")
    assert np.allclose(spectrum.values, np.linalg.svd(tall.astype("f8"), compute_uv=False), rtol=1e-9)
    assert not weights._cache._kept


def test_the_cache_keeps_to_its_budget(tmp_path: Path) -> None:
    tensors = {f"w{i}": RNG.standard_normal((16, 16)).astype("f4") for i in range(4)}
    weights = weights_of(tmp_path / "small", tensors, "{}", cache=Cache(2 * 16 * 16 * 4))
    for name in tensors:
        weights.read(name)
    assert [name for _, name, _ in weights._cache._kept] == ["w2", "w3"] and weights._cache._used == 2 * 16 * 16 * 4
    assert np.array_equal(weights.read("w0"), tensors["w0"])


def test_unknown_architectures_keep_their_names(tmp_path: Path) -> None:
    tensors = {
        "enc.10.w": RNG.standard_normal((3, 4)).astype("f4"),
        "enc.2.w": RNG.standard_normal((3, 4)).astype("f4"),
        "experts.w": RNG.standard_normal((2, 3, 4)).astype("f4"),
        "conv": RNG.standard_normal((3, 2, 5)).astype("f4"),
        "count": np.array([1, 2]),
        "b": np.zeros(3, "f4"),
    }
    weights = weights_of(tmp_path / "odd", tensors, "{}")
    assert weights.names == ["conv", "enc.2.w", "enc.10.w", "experts.w.0", "experts.w.1"]
    assert weights.info("conv").shape == (3, 10) and weights.info("conv").role == ""
    assert np.array_equal(weights.read("experts.w.1"), tensors["experts.w"][1])
    assert [s.name for s in weights.layout.skipped] == ["count"]
    assert weights.layout.skipped[0].reason == "int64 values, not a float weight"


def test_weights_are_read_only(gpt2: tuple[Weights, dict[str, np.ndarray]]) -> None:
    with pytest.raises(ValueError, match="read-only"):
        gpt2[0].read("embed")[0, 0] = 1.0
