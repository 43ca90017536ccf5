"""The analyzer end to end, on models whose curvature is known or made dense."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ckpt_plugins.flatness import Flatness
from ckpt_tools import Activations, DataSource, Family, ModelHost, OptionError, RoleTable, Rule, View, open_checkpoint
from ckpt_tools.errors import PluginError
from ckpt_tools.results import check
from ckpt_tools.roles import assign
from ckpt_tools.weights import Weights

pytestmark = pytest.mark.slow


class Sheet(nn.Module):
    """A matrix of inputs to a quadratic, and a vector beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2))

    def forward(self, scale: Tensor) -> Tensor:
        return self.x * scale.sqrt()


class Bowl(Family):
    """L = sum_i c_i x_i^2 / 2 + y, averaged over examples whose tokens scale it; `x` is a matrix, `y` a vector."""

    name = "bowl"
    table = RoleTable(rules=(Rule("x", ("layers.0.mlp.up",)), Rule("y", ("layers.1.mlp.up.bias",))))

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> nn.Module:
        return Sheet()

    @classmethod
    def forward(cls, module: Any, batch: Mapping[str, Tensor], *, record: bool = False) -> Activations:
        return Activations(module(batch["scale"]))

    @classmethod
    def loss(cls, module: Any, batch: Mapping[str, Tensor]) -> Tensor:
        per_example = cls.forward(module, batch).logits.square().sum() / 2 + module.y.sum()
        return (per_example * batch["tokens"]).mean()


class Words(Family):
    """Embedding, LayerNorm with affine weights, a nonlinear layer, a head: next-token cross entropy."""

    name = "words"

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> nn.Module:
        return nn.Sequential(nn.Embedding(5, 3), nn.LayerNorm(3), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5))

    @classmethod
    def forward(cls, module: Any, batch: Mapping[str, Tensor], *, record: bool = False) -> Activations:
        return Activations(module(batch["tokens"]))

    @classmethod
    def loss(cls, module: Any, batch: Mapping[str, Tensor]) -> Tensor:
        logits = cls.forward(module, batch).logits[:, :-1]
        return functional.cross_entropy(logits.flatten(0, 1), batch["tokens"][:, 1:].flatten())


SCALE = torch.tensor([[9.0, 4.0, 2.0], [1.0, 0.5, 0.25]])


class Given:
    identity = "given"

    def __init__(self, **batch: Tensor) -> None:
        self._batch = batch

    def batch(self, config: Mapping[str, Any]) -> Mapping[str, Tensor]:
        return self._batch


BOWL_BATCH = Given(tokens=torch.ones(4), scale=SCALE)


def view(folder: Path, family: type[Family], tensors: dict[str, Tensor], source: Any, analyzer: Flatness) -> View:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    weights = Weights(checkpoint, assign(checkpoint.tensors, checkpoint.aliases, family.table, {}), [])
    return View(weights, analyzer, step=3, config={}, seed="0", host=ModelHost(family, {}, source))


def bowl(folder: Path, value: float = 1.0, **options: Any) -> Mapping[str, Any]:
    tensors = {"x": torch.full((2, 3), value), "y": torch.zeros(2)}
    analyzer = Flatness(**options)
    return analyzer.analyze(view(folder, Bowl, tensors, BOWL_BATCH, analyzer))


