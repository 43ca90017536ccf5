"""The main job on real third-party checkpoints: every number against an independent decomposition."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from safetensors import safe_open

from ckpt_tools import analyze, open_results

METRICS = ("effective_rank", "stable_rank", "participation_ratio", "energy_entropy_rank", "nuclear_norm",
           "frobenius_norm", "spectral_norm")  # fmt: skip


def measured_by_svd(matrix: np.ndarray[Any, Any]) -> dict[str, float]:
    s = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    p, q = s / s.sum(), s**2 / np.sum(s**2)
    return {
        "effective_rank": float(np.exp(-np.sum(p * np.log(p)))),
        "stable_rank": float(np.sum(s**2) / s[0] ** 2),
        "participation_ratio": float(np.sum(s**2) ** 2 / np.sum(s**4)),
        "energy_entropy_rank": float(np.exp(-np.sum(q * np.log(q)))),
        "nuclear_norm": float(s.sum()),
        "frobenius_norm": float(np.linalg.norm(matrix.astype(np.float64))),
        "spectral_norm": float(s[0]),
    }


def stored_tensors(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found.update({name: opened.get_tensor(name).double().numpy() for name in opened.keys()})  # noqa: SIM118 - no dict
    return found


@pytest.mark.parametrize("name", ["hf_fp32", "hf_bf16_sharded"])
def test_a_trained_llama_equals_its_svd(shared_data: Path, tmp_path: Path, name: str) -> None:
    source = shared_data / "models" / "stories260k" / name
    analyze(source, ["rank"], output=tmp_path / "r.h5")
    tensors = stored_tensors(source)
    roles = {"embed": "model.embed_tokens.weight"}
    for i in range(5):
        roles |= {f"layers.{i}.attn.{p}": f"model.layers.{i}.self_attn.{p}_proj.weight" for p in "qkvo"}
        roles |= {f"layers.{i}.mlp.{p}": f"model.layers.{i}.mlp.{p}_proj.weight" for p in ("gate", "up", "down")}
    with h5py.File(tmp_path / "r.h5") as file:
        rank = file["rank"]
        names = [label.decode() for label in rank["matrix"][...]]
        assert sorted(names) == sorted(roles), "every matrix once, the tied head under its embedding"
        for column, role in enumerate(names):
            for metric, expected in measured_by_svd(tensors[roles[role]]).items():
                assert rank[metric][0, column] == pytest.approx(expected, rel=1e-9), (role, metric)
    tree = open_results(tmp_path / "r.h5")
    array = tree["rank"]["effective_rank"]
    assert array.dims == ("step", "matrix") and array.attrs["units"] == "1"
    assert array.sel(matrix="embed").shape == (1,)


@pytest.mark.parametrize("family", ["gpt2"])
def test_a_third_party_trajectory(shared_data: Path, tmp_path: Path, family: str) -> None:
    source = shared_data / "trajectories" / "hf-layouts" / family
    outcome = analyze(source, ["rank"], output=tmp_path / "r.h5")
    assert outcome.steps == [0, 1, 2, 4, 8, 16, 32, 64, 128, 192, 256]
    stored = stored_tensors(source / "checkpoint-64")
    fused = stored["transformer.h.1.attn.c_attn.weight"]
    with h5py.File(tmp_path / "r.h5") as file:
        names = [label.decode() for label in file["rank"]["matrix"][...]]
        value = file["rank"]["effective_rank"][outcome.steps.index(64), names.index("layers.1.attn.k")]
    assert value == pytest.approx(measured_by_svd(fused[:, 64:128])["effective_rank"], rel=1e-9)
