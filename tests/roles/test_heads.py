"""The loss of many logits is that of the plain formula, and many logits are never held at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from ckpt_tools import heads
from ckpt_tools.family import Family
from ckpt_tools.model import Model, Skeleton

from .conftest import CONFIGS, FAMILY, VOCABULARY
from .test_architectures import Maker
from .test_models import TOKENS

pytestmark = pytest.mark.slow

# The logits of these are those of the unembedding capped or scaled.
CAPPED = {"gemma2"}
SCALED = {"cohere"}
TARGETS = torch.where(TOKENS % 3 == 0, -100, TOKENS.flip(0))
BATCHES: dict[str, dict[str, Tensor]] = {
    "next token": {"tokens": TOKENS},
    "targets": {"tokens": TOKENS, "targets": TARGETS},
    "last position": {"tokens": TOKENS, "targets": torch.tensor([4, 7])},
}


class Called:
    """A model as the family sees it, in this checkpoint's weights, float64 where the library lets it be."""

    def __init__(self, saved: Any) -> None:
        self.family: Any = FAMILY[saved.kind]
        module = self.family.build(saved.config).double()
        stored = {n: t.double() for n, t in load_file(saved.folder / "model.safetensors").items()}
        tensors = self.family.module_tensors(module, stored)
        skeleton = Skeleton(module)
        full = dict(module.named_buffers()) | tensors
        one = {n: t for n, t in full.items() if skeleton.tied[n] == n}
        self.model = Model(self.family, skeleton, one, skeleton.tied, torch.float64)

    def plain(self, batch: dict[str, Tensor], tensors: dict[str, Tensor]) -> Tensor:
        logits = self.model.forward(batch, tensors=tensors).logits
        return self.family.loss_of_logits(logits, batch)


def leaves(model: Model) -> dict[str, Tensor]:
    return {name: t.detach().clone().requires_grad_() for name, t in model.parameters().items()}


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "LARGE", 1)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, Tensor):
                self.numbers = max(self.numbers, t.numel())
        return out


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("kind", CONFIGS)
def test_loss_equals_the_plain_one_in_every_family(saved: Maker, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = Called(saved(kind))
    used: list[bool] = []
    through = heads.linear_cross_entropy
    monkeypatch.setattr(heads, "linear_cross_entropy", lambda *a: (used.append(True), through(*a))[1])
    for name, batch in BATCHES.items():
        if name == "next token" and called.family.loads != "AutoModelForCausalLM":
            continue
        at = leaves(called.model)
        mine, plain = called.model.loss(batch, tensors=at), called.plain(batch, at)
        torch.testing.assert_close(mine, plain, rtol=1e-6, atol=0.0, check_dtype=False)
    assert bool(used) == (kind not in CAPPED | SCALED)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "mamba"])
def test_gradients_and_hessian_products_equal_the_plain_ones(saved: Maker, kind: str) -> None:
    called, batch = Called(saved(kind)), BATCHES["targets"]
    at = leaves(called.model)
    generator = torch.Generator().manual_seed(0)
    v = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in at.values()]
    found = []
    for loss in (called.model.loss(batch, tensors=at), called.plain(batch, at)):
        g = torch.autograd.grad(loss, list(at.values()), create_graph=True, allow_unused=True, materialize_grads=True)
        found.append([*g, *torch.autograd.grad(g, list(at.values()), v, allow_unused=True, materialize_grads=True)])
    for mine, reference in zip(*found, strict=True):
        scale = 1 + float(reference.detach().abs().max())
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6 * scale, check_dtype=False)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gemma2", {"final_logit_softcapping": 1000.0}),
        ("cohere", {"logit_scale": 0.5}),
        ("granite", {"logits_scaling": 3.0}),
    ],
)
def test_caps_and_scales_are_noticed_even_where_logits_are_tiny(saved: Maker, kind: str, changes: Any) -> None:
    called = Called(saved(kind, **changes))
    at = {name: (1e-3 * t.detach()).requires_grad_() for name, t in leaves(called.model).items()}
    assert called.model.call(heads.loss_without_logits, BATCHES["next token"], True, tensors=at) is None
    assert called.model.call(heads.loss_without_logits, BATCHES["next token"], True) is None


@pytest.mark.usefixtures("large")
def test_zero_and_broken_weights_do_not_decide_for_later_checkpoints(saved: Maker) -> None:
    called, batch = Called(saved("llama")), BATCHES["next token"]
    for value in (0.0, torch.nan):
        broken = {name: torch.full_like(t, value) for name, t in leaves(called.model).items()}
        assert called.model.call(heads.loss_without_logits, batch, True, tensors=broken) is None
    assert called.model.call(heads.loss_without_logits, batch, True) is not None


@pytest.mark.usefixtures("large")
def test_weighted_and_soft_targets_take_the_logits(saved: Maker) -> None:
    called = Called(saved("llama"))
    soft = torch.full((*TOKENS.shape, VOCABULARY), 1 / VOCABULARY, dtype=torch.float64)
    weights = torch.zeros(TOKENS.shape, dtype=torch.float64)
    weights[0, 2] = 1.0
    for batch in ({"targets": soft}, {"targets": TARGETS.clamp(min=0), "weights": weights}):
        batch = {"tokens": TOKENS, **batch}
        assert called.model.call(heads.loss_without_logits, batch, False) is None
        at = leaves(called.model)
        torch.testing.assert_close(called.model.loss(batch, tensors=at), called.plain(batch, at))


def test_a_model_that_is_only_a_function_takes_the_logits(saved: Maker) -> None:
    model = saved("llama")
    tensors = FAMILY["llama"].module_tensors(model.module, load_file(model.folder / "model.safetensors"))
    assert heads.loss_without_logits(lambda **b: functional_call(model.module, tensors, kwargs=b), {}, True) is None


def test_no_operation_makes_all_logits(saved: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, gradient and a Hessian product of a vocabulary that dwarfs the model: 2 x 48 positions x 5003 tokens."""
    called = Called(saved("llama", vocab_size=5003, max_position_embeddings=64))
    tokens = torch.arange(96).reshape(2, 48)
    logits = tokens.numel() * 5003

    def peak() -> int:
        with Largest() as seen:
            at = leaves(called.model)
            loss = called.model.loss({"tokens": tokens}, tensors=at)
            g = torch.autograd.grad(loss, list(at.values()), create_graph=True)
            torch.autograd.grad(g, list(at.values()), [torch.ones_like(t) for t in g])
        return seen.numbers

    assert peak() >= 94 / 96 * logits  # few enough to hold
    monkeypatch.setattr(heads, "LARGE", logits)
    # A chunk of positions, and the embedding with its gradients.
    assert peak() <= max(32 * 5003, 5003 * 32)


@pytest.mark.usefixtures("large")
def test_gauss_newton_still_gets_loss_and_logits(saved: Maker) -> None:
    called, batch = Called(saved("llama")), BATCHES["next token"]
    at = leaves(called.model)
    loss, logits = called.model.loss_and_logits(batch, tensors=at)
    assert logits.shape == (*TOKENS.shape, VOCABULARY)
    torch.testing.assert_close(loss, called.model.loss(batch, tensors=at), rtol=1e-6, atol=0.0)
    (slope,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(slope.sum(-1), torch.zeros_like(slope[..., 0]), atol=1e-9, rtol=0.0)


def test_small_losses_keep_to_the_plain_route(saved: Maker) -> None:
    called = Called(saved("llama"))
    assert called.model.call(heads.loss_without_logits, BATCHES["next token"], True) is None
    assert issubclass(called.family, Family)
