"""From tensors to canonical weights: unknown architectures, ties, what is left out, what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ckpt_tools.family_file import ckpt_families
from ckpt_tools.roles import Layout, RoleTable, Rule, assign, module, modules, table_from

from .conftest import canonical, infos

NONE = RoleTable(())
FAMILIES = {family.name: family.table for family in ckpt_families()}


def zeros(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name.replace("__", "."): np.zeros(shape, "f4") for name, shape in shapes.items()}


def layout(arrays: dict[str, Any], table: RoleTable = NONE, config: dict[str, Any] | None = None, **how: Any) -> Layout:
    return assign(infos(arrays), how.pop("shared", {}), table, config or {}, **how)


def test_unknown_architectures_keep_their_names() -> None:
    arrays = zeros(
        enc__10__w=(4, 3), enc__2__w=(4, 3), scale=(3,), conv__weight=(8, 2, 3, 3), pos=(1, 5, 3), cls=(1, 1, 3)
    )
    found = layout(arrays)
    assert {n: w.shape for n, w in found.matrices.items()} == {
        "conv.weight": (8, 18), "enc.2.w": (4, 3), "enc.10.w": (4, 3), "pos": (5, 3)
    }  # fmt: skip
    assert list(found.matrices) == ["conv.weight", "enc.2.w", "enc.10.w", "pos"]
    assert {n: w.shape for n, w in found.vectors.items()} == {"cls": (3,), "scale": (3,)}
    assert not any(w.role or w.layer is not None for w in found.matrices.values())


def test_one_matrix_per_expert_without_a_table() -> None:
    arrays = {"ffn.experts.w_in": np.arange(24, dtype="f4").reshape(3, 4, 2)}
    found = layout(arrays)
    assert list(found.matrices) == [f"ffn.experts.w_in.{e}" for e in range(3)]
    assert torch.equal(canonical(found, arrays)["ffn.experts.w_in.1"], torch.tensor(arrays["ffn.experts.w_in"][1]))


def test_experts_are_in_order() -> None:
    shapes = {f"layers.0.block_sparse_moe.experts.{e}.w1.weight": (4, 2) for e in (0, 1, 10, 2)}
    found = layout({n: np.zeros(shape, "f4") for n, shape in shapes.items()}, FAMILIES["mixtral"])
    assert list(found.matrices) == [f"layers.0.mlp.experts.{e}.gate" for e in (0, 1, 2, 10)]


def test_names_and_shapes_nobody_expects() -> None:
    odd = {"²": np.zeros(2, "f4"), "": np.zeros((1, 1), "f4"), "layers.0.mlp.experts.gate_up_proj": np.zeros(3, "f4")}
    found = layout(odd, FAMILIES["mixtral"])
    assert {*found.matrices, *found.vectors} == set(odd)


def test_kernels_are_turned_to_out_in() -> None:
    dense, conv = np.random.default_rng(0).random((4, 3), "f4"), np.random.default_rng(1).random((2, 2, 5, 3), "f4")
    arrays = {"params/dense/kernel": dense, "conv.kernel": conv, "model/dense/kernel:0": dense}
    w = canonical(layout(arrays), arrays)
    assert torch.equal(w["params/dense/kernel"], torch.tensor(dense.T)) and w["model/dense/kernel:0"].shape == (3, 4)
    image = torch.randn(1, 5, 2, 2)
    window = torch.einsum("bchw,hwco->bo", image, torch.tensor(conv))
    torch.testing.assert_close(F.linear(image.flatten(1), w["conv.kernel"]), window)


def test_what_is_left_out_says_why() -> None:
    arrays: dict[str, Any] = {
        "bn.running_mean": np.zeros(3, "f4"), "bn.num_batches_tracked": np.zeros((), "i8"), "ids": np.zeros(4, "i4"),
        "attn.causal_mask": np.zeros((3, 3), "f4"), "temperature": np.zeros((), "f4"), "none": np.zeros((0, 3), "f4"),
        "layers.0.rotary_emb.cos_cached": np.zeros((4, 2), "f4"), "kept.mask_token": np.zeros((1, 3), "f4"),
    }  # fmt: skip
    found = layout(arrays)
    assert {s.name: s.reason for s in found.skipped} == {
        "bn.running_mean": "buffer, not a trained weight", "bn.num_batches_tracked": "buffer, not a trained weight",
        "ids": "int32 values, not a float weight", "attn.causal_mask": "buffer, not a trained weight",
        "temperature": "scalar", "none": "empty tensor",
        "layers.0.rotary_emb.cos_cached": "buffer, not a trained weight",
    }  # fmt: skip
    assert list(found.matrices) == ["kept.mask_token"]


def test_tables_in_python() -> None:
    table = RoleTable(
        rules=(
            *module("fc", "layers.0.linear", transpose=True),
            *modules("qkv", ("q", "k"), split="heads"),
            Rule("x", reason="no"),
        ),
        config={"n_heads": "heads"},
    )
    arrays = {
        "fc.weight": np.ones((2, 5), "f4"),
        "qkv.weight": np.arange(8, dtype="f4")[:, None],
        "x": np.ones(2, "f4"),
    }
    found = layout(arrays, table, {"heads": 2})
    w = canonical(found, arrays)
    assert w["layers.0.linear"].shape == (5, 2) and found.matrices["layers.0.linear"].transpose
    assert w["q"].ravel().tolist() == [0, 1, 4, 5] and w["k"].ravel().tolist() == [2, 3, 6, 7]
    assert [(s.name, s.reason) for s in found.skipped] == [("x", "no")]


def test_rivals_for_a_role_keep_their_names() -> None:
    table = RoleTable((Rule("a.{i}.w", ("layers.{i}.linear",)), Rule("b.{i}.w", ("layers.{i}.linear",))))
    found = layout(zeros(a__0__w=(2, 2), b__0__w=(2, 2), a__1__w=(2, 2)), table)
    assert list(found.matrices) == ["layers.1.linear", "a.0.w", "b.0.w"]
    assert found.notes == ["roles unknown: several tensors would be 'layers.0.linear': a.0.w, b.0.w"]


def test_unsplittable_tensors_stay_whole_and_say_so() -> None:
    table = table_from(
        {"modules": {"a": {"role": "{q|k}", "split": "heads"}, "b": {"role": "{u|v}", "whole": "uv"}}}, "t"
    )
    found = layout({"a.weight": np.ones((4, 2), "f4"), "b.weight": np.ones((3, 2), "f4")}, table)
    assert {n: w.role for n, w in found.matrices.items()} == {"uv": "uv", "a.weight": ""}
    assert found.notes == [
        "a.weight stays whole: needs n_heads, which the configuration does not give; put config.json beside it",
        "b.weight stays whole: 3 rows do not divide by 2",
    ]


def gpt2(*heads: str, d: int = 4) -> dict[str, Any]:
    names = {"wte.weight": (9, d), "wpe.weight": (5, d), "h.0.attn.c_attn.weight": (d, 3 * d)}
    arrays = {f"transformer.{n}": np.zeros(shape, "f4") for n, shape in names.items()}
    return arrays | {name: np.zeros((9, d), "f4") for name in heads}


HEAD = "lm_head.weight"
TIES = [
    ({"tie_word_embeddings": True}, {"unembed": "embed"}),
    ({"tie_word_embeddings": False}, {}),
    ({"model_type": "gpt2"}, {"unembed": "embed"}),
    ({"model_type": "gpt2", "architectures": ["GPT2Model"]}, {}),
    ({"model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"], "tie_word_embeddings": True}, {}),
    ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, {"unembed": "embed"}),
    ({"model_type": "llava", "text_config": {"tie_word_embeddings": False}}, {}),
    ({}, {"unembed": "embed"}),
]


@pytest.mark.parametrize(("config", "aliases"), TIES)
def test_ties_by_configuration(config: dict[str, Any], aliases: dict[str, str]) -> None:
    assert layout(gpt2(), FAMILIES["gpt2"], config).aliases == aliases


@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("gemma", True), ("qwen2", False), ("smollm3", True)])
def test_ties_by_default_depend_on_the_model_type(kind: str, tied: bool) -> None:
    arrays = zeros(model__embed_tokens__weight=(9, 4), model__layers__0__self_attn__q_proj__weight=(4, 4))
    found = layout(arrays, FAMILIES["llama"], {"model_type": kind})
    assert (found.aliases == {"unembed": "embed"}) == tied


def test_shared_storage_is_counted_once_whichever_name_comes_first() -> None:
    for kept, alias in ((HEAD, "transformer.wte.weight"), ("transformer.wte.weight", HEAD)):
        arrays = gpt2(HEAD)
        del arrays[alias]
        found = layout(arrays, FAMILIES["gpt2"], shared={alias: kept})
        assert "embed" in found.matrices and "unembed" not in found.matrices
        assert found.matrices["embed"].tensor == kept and found.aliases == {"unembed": "embed"}


def test_a_stored_head_is_the_embedding_only_where_the_configuration_ties_them() -> None:
    """Otherwise the embedding may just lie in a shard that is missing."""
    arrays = gpt2(HEAD)
    del arrays["transformer.wte.weight"]
    for config, role in (
        ({"model_type": "gpt2"}, "embed"),
        ({"tie_word_embeddings": False}, "unembed"),
        ({}, "unembed"),
    ):
        assert layout(arrays, FAMILIES["gpt2"], config).matrices[role].tensor == HEAD


def test_shared_storage_of_unknown_tensors_goes_by_name() -> None:
    assert layout(zeros(a=(2, 2)), shared={"b": "a"}).aliases == {"b": "a"}


def test_two_stored_copies() -> None:
    asked = []

    def equal(a: str, b: str) -> bool:
        asked.append((a, b))
        return True

    found = layout(gpt2(HEAD), FAMILIES["gpt2"], equal=equal)
    assert "unembed" not in found.matrices and found.aliases == {"unembed": "embed"}
    assert asked == [("transformer.wte.weight", HEAD)]
    for how in ({}, {"equal": lambda a, b: False}):
        assert "unembed" in layout(gpt2(HEAD), FAMILIES["gpt2"], **how).matrices
    denied = layout(gpt2(HEAD), FAMILIES["gpt2"], {"tie_word_embeddings": False}, equal=equal)
    assert "unembed" in denied.matrices and len(asked) == 1


def test_multimodal_prefixes_leave_the_vision_tower_alone() -> None:
    q, gate = "layers.0.self_attn.q_proj.weight", "layers.0.mlp.gate_proj.weight"
    vision = "vision_tower.encoder.layers.0.self_attn.q_proj.weight"
    for prefix, tower in (("model.language_model.", f"model.{vision}"), ("language_model.model.", vision)):
        arrays = {
            prefix + q: np.zeros((4, 4), "f4"),
            prefix + gate: np.zeros((6, 4), "f4"),
            tower: np.zeros((2, 2), "f4"),
        }
        assert FAMILIES["llama"].signature_matches(set(arrays))
        found = layout(arrays, FAMILIES["llama"])
        assert list(found.matrices) == ["layers.0.attn.q", "layers.0.mlp.gate", tower]


def test_wrapped_base_and_full_models() -> None:
    q, gate = "layers.0.self_attn.q_proj.weight", "layers.0.mlp.gate_proj.weight"
    table = FAMILIES["llama"]
    for wrap in ("", "model.", "model.model.", "policy.model.", "net.policy."):
        arrays = {wrap + q: np.zeros((4, 4), "f4"), wrap + gate: np.zeros((6, 4), "f4")}
        assert list(layout(arrays, table).matrices) == ["layers.0.attn.q", "layers.0.mlp.gate"], wrap


def test_layout_of_a_large_model() -> None:
    block = {
        "self_attn.q_proj": (8, 8),
        "self_attn.k_proj": (8, 8),
        "self_attn.v_proj": (8, 8),
        "mlp.gate_proj": (8, 8),
    }
    block |= {"self_attn.o_proj": (8, 8), "mlp.up_proj": (8, 8), "mlp.down_proj": (8, 8), "input_layernorm": (8,)}
    names = {f"model.layers.{i}.{n}.weight": shape for i in range(50) for n, shape in block.items()}
    tensors = infos({n: np.zeros(shape, "f4") for n, shape in names.items()})
    found = assign(tensors, {}, FAMILIES["llama"], {})
    assert len(found.matrices) == 350 and found.matrices["layers.49.mlp.up"].layer == 49
