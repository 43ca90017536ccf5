"""One model in many containers: the same numbers, whatever the file."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ckpt_tools import analyze

TOLERANCE = {
    "fp16.pth": 5e-4,
    "float8_e4m3.safetensors": 5e-2,
    "stories260K-f16.gguf": 5e-4,
    "stories260K-q8_0.gguf": 2e-2,
    "stories260K-q4_0.gguf": 2e-1,
}
CONTAINERS = [
    "pytorch_model.bin", "legacy_nonzip.pth", "fp16.pth", "compiled_orig_mod.pt", "ddp_compiled.pth.tar", "params.npz",
    "float8_e4m3.safetensors", "sharded_bin", "dcp_step7", "stories260K-f32.gguf", "stories260K-f16.gguf",
    "stories260K-q8_0.gguf", "stories260K-q4_0.gguf",
]  # fmt: skip


def ranks(source: Path, target: Path) -> dict[str, dict[str, float]]:
    analyze(source, ["rank"], output=target)
    found: dict[str, dict[str, float]] = {}
    with h5py.File(target) as file:
        names = [label.decode() for label in file["rank"]["matrix"][...]]
        for metric in ("effective_rank", "stable_rank", "participation_ratio", "nuclear_norm", "spectral_norm"):
            found[metric] = dict(zip(names, file["rank"][metric][0].tolist(), strict=True))
    return found


@pytest.fixture(scope="module")
def reference(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return ranks(shared_data / "models" / "stories260k" / "hf_fp32", tmp_path_factory.mktemp("reference") / "r.h5")


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_same_ranks_from_every_container(shared_data: Path, tmp_path: Path, reference: Any, name: str) -> None:
    found = ranks(shared_data / "models" / "stories260k-formats" / name, tmp_path / "r.h5")
    for metric, expected in reference.items():
        assert found[metric].keys() == expected.keys(), "the same roles, the tied head once"
        for role, value in expected.items():
            assert found[metric][role] == pytest.approx(value, rel=TOLERANCE.get(name, 1e-9)), (metric, role)


def test_bfloat16_and_llama2c(shared_data: Path, tmp_path: Path, reference: Any) -> None:
    bf16 = ranks(shared_data / "models" / "stories260k" / "hf_bf16_sharded", tmp_path / "b.h5")
    values = [(bf16[m][r], v) for m, of in reference.items() for r, v in of.items()]
    assert np.allclose(*zip(*values, strict=True), rtol=4e-3)
    one = ranks(shared_data / "models" / "llama2c" / "model.bin", tmp_path / "one.h5")
    other = ranks(shared_data / "models" / "llama2c" / "ckpt.pt", tmp_path / "other.h5")
    assert one == other
