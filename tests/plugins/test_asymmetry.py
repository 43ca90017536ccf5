"""Kernels and states of known symmetry, on our Mamba and on those of transformers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ckpt_plugins.asymmetry import Asymmetry, asymmetry, kernel_asymmetry, tap_share, window_asymmetry
from ckpt_tools import ModelHost, RunWriter, View, open_trajectory
from ckpt_tools.registry import load_registry
from ckpt_tools.results import check
from ckpt_tools.roles import assign
from ckpt_tools.testing import analyzer_checks
from ckpt_tools.weights import Weights
from ckpt_trainers.mamba import Mamba

pytestmark = pytest.mark.slow


class Given:
    identity = "given"

    def __init__(self, **batch: Tensor) -> None:
        self._batch = batch

    def batch(self, config: Mapping[str, Any]) -> Mapping[str, Tensor]:
        return self._batch


TOKENS = torch.from_numpy(np.random.default_rng(0).integers(0, 9, (6, 8)))


def measured(folder: Path, tokens: Tensor = TOKENS, family: Any = None, **options: Any) -> Any:
    checkpoint = open_trajectory(folder).checkpoint(0)
    family = family or load_registry().recognise(checkpoint.config, checkpoint.tensors)
    assert family is not None
    layout = assign(checkpoint.tensors, checkpoint.aliases, family.table, checkpoint.config)
    host, analyzer = ModelHost(family, checkpoint.config, Given(tokens=tokens)), Asymmetry(**options)
    view = View(Weights(checkpoint, layout, []), analyzer, step=0, config={}, seed="0", host=host)
    return check(analyzer, analyzer.analyze(view), "here"), view


def own(folder: Path, change: Any = None, **config: Any) -> Path:
    config = {"layers": 2, "d_model": 8, "d_state": 4, "vocabulary": 9, "context": 8, "std": 0.6, **config}
    full = Mamba.Config.parse(config).as_dict()
    module = Mamba.build(full).double()
    Mamba.init(module, full, torch.Generator().manual_seed(1))
    tensors = {n: change(t) if change and n.endswith("conv.weight") else t for n, t in module.state_dict().items()}
    with RunWriter(folder / "run", family="mamba", family_version=1, config=full) as run:
        run.save(0, tensors)
    return folder / "run"


@pytest.mark.parametrize("block", [1, 2])
def test_asymmetry_of_our_mamba(tmp_path: Path, block: int) -> None:
    record, view = measured(own(tmp_path, block=block), family=Mamba)
    found = record.values
    module = view.model().skeleton.module
    for layer in range(2):
        kernel = view.model().tensors[f"layers.{layer}.ssm.conv.weight"]
        assert found["kernel_asymmetry"][layer] == pytest.approx(
            float((kernel - kernel.flip(1)).norm() / (2 * kernel.norm()))
        )
    assert record.labels["lag"].tolist() == [0, 1, 2, 3] and found["tap_share"].sum(1) == pytest.approx(1)
    assert (found["window_asymmetry"] > 0.1).all() and found["state_asymmetry"][0] == pytest.approx(0, abs=1e-12)
    assert (found["state_asymmetry"][1:] > 1e-3).all() and module.training is False


@pytest.mark.parametrize("block", [1, 2])
def test_symmetric_kernels_see_no_direction_in_a_window(tmp_path: Path, block: int) -> None:
    found = measured(own(tmp_path, lambda w: torch.ones_like(w), block=block), family=Mamba)[0].values
    assert found["kernel_asymmetry"] == pytest.approx(0) and found["window_asymmetry"] == pytest.approx(0, abs=1e-12)
    # The model's kernels are ones already: setting them to ones changes nothing.
    np.testing.assert_allclose(found["state_asymmetry"], found["state_asymmetry_ones"], rtol=1e-12)
    np.testing.assert_allclose(found["tap_share"], 0.25)


def test_palindromes_have_no_reverse(tmp_path: Path) -> None:
    mirrored = torch.cat([TOKENS[:, :4], TOKENS[:, :4].flip(1)], 1)
    found = measured(own(tmp_path), mirrored, Mamba)[0].values
    assert found["state_asymmetry"] == pytest.approx(0) and found["state_asymmetry_ones"] == pytest.approx(0)


@pytest.mark.parametrize("kind", ["Mamba", "Mamba2"])
def test_mamba_of_transformers(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes: dict[str, Any] = {"vocab_size": 20, "hidden_size": 8, "state_size": 4, "num_hidden_layers": 2}
    sizes |= {"use_mambapy": False} if kind == "Mamba" else {"num_heads": 2, "head_dim": 8, "n_groups": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**sizes)
        module = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    module.save_pretrained(tmp_path)
    found = measured(tmp_path)[0].values
    mixer = module.backbone.layers[0].mixer
    kernel, bias = mixer.conv1d.weight[:, 0].detach(), mixer.conv1d.bias.detach()
    with torch.no_grad():
        projected = mixer.in_proj(module.backbone.layers[0].norm(module.backbone.embeddings(TOKENS)))
    # The library splits into x and z for the first version, into z, (x, B, C) and dt for the second.
    x = projected[..., :16] if kind == "Mamba" else projected[..., 16:40]
    assert x.shape[-1] == len(kernel)
    pairs = []
    for b in range(x.shape[0]):
        for t in range(3, x.shape[1]):
            window = x[b, t - 3 : t + 1].T
            pairs.append(
                [torch.nn.functional.silu((w * kernel).sum(1) + bias).double() for w in (window, window.flip(1))]
            )
    above = sum(float((r - s).square().sum()) for r, s in pairs)
    below = sum(float(r.square().sum() + s.square().sum()) for r, s in pairs)
    assert found["window_asymmetry"][0] == pytest.approx(np.sqrt(above / below), rel=1e-5)
    assert found["state_asymmetry"].shape == (3,) and (found["state_asymmetry"] <= np.sqrt(2)).all()
    assert not np.allclose(found["state_asymmetry"], found["state_asymmetry_ones"])


def test_models_without_convolutions_have_states_only(tmp_path: Path) -> None:
    found = measured(own(tmp_path, conv="none"), family=Mamba)[0].values
    assert found["tap_share"].shape[0] == 0 and found["window_asymmetry"].size == 0
    np.testing.assert_array_equal(found["state_asymmetry"], found["state_asymmetry_ones"])


def test_known_kernels() -> None:
    assert asymmetry(torch.ones(2), -torch.ones(2)) == pytest.approx(np.sqrt(2)) and asymmetry(*torch.zeros(2, 1)) == 0
    assert kernel_asymmetry(torch.tensor([[1.0, -1.0]])) == pytest.approx(1)
    assert tap_share(torch.tensor([[0.0, 0, 1, 3], [0, 0, 0, 0]])).tolist() == [0.75, 0.25, 0, 0]
    assert np.isnan(window_asymmetry(torch.ones(1, 2, 1), torch.ones(1, 3), None, True))


@pytest.mark.parametrize("check_", analyzer_checks(Asymmetry), ids=str)
def test_conforms(check_: Any) -> None:
    check_()


def test_importing_the_plugin_is_cheap() -> None:
    code = "import sys, ckpt_plugins.asymmetry; sys.exit(any(m in sys.modules for m in ('torch', 'scipy', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
