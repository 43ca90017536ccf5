"""The section on role tables in docs/formats.md is true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt_tools.family_file import ckpt_families, load_family_file
from ckpt_tools.roles import assign, toml

from .conftest import canonical, infos
from .test_architectures import ROLE

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text("utf-8")
(TABLE,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
LOADING, PLUGIN = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[:2]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.toml").write_text(TABLE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_loads(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(LOADING, "docs/formats.md", "exec"), {})
    assert capsys.readouterr().out == "mine True\n"


def test_the_plugin_offers_it(written: Path) -> None:
    from ckpt_tools.registry import load_registry

    (written / "plugin.py").write_text(PLUGIN)
    family = load_registry([written / "plugin.py"]).recognise({}, ["net.blocks.0.mix.weight"])
    assert family is not None and family.name == "mine"


def test_the_example_says_what_the_page_says(written: Path) -> None:
    family = load_family_file(written / "mine.toml")
    rng = np.random.default_rng(0)
    shapes = {"tokens": (9, 4), "blocks.0.mix": (12, 4), "blocks.0.out": (4, 4), "blocks.0.ffn_in": (6, 4)}
    arrays = {f"net.{name}.weight": rng.random(shape, "f4") for name, shape in shapes.items()}
    arrays |= {"net.blocks.0.scale": rng.random(4, "f4"), "net.blocks.0.slopes": rng.random(4, "f4")}
    layout = assign(infos(arrays), {}, family.table, {"heads": 4, "share_keys": True, "tie_word_embeddings": True})
    w = canonical(layout, arrays)
    assert layout.facts["n_kv_heads"] == 1 and layout.aliases == {"unembed": "embed"}
    assert torch.equal(w["layers.0.attn.q"], torch.tensor(arrays["net.blocks.0.mix.weight"][:8]))
    assert torch.equal(w["layers.0.attn.v"], torch.tensor(arrays["net.blocks.0.mix.weight"][10:]))
    assert torch.equal(w["layers.0.attn.o"], torch.tensor(arrays["net.blocks.0.out.weight"].T))
    assert torch.equal(w["layers.0.mlp.up"], torch.tensor(arrays["net.blocks.0.ffn_in.weight"][3:]))
    assert "layers.0.attn.norm" in w
    assert [s.reason for s in layout.skipped] == ["position slopes, not trained"]


def test_every_family_is_listed() -> None:
    section = PAGE[PAGE.index("| family |") : PAGE.index("### A table of your own")]
    listed = re.findall(r"^\| `(\w+)` \|([^|]*)\|", section, re.MULTILINE)
    told = {name: tuple(kinds.strip().split(", ")) if kinds.strip() else () for name, kinds in listed}
    assert told == {family.name: family.model_types for family in ckpt_families()}


def test_every_key_is_explained() -> None:
    section = PAGE[PAGE.index("### A table of your own") : PAGE.index("## Hub and object stores")]
    explained = {
        key for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for key in re.findall(r"`\[?(\w+)\]?`", row)
    }
    assert explained == {*toml._KINDS, *toml._RULE_KINDS, "name", "model_types", "loads"}


def test_every_role_of_a_language_model_is_explained() -> None:
    section = PAGE[PAGE.index("### Roles") : PAGE.index("### Families")]
    for family in ckpt_families():
        for role in family.table.role_templates:
            words = [word for word in re.split(r"\.(?=\D)", re.sub(r"\{\w\}\.?|layers\.|\.bias$", "", role)) if word]
            assert all(re.search(rf"\b{word}\b", section) for word in words), role


def test_roles_of_language_models_have_one_spelling() -> None:
    assert ROLE.fullmatch("layers.0.mlp.experts.3.gate.bias") and not ROLE.fullmatch("layers.0.attn.query")
    assert tomllib.loads(TABLE)["prefix"] == "net."
