"""Models rebuilt from configuration and tensors alone, against `from_pretrained`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.func import functional_call

from ckpt_tools.hf import HFFamily
from ckpt_tools.roles.assemble import Recipe

from .conftest import CONFIGS, FAMILY, VOCABULARY
from .test_architectures import Maker

TOKENS = torch.arange(3, 3 + 14).reshape(2, 7) % VOCABULARY


def rebuilt(family: type[HFFamily], config: dict[str, Any], stored: dict[str, torch.Tensor]) -> tuple[Any, Any]:
    """Return the skeleton and the model as a function of nothing but its batch."""
    skeleton = family.build(config)
    with torch.no_grad():
        for parameter in skeleton.parameters():
            parameter.fill_(torch.nan)  # nothing of the skeleton's own may come through
    tensors = family.module_tensors(skeleton, stored)
    return skeleton, lambda **batch: functional_call(skeleton, tensors, kwargs=batch)


@pytest.mark.parametrize("kind", CONFIGS)
def test_rebuilt_model_is_the_pretrained_one_bit_for_bit(saved: Maker, kind: str) -> None:
    import transformers

    model, family = saved(kind), FAMILY[kind]
    _, call = rebuilt(family, model.config, load_file(model.folder / "model.safetensors"))
    how = {"attn_implementation": "eager", "experts_implementation": "eager", "dtype": torch.float32}
    reference = getattr(transformers, family.loads).from_pretrained(model.folder, **how).eval()
    attends = not kind.startswith("mamba")
    options = {"output_hidden_states": True, **({"output_attentions": True} if attends else {})}
    if family.loads == "AutoModelForCausalLM":
        options["use_cache"] = False
    with torch.no_grad():
        mine = family.forward(call, {"tokens": TOKENS}, record=True)
        theirs = reference(input_ids=TOKENS, **options)
    assert torch.equal(mine.logits, theirs.logits)
    if attends:  # what the library calls hidden states of Mamba begins after the first layer
        assert len(mine.hidden) == 3 and all(map(torch.equal, mine.hidden[:2], theirs.hidden_states[:2]))
    assert len(mine.attention) == (2 if attends else 0)
    assert all(map(torch.equal, mine.attention, theirs.attentions if attends else ()))
    if attends and kind != "gpt_oss":  # its sinks take a share of every row
        for maps in mine.attention:
            torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mamba", "bloom", "gemma2"])
def test_last_hidden_state_is_before_the_final_norm(saved: Maker, kind: str) -> None:
    model, family = saved(kind), FAMILY[kind]
    stored = load_file(model.folder / "model.safetensors")
    _, call = rebuilt(family, model.config, stored)
    with torch.no_grad():
        shown = family.forward(call, {"tokens": TOKENS}, record=True)
        base = model.module.base_model
        norm = next(getattr(base, name) for name in ("norm", "ln_f", "norm_f") if hasattr(base, name))
        logits = model.module.get_output_embeddings()(norm(shown.hidden[-1]))
    cap = model.config.get("final_logit_softcapping")
    torch.testing.assert_close(cap * torch.tanh(logits / cap) if cap else logits, shown.logits)


@pytest.mark.parametrize("kind", ["gpt_neox", "mixtral", "gpt2", "opt"])
def test_base_model_names_get_the_prefix(saved: Maker, kind: str) -> None:
    """Stored bare and with the head beside it, as some trainers do."""
    model, family = saved(kind), FAMILY[kind]
    stored = load_file(model.folder / "model.safetensors")
    bare = {family.table.bare(name): t for name, t in stored.items()}
    with torch.no_grad():
        logits = [
            family.forward(rebuilt(family, model.config, t)[1], {"tokens": TOKENS}).logits for t in (stored, bare)
        ]
    assert torch.equal(*logits)


def test_experts_are_fused_and_renamed_through_their_roles(saved: Maker) -> None:
    model = saved("mixtral")
    stored = load_file(model.folder / "model.safetensors")
    skeleton = FAMILY["mixtral"].build(model.config)
    tensors = FAMILY["mixtral"].module_tensors(skeleton, stored)
    state = {name: p.detach() for name, p in model.module.named_parameters()}
    assert set(tensors) == set(state) and set(tensors) - set(stored)
    assert all(torch.equal(tensors[name], state[name]) for name in state)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_oss", "gpt_neox", "phi3", "mamba2", "mixtral"])
def test_recipes_undo_every_cut(saved: Maker, kind: str) -> None:
    """Parameters made again from the canonical weights of the very same tensors are themselves."""
    from ckpt_tools.hf import _infos, _recipes  # the plan is nobody else's business
    from ckpt_tools.roles import assign
    from ckpt_tools.roles.assemble import recipe

    model = saved(kind)
    state = {name: p.detach() for name, p in model.module.named_parameters()}
    layout = assign(_infos(state), {}, FAMILY[kind].table, model.config)
    for name, tensor in state.items():
        made = recipe(name, tuple(tensor.shape), layout, layout)
        assert isinstance(made, Recipe) and torch.equal(made.make(state), tensor), name
    assert not any(m is model.module for m in _recipes)


def test_separately_stored_heads_are_untied(saved: Maker) -> None:
    """The configuration ties them, the checkpoint says otherwise: the checkpoint is right, as for the library."""
    model = saved("gpt2")
    stored = load_file(model.folder / "model.safetensors")
    own = torch.randn(VOCABULARY, 32)
    _, tied = rebuilt(FAMILY["gpt2"], model.config, stored)
    _, copied = rebuilt(FAMILY["gpt2"], model.config, {**stored, "lm_head.weight": stored["transformer.wte.weight"]})
    _, untied = rebuilt(FAMILY["gpt2"], model.config, {**stored, "lm_head.weight": own})
    with torch.no_grad():
        a, b, c = (FAMILY["gpt2"].forward(f, {"tokens": TOKENS}).logits for f in (tied, copied, untied))
    assert torch.equal(a, b) and not torch.allclose(a, c)


@pytest.mark.parametrize("kind", ["gpt2", "mixtral", "mamba", "gpt_neox"])
def test_loss_has_two_derivatives_in_the_stored_tensors(saved: Maker, kind: str) -> None:
    model, family = saved(kind), FAMILY[kind]
    skeleton = family.build(model.config).double()
    stored = {n: t.double() for n, t in load_file(model.folder / "model.safetensors").items()}
    ends = (
        "1.attn.c_attn.weight",
        "experts.1.w1.weight",
        "1.mixer.in_proj.weight",
        "1.attention.query_key_value.weight",
    )
    name = next(n for n in stored if n.endswith(ends))
    direction = torch.randn(stored[name].shape, generator=torch.Generator().manual_seed(0)).double()

    def loss(t: torch.Tensor) -> torch.Tensor:
        tensors = family.module_tensors(skeleton, {**stored, name: stored[name] + t * direction})
        return family.loss(lambda **b: functional_call(skeleton, tensors, kwargs=b), {"tokens": TOKENS})

    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(loss(t), t, create_graph=True)
    (second,) = torch.autograd.grad(first, t)
    # The library computes norms and softmax in float32: steps wide enough for that, differences of fourth order.
    step = 1e-2
    with torch.no_grad():
        at = [float(loss(torch.tensor(k * step, dtype=torch.float64))) for k in (-2, -1, 0, 1, 2)]
    slope = (at[0] - 8 * at[1] + 8 * at[3] - at[4]) / (12 * step)
    bend = (-at[0] + 16 * at[1] - 30 * at[2] + 16 * at[3] - at[4]) / (12 * step**2)
    assert first.item() == pytest.approx(slope, rel=5e-3)
    assert second.item() == pytest.approx(bend, rel=5e-3)
    assert abs(bend) > 0.02
