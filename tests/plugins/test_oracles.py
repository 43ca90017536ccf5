"""Where each two-sided oracle of the analyzers is, and the curvature of our own families against dense matrices.

Planted clusters and scikit-learn: test_clustering. Curvature of small models by hand, LayerNorm and embedding included:
test_hessian. Attention against `output_attentions`: test_attention, and on a published model test_published_model. CKA
by definition: test_alignment. Singular values: test_rank. Power laws of WeightWatcher: test_heavytail.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ckpt_plugins.hessian import Curvature, Tensors
from ckpt_plugins.lanczos import lanczos
from ckpt_tools import Model
from ckpt_tools.model import Skeleton
from ckpt_tools.registry import load_registry

pytestmark = pytest.mark.slow

Loss = Callable[[Tensors], torch.Tensor]
HERE = Path(__file__).parent
ORACLES = {
    "planted clusters": "test_clustering.py::test_planted_clusters_are_found_exactly",
    "single linkage of scikit-learn": "test_clustering.py::test_components_are_single_linkage",
    "other linkages of scikit-learn": "test_clustering.py::test_hierarchical_clusters_are_those_of_sklearn",
    "dense Hessian": "test_hessian.py::test_hessian_equals_the_central_differences",
    "dense Hessian of our families": "test_oracles.py::test_curvature_of_our_families_is_the_dense_one",
    "eigenvalues and trace": "test_hessian.py::test_eigenvalues_and_trace_equal_the_dense_ones",
    "LayerNorm": "test_hessian.py::test_functional_hessian_is_wrong_through_layer_norm_and_ours_is_not",
    "output_attentions": "test_attention.py::test_equals_definitions_on_the_maps_of_transformers",
    "output_attentions of a published model": "test_published_model.py::test_attention_is_that_of_output_attentions",
    "CKA by definition": "test_alignment.py::test_cka_equals_its_definition_by_kernels",
    "unbiased HSIC as a U-statistic": "test_alignment.py::test_unbiased_hsic_is_the_u_statistic",
    "singular values": "test_rank.py::test_every_value_equals_a_float64_svd_to_1e_9",
    "WeightWatcher": "test_heavytail.py::test_numbers_are_those_of_weightwatcher",
}
SMALL = {"layers": 1, "d_model": 4, "vocabulary": 5, "context": 6}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "transformer with LayerNorm": ("transformer", {**SMALL, "heads": 2, "d_ff": 4, "bias": True, "tied": True}),
    "Mamba-1": ("mamba", {**SMALL, "d_state": 3, "conv_width": 3}),
    "Mamba-2": ("mamba", {**SMALL, "block": 2, "d_state": 3, "heads": 2, "conv_width": 3, "norm": "layer"}),
}


@pytest.mark.parametrize("test", ORACLES.values(), ids=list(ORACLES))
def test_every_oracle_is_there(test: str) -> None:
    file, _, name = test.partition("::")
    assert re.search(rf"^def {name}\(", (HERE / file).read_text("utf-8"), re.MULTILINE)


def small_model(name: str, config: dict[str, Any]) -> tuple[Loss, Tensors]:
    """Return the family's own loss as a function of its parameters, in float64 and away from any symmetric point."""
    family = load_registry().family(name)
    module = family.build(family.Config(**config).as_dict()).double()
    generator = torch.Generator().manual_seed(0)
    drawn = {n: 0.4 * torch.randn(p.shape, generator=generator).double() for n, p in module.named_parameters()}
    tokens = torch.randint(0, 5, (3, 6), generator=generator)
    skeleton = Skeleton(module)
    model = Model(family, skeleton, dict(skeleton.constants) | drawn, skeleton.tied, torch.float64)
    batch = {"tokens": tokens, "targets": tokens.roll(-1, 1)}
    return lambda params: model.loss(batch, tensors=params), drawn


def central_differences(loss: Loss, params: Tensors, h: float = 1e-4) -> NDArray[np.float64]:
    """Return the dense Hessian by fourth-order central differences of the gradient."""
    sizes = [p.numel() for p in params.values()]
    origin = torch.cat([p.flatten() for p in params.values()])

    def gradient(at: torch.Tensor) -> torch.Tensor:
        at = at.detach().requires_grad_()
        parts = (piece.view_as(p) for piece, p in zip(at.split(sizes), params.values(), strict=True))
        return torch.autograd.grad(loss(dict(zip(params, parts, strict=True))), at)[0]

    rows = []
    for axis in torch.eye(len(origin), dtype=torch.float64):
        one, two = (gradient(origin + k * h * axis) - gradient(origin - k * h * axis) for k in (1, 2))
        rows.append((8 * one - two) / (12 * h))
    dense = torch.stack(rows).numpy()
    return np.asarray((dense + dense.T) / 2)


@pytest.mark.parametrize(("name", "config"), FAMILIES.values(), ids=list(FAMILIES))
def test_curvature_of_our_families_is_the_dense_one(name: str, config: dict[str, Any]) -> None:
    loss, params = small_model(name, config)
    dense = central_differences(loss, params)
    curvature = Curvature([(1.0, lambda at: (loss(at), None))], params)
    found = np.stack([curvature.matvec(axis) for axis in np.eye(curvature.size)])
    np.testing.assert_allclose(found, dense, atol=1e-6 * np.abs(dense).max())
    exact = np.linalg.eigvalsh(dense)[::-1]
    ritz = lanczos(curvature.matvec, curvature.size, np.random.default_rng(0), k=3, tol=1e-7, max_products=300)
    np.testing.assert_allclose(ritz.values[:3], exact[:3], rtol=1e-6)
    assert np.trace(found) == pytest.approx(np.trace(dense), rel=1e-6) and exact[0] > 0.01
