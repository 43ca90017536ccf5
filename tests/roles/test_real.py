"""Roles in artefacts of other people's making."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from ckpt_tools.family_file import ckpt_families
from ckpt_tools.roles import Layout, assign

from .conftest import canonical, infos


def read(path: Path, config: dict[str, Any], *inside: str) -> tuple[str, Layout, dict[str, torch.Tensor]]:
    """Return family by names, layout and weights of a file; `inside` leads to its tensors."""
    if path.suffix == ".safetensors":
        arrays: dict[str, Any] = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in inside:
            state = state[key]
        arrays = {name: t.detach().numpy() for name, t in state.items()}
    (family,) = (f for f in ckpt_families() if f.table.signature_matches(set(arrays)))
    layout = assign(infos(arrays), {}, family.table, config)
    return family.name, layout, canonical(layout, arrays)


@pytest.mark.parametrize(
    ("folder", "name", "tied"),
    [
        ("gpt2", "gpt2", True),
        ("gpt_neox", "gpt_neox", False),
        ("mamba", "mamba1", True),
        ("mixtral_moe", "mixtral", False),
    ],
)
def test_trained_language_models(shared_data: Path, folder: str, name: str, tied: bool) -> None:
    step = shared_data / "trajectories" / "hf-layouts" / folder / "checkpoint-256"
    config = json.loads((step / "config.json").read_text())
    found, layout, _ = read(step / "model.safetensors", config)
    assert found == name and layout.notes == [] and layout.skipped == []
    assert all(w.role for w in [*layout.matrices.values(), *layout.vectors.values()])
    assert (layout.aliases == {"unembed": "embed"}) == tied == ("unembed" not in layout.matrices)


def test_grokked_transformer(shared_data: Path) -> None:
    found, layout, w = read(shared_data / "models" / "grokking-pairs" / "p97_frac0.30_wd1_seed0.pt", {})
    assert found == "blocks" and w["unembed"].shape == (97, 128) and w["embed"].shape == (98, 128)
    assert all(m.role for m in [*layout.matrices.values(), *layout.vectors.values()])
    assert [s.name for s in layout.skipped] == ["blocks.0.attn.causal_mask"]


def test_llama2c_training_checkpoint(shared_data: Path) -> None:
    config = {"dim": 64, "n_layers": 5, "n_heads": 8, "n_kv_heads": 4}
    found, layout, w = read(shared_data / "models" / "llama2c" / "ckpt.pt", config, "model")
    assert found == "llama2c" and layout.facts["head_dim"] == 8 and w["layers.4.attn.k"].shape == (32, 64)


def test_state_space_blocks_in_a_model_of_its_own(shared_data: Path) -> None:
    found, layout, w = read(shared_data / "models" / "mamba-cmapss" / "best_model.pt", {}, "model_state_dict")
    assert (
        found == "mamba1" and w["layers.3.ssm.in.z"].shape == (128, 64) and w["layers.0.ssm.A_log"].shape == (128, 16)
    )
    roleless = [m.name for m in layout.matrices.values() if not m.role]
    assert roleless == ["input_proj.weight", "output_proj.0.weight", "output_proj.3.weight"]


def test_recurrent_network_in_both_directions(shared_data: Path) -> None:
    found, _, w = read(shared_data / "models" / "mamba-cmapss" / "lstm_final.pt", {}, "model_state_dict")
    assert found == "torch_rnn" and w["layers.1.rnn.reverse.input.cell"].shape == (64, 128)


def test_network_with_batch_norm(shared_data: Path) -> None:
    path = shared_data / "trajectories" / "willmore-mlp" / "checkpoint_epoch_20.pt"
    found, layout, _ = read(path, {}, "model_state_dict")
    assert found == "torch_mlp"
    assert {n: m.shape for n, m in layout.matrices.items()} == {
        f"layers.{k}.linear": shape
        for k, shape in enumerate([(128, 12), (256, 128), (512, 256), (256, 512), (128, 256), (3, 128)])
    }
    assert layout.vectors["layers.4.norm"].tensor == "network.13.weight"
