"""Analyzers that studies bring along, against gradients and formulas computed in another way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_tools import analyze, open_trajectory
from ckpt_tools.registry import load_registry
from ckpt_tools.run.reader import read_probe
from ckpt_tools.study import Measures

pytestmark = pytest.mark.slow

STUDIES = Path(__file__).resolve().parents[2] / "samples" / "studies"


def measured(tmp_path: Path, study: str, analyzer: str, family: str, task: str, values: dict[str, Any]) -> Any:
    """Train one run, analyze it with an analyzer of a study, and return its measures and the run's folder."""
    file = STUDIES / f"{study}.py"
    load_registry().family(family).train(task, {"save": "every:1", **values}, tmp_path / "run")
    analyze(tmp_path / "run", [analyzer], plugin_files=[file], output=tmp_path / "r.h5", strict=True)
    return Measures(tmp_path / "r.h5", analyzer), tmp_path / "run"


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    with open_trajectory(run).checkpoint(step) as checkpoint:
        return {name: torch.from_numpy(np.array(checkpoint.read(name))).double() for name in checkpoint.tensors}


def test_force_is_the_slope_of_the_loss_at_the_origin(tmp_path: Path) -> None:
    values = {"hidden": (6, 5), "std": 1e-3, "steps": 2, "samples": 40}
    found, run = measured(tmp_path, "three_layer", "escape", "mlp", "regression", values)
    probe = read_probe(run)
    x, y = probe["inputs"], probe["targets"]
    # L = mean (f - y)^2 / 2 with f = <u, x>: its gradient at u = 0 is -z.
    u = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    loss = (torch.from_numpy(x) @ u - torch.from_numpy(y)[:, 0]).square().mean() / 2
    loss.backward()  # type: ignore[no-untyped-call]
    assert u.grad is not None
    z = -u.grad.numpy()
    assert found("force")[0] == pytest.approx(np.linalg.norm(z), rel=1e-12)
    w = {name: t.numpy() for name, t in tensors(run, 2).items()}
    w1, w2, a = (w[f"layers.{i}.weight"] for i in range(3))
    v = z / np.linalg.norm(z)
    assert found("output")[2] == pytest.approx((a @ w2 @ w1 @ v).item(), rel=1e-12)
    cosines = [abs(row @ v) / np.linalg.norm(row) for row in w1]
    assert found("alignment")[2] == pytest.approx(np.mean(cosines), rel=1e-12)


def test_product_of_all_layers(tmp_path: Path) -> None:
    values = {"rows": 6, "columns": 5, "hidden": (4, 5), "std": 0.5, "steps": 1, "spectrum": (2.0, 1.0)}
    found, run = measured(tmp_path, "three_layer", "product", "mlp", "matrix", values)
    w = tensors(run, 1)
    product = w["layers.2.weight"] @ w["layers.1.weight"] @ w["layers.0.weight"]
    np.testing.assert_allclose(found("value")[1], torch.linalg.svdvals(product)[:4], rtol=1e-7, atol=1e-9)


def test_frequencies_of_a_population(tmp_path: Path) -> None:
    pi = np.array([0.5, 0.3, 0.2])
    values = {"pi": tuple(pi), "steps": 1, "std": 0.3}
    found, run = measured(tmp_path, "focus_dilution", "frequency", "transformer", "markov", values)
    top = torch.linalg.svd(tensors(run, 1)["embed.weight"])[0][:, 0].numpy()
    assert found("cos")[1] == pytest.approx(abs(top @ pi) / np.linalg.norm(pi), rel=1e-9)
    assert found("entropy")[1] == pytest.approx(-(pi * np.log(pi)).sum(), rel=1e-12)


def test_frequencies_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("aab" * 300, encoding="utf-8")
    values = {"data": str(tmp_path / "text"), "length": 9, "batch": 2, "steps": 1, "d_model": 8, "d_ff": 8, "probes": 1}
    found, run = measured(tmp_path, "focus_dilution", "frequency", "transformer", "text", {**values, "heads": 2})
    share = np.bincount(read_probe(run)["tokens"].ravel()) / 9
    np.testing.assert_allclose(sorted(share), [1 / 3, 2 / 3])
    top = torch.linalg.svd(tensors(run, 1)["embed.weight"])[0][:, 0].numpy()
    assert found("cos")[1] == pytest.approx(abs(top @ share) / np.linalg.norm(share), rel=1e-5)


def test_force_on_queries_is_the_gradient_of_the_loss(tmp_path: Path) -> None:
    values = {"dimension": 6, "length": 4, "samples": 50, "gamma": 3.0, "steps": 1}
    found, run = measured(tmp_path, "rank_collapse", "collapse", "attn_mlp", "signal", values)
    probe = {name: torch.from_numpy(t) for name, t in read_probe(run).items()}
    w = {name: t.requires_grad_() for name, t in tensors(run, 1).items()}
    family = load_registry().family("attn_mlp")
    module = family.build({"inputs": 6}).double()
    loss = torch.func.functional_call(module, w, (probe["inputs"],)).logits[:, 0, 0]
    (-probe["targets"] * loss).exp().mean().backward()
    slope = w["attn.q.weight"].grad
    assert slope is not None
    # Near the origin -dL/dW_Q = F W_K; Linear stores transposes.
    force = np.linalg.solve(w["attn.k.weight"].detach().numpy(), -slope.numpy()).T
    query = torch.linalg.svd(w["attn.q.weight"].detach().T)[0][:, 0].numpy()
    assert found("query_cos")[1] == pytest.approx(abs(query @ np.linalg.svd(force)[0][:, 0]), abs=1e-5)
    v = (probe["targets"][:, None] * probe["inputs"].sum(1)).sum(0).numpy()
    columns = w["attn.v.weight"].detach().numpy()
    cosines = abs(columns @ v) / np.linalg.norm(columns, axis=1) / np.linalg.norm(v)
    assert found("value_cos")[1] == pytest.approx(cosines.mean(), rel=1e-12)
    assert 0 < found("deviation")[1] < 1e-3