def words(folder: Path, **options: Any) -> tuple[Mapping[str, Any], np.ndarray[Any, Any]]:
    """Return the analyzer's outputs and the dense Hessian, by differences of the float64 gradient."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Words.build({})
        for p in module.parameters():
            p.data = torch.randn_like(p)
    batch = {"tokens": torch.tensor([[0, 1, 2, 3, 4, 1], [2, 2, 0, 4, 3, 3], [1, 0, 4, 2, 2, 0]])}
    analyzer = Flatness(**options)
    found = analyzer.analyze(view(folder, Words, module.state_dict(), Given(**batch), analyzer))
    module = module.double()
    flat = torch.nn.utils.parameters_to_vector(module.parameters()).detach()

    def gradient(at: Tensor) -> Tensor:
        torch.nn.utils.vector_to_parameters(at, module.parameters())
        grads = torch.autograd.grad(Words.loss(module, batch), list(module.parameters()))
        return torch.cat([g.reshape(-1) for g in grads])

    def difference(step: Tensor) -> Tensor:
        return gradient(flat + step) - gradient(flat - step)

    h, axes = 1e-4, torch.eye(len(flat)).double()
    rows = [(8 * difference(h * e) - difference(2 * h * e)) / (12 * h) for e in axes]
    return found, torch.stack(rows).numpy()


def test_bowl_has_the_eigenvalues_of_its_scales(tmp_path: Path) -> None:
    found = bowl(tmp_path, k=3, tol=1e-9)
    assert found["eigenvalue"] == pytest.approx([9, 4, 2], rel=1e-6)
    assert np.all(found["eigenvalue_residual"] < 1e-6) and found["parameters"] == 8
    assert found["loss"] == pytest.approx(16.75 / 2)
    assert found["gradient_norm"] == pytest.approx(np.sqrt(float(SCALE.square().sum()) + 2))
    assert found["trace"] == pytest.approx(16.75, abs=1e-6) and found["trace_se"] < 1e-6


def test_bowl_rises_by_half_its_trace(tmp_path: Path) -> None:
    found = bowl(tmp_path, draws=400, sigma=(0.1,), rho=(0.0, 0.2))
    assert found["scaling"] == ["absolute", "tensor", "filter"] and found["sigma"] == [0.1]
    # Entries of x are 1 and y is 0: relative noise leaves y alone, and y has no curvature anyway.
    for mean, error in zip(found["loss_increase"][:, 0], found["loss_increase_se"][:, 0], strict=True):
        assert abs(mean - 0.005 * 16.75) < 4 * error < 0.02
    assert found["sam_increase"][0] == 0 and found["sam_increase"][1] > 0.2 * found["gradient_norm"]


def test_curvature_equals_the_dense_hessian(tmp_path: Path) -> None:
    found, dense = words(tmp_path, k=4, tol=1e-8, density_probes=60, density_steps=20)
    exact = np.linalg.eigvalsh((dense + dense.T) / 2)
    assert found["eigenvalue"] == pytest.approx(exact[::-1][:4], rel=1e-6)
    assert abs(found["lowest"] - exact[0]) <= found["lowest_residual"] + 1e-9
    assert abs(found["trace"] - np.trace(dense)) <= 4 * found["trace_se"] + 1e-6
    second = np.nansum(found["density_weight"] * found["density_node"] ** 2, axis=1)
    assert abs(second.mean() - np.mean(exact**2)) < 4 * second.std(ddof=1) / np.sqrt(60)


def test_few_products_leave_an_honest_residual(tmp_path: Path) -> None:
    found, dense = words(tmp_path, k=2, tol=1e-9, max_products=5)
    exact = np.linalg.eigvalsh((dense + dense.T) / 2)
    for value, residual in zip(found["eigenvalue"], found["eigenvalue_residual"], strict=True):
        assert residual > 1e-6 and np.abs(exact - value).min() <= residual
    assert found["products"] == 5 + 10


def test_gauss_newton_has_no_negative_eigenvalues(tmp_path: Path) -> None:
    found, dense = words(tmp_path, k=4, tol=1e-8, max_products=200, curvature="gauss_newton")
    assert found["lowest"] > -1e-9 and np.linalg.eigvalsh(dense)[0] < -1e-3
    assert found["eigenvalue"][0] > 0


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_graphs_of_few_examples_add_up(tmp_path: Path, curvature: str) -> None:
    whole, _ = words(tmp_path, curvature=curvature)
    parts, _ = words(tmp_path, curvature=curvature, rows=2)
    for name in ("loss", "gradient_norm", "eigenvalue", "trace", "loss_increase", "sam_increase"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-6), name


def test_loss_that_is_no_mean_over_examples_refuses_to_be_cut(tmp_path: Path) -> None:
    class Sum(Bowl):
        name = "sum"

        @classmethod
        def loss(cls, module: Any, batch: Mapping[str, Tensor]) -> Tensor:
            return super().loss(module, batch) * len(batch["tokens"])

    analyzer = Flatness(rows=2)
    tensors = {"x": torch.ones(2, 3), "y": torch.zeros(2)}
    with pytest.raises(OptionError, match="Leave rows at 0"):
        analyzer.analyze(view(tmp_path, Sum, tensors, BOWL_BATCH, analyzer))


def test_block_is_chosen_by_role(tmp_path: Path) -> None:
    one = bowl(tmp_path, params=("layers.0.*",))
    assert one["parameters"] == 6 and one["eigenvalue"][0] == pytest.approx(9)
    other = bowl(tmp_path, params=("layers.1.*",))
    assert other["parameters"] == 2 and other["eigenvalue"][:2].tolist() == [0, 0] and np.isnan(other["eigenvalue"][2])
    assert other["gradient_norm"] == pytest.approx(np.sqrt(2))
    with pytest.raises(OptionError, match=r"No parameter of the model fits 'layers\.7\.\*'"):
        bowl(tmp_path, params=("layers.7.*",))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_broken_and_zero_weights_give_a_whole_record(tmp_path: Path, value: float) -> None:
    analyzer = Flatness(density_probes=2)
    found = bowl(tmp_path, value, density_probes=2)
    record = check(analyzer, found, "here", step=3)
    # The Hessian of a quadratic does not depend on where it is taken, unless 0 * inf gets into it.
    assert np.isfinite(record.values["loss"]) == (value == 0)
    assert record.values["parameters"] == 8


def test_nan_from_the_model_reaches_every_number(tmp_path: Path) -> None:
    analyzer = Flatness(density_probes=2)
    with torch.random.fork_rng():
        tensors = Words.build({}).state_dict()
    tensors["2.weight"][0, 0] = float("nan")
    source = Given(tokens=torch.tensor([[0, 1, 2]]))
    record = check(analyzer, analyzer.analyze(view(tmp_path, Words, tensors, source, analyzer)), "here", step=3)
    for name in ("loss", "eigenvalue", "trace", "lowest", "loss_increase", "sam_increase", "density_node"):
        assert np.isnan(record.values[name]).all(), name


def test_record_fits_the_declaration_with_and_without_density(tmp_path: Path) -> None:
    without = check(Flatness(), bowl(tmp_path), "here", step=3)
    assert without.values["density_node"].shape[0] == 0 and without.labels["rho"].tolist() == [0.05]
    with_density = check(Flatness(density_probes=3), bowl(tmp_path, density_probes=3), "here", step=3)
    assert with_density.values["density_node"].shape == (3, 8)
    assert np.allclose(with_density.values["density_weight"].sum(1), 1)


def test_same_numbers_every_time_and_global_generators_untouched(tmp_path: Path) -> None:
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    one, two = bowl(tmp_path), bowl(tmp_path)
    assert torch.equal(state, torch.get_rng_state()) and (legacy == np.random.get_state()[1]).all()
    for name in Flatness.outputs:
        np.testing.assert_array_equal(one[name], two[name])


def test_noise_does_not_depend_on_how_curvature_was_taken(tmp_path: Path) -> None:
    one, other = (bowl(tmp_path, k=k, probes=p)["loss_increase"] for k, p in ((1, 5), (4, 20)))
    np.testing.assert_array_equal(one, other)


def test_precision_decides_the_arithmetic(tmp_path: Path) -> None:
    found = {p: bowl(tmp_path, 0.1, k=2, tol=0.0, precision=p)["eigenvalue"][1] for p in ("float32", "float64", "auto")}
    assert found["auto"] == found["float64"] == pytest.approx(4, rel=1e-12)
    assert found["float32"] == pytest.approx(4, rel=1e-5) and found["float32"] != found["float64"]


def test_gauss_newton_needs_logits_inside_the_loss(tmp_path: Path) -> None:
    class Direct(Bowl):
        name = "direct"

        @classmethod
        def loss(cls, module: Any, batch: Mapping[str, Tensor]) -> Tensor:
            out: Tensor = module.x.square().sum()
            return out

    analyzer = Flatness(curvature="gauss_newton")
    tensors = {"x": torch.ones(2, 3), "y": torch.zeros(2)}
    with pytest.raises(PluginError, match="called its module 0 times"):
        analyzer.analyze(view(tmp_path, Direct, tensors, BOWL_BATCH, analyzer))


def test_importing_the_plugin_is_cheap() -> None:
    code = "import sys, ckpt_plugins.flatness; sys.exit(any(m in sys.modules for m in ('torch', 'scipy', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_published_model_meets_its_own_scale(shared_data: Path) -> None:
    pytest.importorskip("transformers")
    from ckpt_tools.registry import load_registry

    folder = shared_data / "models" / "stories260k"
    analyzer = Flatness(k=1, sigma=(0.01,), precision="float32")
    checkpoint = open_checkpoint(folder / "hf_fp32")
    family = load_registry().recognise(checkpoint.config, checkpoint.tensors)
    assert family is not None
    weights = Weights(checkpoint, assign(checkpoint.tensors, {}, family.table, checkpoint.config), [])
    source = DataSource(folder / "tinystories_sample_tok512.npy", tokens=128)
    host = ModelHost(family, checkpoint.config, source)
    found = analyzer.analyze(View(weights, analyzer, step=0, config={}, seed="0", host=host))
    assert found["parameters"] == 260_032 and found["eigenvalue_residual"][0] <= 1e-2 * found["eigenvalue"][0]
    # To second order the increase under absolute noise is sigma^2 / 2 times the trace.
    assert 0.5 < found["loss_increase"][0, 0] / (0.5e-4 * found["trace"]) < 2
