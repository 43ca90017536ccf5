"""Networks on vectors against numpy, their initial weights, and two laws that they must obey."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_tools import open_trajectory
from ckpt_tools.errors import OptionError
from ckpt_tools.run import read_metrics, read_probe
from ckpt_trainers.mlp import MLP, Config
from ckpt_trainers.settings import plan

pytestmark = pytest.mark.slow

Array = np.ndarray[Any, Any]

CASES: dict[str, dict[str, Any]] = {
    "two layers": {"hidden": (6,), "bias": True},
    "three layers": {"hidden": (6, 5)},
    "relu": {"hidden": (6,), "activation": "relu"},
    "xtanh": {"hidden": (6,), "activation": "xtanh", "bias": True},
    "product": {"hidden": (4, 4), "activation": "linear"},
    "no hidden layer": {"hidden": ()},
}
ACTIVATION = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "xtanh": lambda x: x * np.tanh(x),
    "linear": lambda x: x,
}


def saved(run: Path, step: int) -> dict[str, Array]:
    with open_trajectory(run).checkpoint(step) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.tensors}


def model(seed: int = 0, **switches: Any) -> torch.nn.Module:
    config = Config(**{"inputs": 3, "outputs": 2, **switches}).as_dict()
    module = MLP.build(config).double()
    MLP.init(module, config, torch.Generator().manual_seed(seed))
    return module


def batch() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        "inputs": torch.randn(7, 3, generator=draw, dtype=torch.float64),
        "targets": torch.randn(7, 2, generator=draw, dtype=torch.float64),
    }


@pytest.mark.parametrize("switches", CASES.values(), ids=CASES.keys())
def test_forward_equals_numpy(switches: dict[str, Any]) -> None:
    module, data = model(**switches), batch()
    w = {name: p.numpy() for name, p in module.state_dict().items()}
    x, entering = data["inputs"].numpy(), []
    layers = len(switches["hidden"]) + 1
    for i in range(layers):
        x = ACTIVATION[switches.get("activation", "tanh")](x) if i else x
        entering.append(x)
        x = x @ w[f"layers.{i}.weight"].T + w.get(f"layers.{i}.bias", 0.0)
    shown = MLP.forward(module, data, record=True)
    np.testing.assert_allclose(shown.logits[:, 0].detach(), x, rtol=0, atol=1e-13)
    assert len(shown.hidden) == layers
    for mine, expected in zip(shown.hidden, entering, strict=True):
        np.testing.assert_allclose(mine[:, 0].detach(), expected, rtol=0, atol=1e-13)
    loss = MLP.loss(module, data).item()
    assert loss == pytest.approx(0.5 * ((x - data["targets"].numpy()) ** 2).mean(), rel=1e-13)


def test_factor_and_weights_of_the_loss() -> None:
    module, data = model(hidden=(4,)), batch()
    gaps = (MLP.forward(module, data).logits[:, 0] - data["targets"]).detach().square()
    weights = torch.rand(7, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    data |= {"weights": weights / weights.sum(), "factor": torch.tensor(3.0, dtype=torch.float64)}
    assert MLP.loss(module, data).item() == pytest.approx(3 * (weights * gaps).sum().item() / weights.sum().item())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"gamma": 1.0}, [1 / 300, 1 / 400]),
        ({"std": 0.01, "gamma": 9.0}, [0.01, 0.01]),
        ({"gammas": (0.5, 1.0), "std": 7.0}, [300**-0.5, 1 / 400]),
        ({"stds": (0.1, 0.3), "gammas": (5, 5)}, [0.1, 0.3]),
    ],
)
def test_initial_spread_of_each_layer(given: dict[str, Any], expected: list[float]) -> None:
    module = model(inputs=300, hidden=(400,), outputs=300, bias=True, **given)
    found = {name: p.std().item() for name, p in module.named_parameters()}
    for i, std in enumerate(expected):
        assert found[f"layers.{i}.weight"] == pytest.approx(std, rel=0.02)
        assert found[f"layers.{i}.bias"] == pytest.approx(std, rel=0.15)


def test_bad_shapes() -> None:
    with pytest.raises(OptionError, match=r"gammas must name one value for each of 3 layers. Got 2"):
        model(hidden=(4, 4), gammas=(0.5, 0.5))
    with pytest.raises(OptionError, match="inputs and outputs must be set"):
        MLP.build({"hidden": (4,)})
    with pytest.raises(OptionError, match="Task markov gives tokens, but family mlp reads vectors"):
        plan(MLP, "markov", {})
    with pytest.raises(OptionError, match=r"Task regression needs inputs = 5. Got 4 instead"):
        plan(MLP, "regression", {"inputs": 4})


def test_initial_condensation_of_three_layers(tmp_path: Path) -> None:
    """With z = mean(y x), v = z / ||z||: E = a^T W2 W1 v obeys d E^(-1/3) / dt = -||z|| (arXiv 2402.15958)."""
    MLP.train("regression", {"steps": 3000, "save": "every:100"}, tmp_path / "run")
    probe, metrics = read_probe(tmp_path / "run"), read_metrics(tmp_path / "run")
    z = (probe["inputs"] * probe["targets"]).mean(0)
    size, v = np.linalg.norm(z), z / np.linalg.norm(z)
    times, energies, cosines = [], [], []
    for step in range(0, 3001, 100):
        w = saved(tmp_path / "run", step)
        rows = w["layers.0.weight"]
        times.append(0.1 * step)
        energies.append((w["layers.2.weight"] @ w["layers.1.weight"] @ rows @ v).item())
        cosines.append(abs(rows @ v / np.linalg.norm(rows, axis=1)).mean())
    loss = metrics["loss"][::100]
    on_plateau = (loss > 0.999 * loss[0]) & (np.arange(31) >= 10) & (np.array(energies) > 0)
    assert on_plateau.sum() >= 5
    y, t = np.cbrt(1 / np.array(energies)[on_plateau]), np.array(times)[on_plateau]
    assert cosines[0] < 0.6
    assert cosines[int(np.argmax(loss <= 0.95 * loss[0])) or -1] > 0.95
    assert np.polyfit(t[-5:], y[-5:], 1)[0] == pytest.approx(-size, rel=0.05)


def test_deep_factorization_learns_one_direction_after_the_other(tmp_path: Path) -> None:
    MLP.train("matrix", {"steps": 1500, "save": "every:10"}, tmp_path / "run")
    values = []
    for step in range(0, 1501, 10):
        w = saved(tmp_path / "run", step)
        product = w["layers.2.weight"] @ w["layers.1.weight"] @ w["layers.0.weight"]
        values.append(np.linalg.svd(product, compute_uv=False)[:4])
    s = np.array(values)
    half = [int(np.argmax(s[:, k] > target / 2)) for k, target in enumerate((4.0, 2.0, 1.0))]
    assert 0 < half[0] < half[1] < half[2]
    assert s[half[1], 0] > 3.8
    assert s[:, 3].max() < 0.05
    np.testing.assert_allclose(s[-1, :2], [4, 2], rtol=1e-2)
