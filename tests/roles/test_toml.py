"""Role tables as TOML: what they say and how their mistakes are reported."""

from __future__ import annotations

import tomllib

import pytest

from ckpt_tools.errors import PluginError
from ckpt_tools.family_file import ckpt_families
from ckpt_tools.roles import shipped_tables, table_from
from ckpt_tools.roles.template import condition, template


def table(text: str) -> object:
    return table_from(tomllib.loads(text), "mine.toml")


def test_modules_give_weight_and_bias() -> None:
    rules = table_from({"modules": {"h.{i}.fc": "layers.{i}.mlp.up", "a.*_hh": "b"}}, "t").rules
    assert [(r.tensor, r.roles) for r in rules] == [
        ("h.{i}.fc.weight", ("layers.{i}.mlp.up",)),
        ("h.{i}.fc.bias", ("layers.{i}.mlp.up.bias",)),
        ("a.weight_hh", ("b",)),
        ("a.bias_hh", ("b.bias",)),
    ]


def test_roles_expand_and_shapes_carry_over_to_the_bias() -> None:
    how = {"role": "layers.{i}.attn.{q|k|v}", "shape": "[3d, d]", "whole": "layers.{i}.attn.qkv"}
    weight, bias = table_from({"modules": {"h.{i}.qkv": how}}, "t").rules
    assert weight.roles == ("layers.{i}.attn.q", "layers.{i}.attn.k", "layers.{i}.attn.v")
    assert (weight.shape, weight.beside) == ("[3d, d]", "")
    assert (bias.shape, bias.beside) == ("", "h.{i}.qkv.weight [3d, d]")
    assert bias.roles[2] == "layers.{i}.attn.v.bias" and bias.whole == "layers.{i}.attn.qkv.bias"


def test_extended_tables_take_over_what_they_do_not_say() -> None:
    mine = table_from({"extends": "llama", "modules": {"norm": "final", "extra": "extra"}}, "t")
    llama = next(f.table for f in ckpt_families() if f.name == "llama")
    assert mine.signature == () and llama.signature != ()
    assert mine.prefix == llama.prefix and mine.tied == llama.tied
    assert [r.tensor for r in mine.rules[:-2]] == [r.tensor for r in llama.rules]
    assert [r.tensor for r in mine.rules[-2:]] == ["extra.weight", "extra.bias"]
    assert {r.roles for r in mine.rules} - {r.roles for r in llama.rules} == {
        ("final",), ("final.bias",), ("extra",), ("extra.bias",)
    }  # fmt: skip


def test_facts() -> None:
    words = {"n_kv_heads": "new=true:kv_heads | shared=false:n_head | 1", "ff": "inner|4"}
    mine = table_from({"config": words}, "t")
    assert mine.facts({"new": True, "kv_heads": 2, "n_head": 8}) == {"n_heads": 8, "n_kv_heads": 2, "ff": 4}
    assert mine.facts({"shared": False, "n_head": 8})["n_kv_heads"] == 8
    assert mine.facts({"n_head": 8, "hidden_size": 32}) == {
        "n_heads": 8, "n_kv_heads": 1, "ff": 4, "d_model": 32, "head_dim": 4
    }  # fmt: skip
    assert mine.facts({"n_head": -4, "inner": 0}) == {"n_kv_heads": 1, "ff": 4}
    assert mine.facts({"n_head": True, "inner": "9"}) == {"n_kv_heads": 1, "ff": 4}
    assert table_from({}, "t").facts({"num_attention_heads": None}, {"n_heads": 3}) == {"n_heads": 3, "n_kv_heads": 3}


def test_facts_of_the_language_model_inside_a_larger_one() -> None:
    config = {"model_type": "llava", "hidden_size": 7, "text_config": {"hidden_size": 64, "num_attention_heads": 8}}
    assert table_from({}, "t").facts(config) == {"n_heads": 8, "n_kv_heads": 8, "d_model": 64, "head_dim": 8}


MISTAKES = {
    'prefx = "x"': "mine.toml: unknown key 'prefx'. Did you mean 'prefix'?",
    "signature = 3": "mine.toml: signature must be a list of texts. Got 3 instead.",
    "signature = [3]": r"mine.toml: signature must hold texts only. Got \[3\] instead.",
    'signature = ["h.{layer}.w"]': "mine.toml: signature: .*{layer} is no placeholder",
    'shapes = { d = "w [n" }': "mine.toml: shapes: .*is no shape pattern",
    'extends = "lama"': "mine.toml: extends 'lama', which is no table of this package. Did you mean 'llama'",
    "[modules]\na = 3": "mine.toml: modules: 'a' must be a role or a table",
    "[modules]\na = { rol = 'x' }": "mine.toml: modules: 'a': unknown key 'rol'. Did you mean 'role'?",
    "[modules]\na = { transpose = true }": "modules: 'a' needs role",
    "[modules]\na = { role = 'x', transpose = 1 }": "'a': transpose must be true or false. Got 1 instead.",
    "[modules]\na = { role = 'x', heads = 'up' }": '\'a\': heads must be "in" or "out"',
    "[modules]\na = { role = '{q|k}', split = 'evenly' }": "'a': split must be equal, .* Got 'evenly' instead.",
    "[modules]\na = { role = '{q|k}', split = '1 : 2 : 3' }": "'a': split gives 3 parts, but there are 2 roles.",
    "[modules]\na = { role = 'x', shape = 'dd' }": "'a': 'dd' is no shape pattern",
    "[modules]\na = { role = 'x', beside = 'h.{i}.w' }": "'a': {i} does not occur in the tensor name",
    "[tensors]\n'h.{i}.w' = 'layers.{e}.w'": "tensors: 'h.{i}.w': {e} does not occur in the tensor name",
    "[tied]\na = 3": "mine.toml: tied: 'a' must be a tensor name or",
    "closed = 'yes'": "mine.toml: closed must be true or false",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_name_file_and_key(text: str) -> None:
    with pytest.raises(PluginError, match=MISTAKES[text]):
        table(text)


def test_shipped_tables_are_sound() -> None:
    for name, text in shipped_tables().items():
        assert text.startswith("# "), name
        data = {k: v for k, v in tomllib.loads(text).items() if k not in ("model_types", "loads")}
        made = table_from(data, name)
        tensors = [(r.tensor, r.shape, r.beside) for r in made.rules]
        assert len(set(tensors)) == len(tensors), f"{name} says the same twice"
        for entry in made.signature:
            for choice in entry.lstrip("!").split(" | "):
                rules = [template(r.tensor) for r in made.rules]
                example = condition(choice)[0].fill(_Anything())
                known = entry.startswith("!") or any(rule.match(example) is not None for rule in rules)
                assert known, f"{name}: signature {choice!r} fits no rule"


class _Anything(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return {"path": "", "word": "attn"}.get(key, key.split("|")[0] if "|" in key else "0")
