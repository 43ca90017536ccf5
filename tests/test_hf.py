"""Families from tables: loading files, building and running models, and the errors on the way."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import functional_call

from ckpt_tools.errors import PluginError, SourceError
from ckpt_tools.family_file import ckpt_families, family_from_toml, load_family_file
from ckpt_tools.hf import HFFamily
from ckpt_tools.registry import load_registry

FAMILIES: dict[str, Any] = {family.name: family for family in ckpt_families()}
CONFIG = {
    "model_type": "llama", "vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32,
}  # fmt: skip
TOKENS = torch.arange(10).reshape(2, 5)


@pytest.fixture(scope="module")
def llama() -> Any:
    return drawn(FAMILIES["llama"].build(CONFIG))


def drawn(module: Any) -> Any:
    """Return the module with random weights: a built one has none."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return module


def test_families_have_distinct_names_and_model_types() -> None:
    families = ckpt_families()
    kinds = [kind for family in families for kind in family.model_types]
    assert len(kinds) == len(set(kinds)) and len(FAMILIES) == len(families)
    assert all((family.__doc__ or "").endswith(".") for family in families), "a whole sentence for `ckpt plugins`"


def test_trainers_have_names_of_their_own() -> None:
    assert set(FAMILIES) < set(load_registry().families())


def test_model_types_exist_in_the_library() -> None:
    transformers = pytest.importorskip("transformers")
    unknown = {kind for f in ckpt_families() for kind in f.model_types} - set(transformers.CONFIG_MAPPING)
    assert unknown == set()


def test_listing_families_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, ckpt_tools.family_file as h; h.ckpt_families(); print([m for m in ('torch', 'transformers') if m in sys.modules])"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_build_gives_a_quiet_module(llama: Any) -> None:
    state = torch.get_rng_state()
    module = FAMILIES["llama"].build({**CONFIG, "torch_dtype": "bfloat16", "use_cache": True, "return_dict": False})
    assert torch.equal(torch.get_rng_state(), state)
    assert not module.training and {p.dtype for p in module.parameters()} == {torch.float32}
    assert module.config._attn_implementation == "eager" and module.config.use_cache is False


def test_nothing_of_the_checkpoints_own_code_runs(tmp_path: Path) -> None:
    trap = tmp_path / "modeling_evil.py"
    trap.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    auto_map = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}
    module = FAMILIES["llama"].build({**CONFIG, "auto_map": auto_map, "_name_or_path": str(tmp_path)})
    assert type(module).__module__ == "transformers.models.llama.modeling_llama"
    assert not (tmp_path / "ran").exists()


def test_infinities_of_the_library_are_read() -> None:
    config = {"model_type": "mamba2", "vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    config |= {"num_heads": 4, "head_dim": 8, "n_groups": 1, "time_step_limit": [0.0, {"__float__": "Infinity"}]}
    assert FAMILIES["mamba2"].build(config).config.time_step_limit[1] == math.inf


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "config.json has no model_type"),
        (
            {"model_type": "never"},
            "builds no model from this config.json \\(model_type 'never', AutoModelForCausalLM\\)",
        ),
        ({**CONFIG, "hidden_size": "wide"}, "builds no model from this config.json"),
        ({**CONFIG, "num_attention_heads": 5}, "builds no model from this config.json"),
    ],
)
def test_configurations_that_make_no_model(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        FAMILIES["llama"].build(config)


def test_misspelled_classes_are_named() -> None:
    family = family_from_toml('model_types = ["llama"]\nloads = "AutoModelForCasualLM"', "mine", "mine.toml")
    with pytest.raises(SourceError, match="AutoModelForCasualLM"):
        family.build(CONFIG)


def test_large_models_are_built_without_drawing_weights() -> None:
    state = torch.get_rng_state()
    FAMILIES["llama"].build({**CONFIG, "hidden_size": 1024, "intermediate_size": 8192, "vocab_size": 32000})
    assert torch.equal(torch.get_rng_state(), state)


def test_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PluginError, match=r"pip install 'ckpt-tools\[hf\]'"):
        FAMILIES["llama"].build(CONFIG)


def test_missing_and_misshapen_tensors_are_named(llama: Any) -> None:
    stored = {name: p.detach() for name, p in llama.named_parameters()}
    part = {n: t for n, t in stored.items() if "self_attn.q_proj" not in n}
    with pytest.raises(
        SourceError, match=r"no tensor for 2 of its parameters, such as 'model\.layers\.0\.self_attn\.q_proj"
    ):
        FAMILIES["llama"].module_tensors(llama, part)
    small = {**stored, "model.norm.weight": torch.ones(3)}
    with pytest.raises(SourceError, match=r"'model.norm.weight' has shape \[3\], but .* has \[16\]"):
        FAMILIES["llama"].module_tensors(llama, small)


def test_plan_is_made_once(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {name: p.detach() for name, p in llama.named_parameters()}
    first = FAMILIES["llama"].module_tensors(llama, stored)
    monkeypatch.setattr(FAMILIES["llama"], "_plan", None)
    again = FAMILIES["llama"].module_tensors(llama, {n: t.clone() for n, t in stored.items()})
    assert set(first) == set(again)


def losses(module: Any, **batch: torch.Tensor) -> float:
    with torch.no_grad():
        return float(FAMILIES["llama"].loss(module, batch))


def test_loss_is_next_token_cross_entropy(llama: Any) -> None:
    with torch.no_grad():
        log_p = llama(input_ids=TOKENS).logits.log_softmax(-1)
    expected = -torch.stack([log_p[b, t, TOKENS[b, t + 1]] for b in range(2) for t in range(4)]).mean()
    assert losses(llama, tokens=TOKENS) == pytest.approx(float(expected), rel=1e-6)
    shifted = torch.cat([TOKENS[:, 1:], torch.full((2, 1), -100)], 1)
    assert losses(llama, tokens=TOKENS, targets=shifted) == pytest.approx(float(expected), rel=1e-6)
    one = torch.zeros(2, 5)
    one[1, 2] = 1.0
    assert losses(llama, tokens=TOKENS, targets=shifted, weights=one) == pytest.approx(
        -float(log_p[1, 2, TOKENS[1, 3]])
    )
    last = torch.tensor([4, 7])
    expected = -(log_p[0, -1, 4] + log_p[1, -1, 7]) / 2
    assert losses(llama, tokens=TOKENS, targets=last) == pytest.approx(float(expected), rel=1e-6)
    certain = torch.nn.functional.one_hot(last, 31).float()
    assert losses(llama, tokens=TOKENS, targets=certain) == pytest.approx(float(expected), rel=1e-6)


def test_masked_language_models_need_targets() -> None:
    family = FAMILIES["bert"]
    config = {
        "model_type": "bert",
        "vocab_size": 31,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    module = drawn(family.build({**config, "intermediate_size": 24}))
    with pytest.raises(SourceError, match="its loss needs batch\\['targets'\\]"):
        family.loss(module, {"tokens": TOKENS})
    targets = torch.where(TOKENS % 3 == 0, TOKENS, -100)
    with torch.no_grad():
        mine = family.loss(module, {"tokens": TOKENS, "targets": targets})
        theirs = module(input_ids=TOKENS, labels=targets).loss
    torch.testing.assert_close(mine, theirs)


def test_only_asked_for_activations_are_kept(llama: Any) -> None:
    stored = {name: p.detach() for name, p in llama.named_parameters()}
    tensors = FAMILIES["llama"].module_tensors(llama, stored)
    shown = FAMILIES["llama"].forward(lambda **b: functional_call(llama, tensors, kwargs=b), {"tokens": TOKENS})
    assert shown.hidden == () and shown.attention == ()


TABLE = """# Two blocks of mine.
model_types = ["mine"]
prefix = "net."
signature = ["blocks.{i}.mix.weight"]

[config]
n_heads = "heads"

[modules]
"blocks.{i}.mix" = { role = "layers.{i}.attn.{q|k|v}", split = "heads" }
"""


def test_family_file(tmp_path: Path) -> None:
    path = tmp_path / "my_blocks.toml"
    path.write_text(TABLE)
    family = load_family_file(path)
    assert (family.name, family.__doc__, family.model_types) == ("my_blocks", "Two blocks of mine.", ("mine",))
    assert issubclass(family, HFFamily) and family.__name__ == "MyBlocks"
    assert family.recognises({}, ["net.blocks.0.mix.weight"]) and family.recognises({"model_type": "mine"}, [])
    path.write_text('name = "other"\n' + TABLE.replace('model_types = ["mine"]', ""))
    other = load_family_file(path)
    assert other.name == "other" and not issubclass(other, HFFamily)
    with pytest.raises(NotImplementedError, match="'other' has roles only"):
        other.build({})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a", "not TOML: .*"),
        ('model_types = "gpt2"', "model_types must be a list of texts. Got 'gpt2' instead."),
        ('loads = "os.system"', "loads must be an AutoModel class of transformers. Got 'os.system' instead."),
        ("name = 3", "name must be a text. Got 3 instead."),
        ("[modul]", "unknown key 'modul'. Did you mean 'modules'?"),
    ],
)
def test_faulty_family_files_name_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(PluginError, match=f"mine.toml: {message}"):
        load_family_file(path)


def test_unreadable_family_file(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"absent\.toml cannot be read"):
        load_family_file(tmp_path / "absent.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PluginError, match=r"bytes\.toml cannot be read"):
        load_family_file(tmp_path / "bytes.toml")
    assert family_from_toml("# x", "n", "w").__doc__ == "x"
