"""Hidden states are the residual stream: what the embedding gives, then what each layer gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from .conftest import CONFIGS, FAMILY
from .test_architectures import Maker
from .test_models import TOKENS, rebuilt

pytestmark = pytest.mark.slow

LAYERS = {"gpt2": "h", "gpt_bigcode": "h", "gpt_neo": "h", "gptj": "h", "bloom": "h", "falcon": "h"}
LAYERS |= {"bert": "encoder.layer", "electra": "encoder.layer", "roberta": "encoder.layer"}
LAYERS |= {"distilbert": "transformer.layer", "opt": "decoder.layers"}
# After the table of tokens, these add positions, normalise or project before the first layer.
MORE = {"bert", "bloom", "distilbert", "electra", "gpt2", "gpt_bigcode", "gpt_neo", "modernbert", "opt", "roberta"}


def outputs(module: Any, *parts: Any) -> list[torch.Tensor]:
    """Return what submodules give when the model runs on TOKENS, each watched by itself."""
    seen: dict[int, torch.Tensor] = {}

    def watch(at: int) -> Any:
        return lambda _part, _args, out: seen.__setitem__(at, out[0] if isinstance(out, tuple) else out)

    hooks = [part.register_forward_hook(watch(i)) for i, part in enumerate(parts)]
    with torch.no_grad():
        module(input_ids=TOKENS)
    for hook in hooks:
        hook.remove()
    return [seen[i] for i in range(len(parts))]


@pytest.mark.parametrize("kind", CONFIGS)
def test_hidden_states_are_embedding_and_layers(saved: Maker, kind: str) -> None:
    model, family = saved(kind), FAMILY[kind]
    _, call = rebuilt(family, model.config, load_file(model.folder / "model.safetensors"))
    with torch.no_grad():
        hidden = family.forward(call, {"tokens": TOKENS}, record=True).hidden
    base = model.module.base_model
    layers = base.get_submodule(LAYERS.get(kind, "layers"))
    assert len(hidden) == len(layers) + 1
    embedded, *after = outputs(model.module, model.module.get_input_embeddings(), *layers)
    assert all(map(torch.equal, hidden[1:], after))
    assert torch.equal(hidden[0], embedded) == (kind not in MORE)
    assert not torch.equal(hidden[-1], hidden[-2])


def test_what_stands_between_tokens_and_first_layer_is_in_it(saved: Maker) -> None:
    """Positions, scales, norms and projections: against formulas, for the models that have them."""

    def first(kind: str) -> tuple[torch.Tensor, Any]:
        model = saved(kind)
        _, call = rebuilt(FAMILY[kind], model.config, load_file(model.folder / "model.safetensors"))
        return FAMILY[kind].forward(call, {"tokens": TOKENS}, record=True).hidden[0], model.module.base_model

    with torch.no_grad():
        found, base = first("gpt2")
        torch.testing.assert_close(found, base.wte.weight[TOKENS] + base.wpe.weight[: TOKENS.shape[1]])
        found, base = first("gemma")
        torch.testing.assert_close(found, base.embed_tokens.weight[TOKENS] * 32**0.5)
        found, base = first("bloom")
        torch.testing.assert_close(found, base.word_embeddings_layernorm(base.word_embeddings.weight[TOKENS]))
        found, base = first("electra")
        torch.testing.assert_close(found, base.embeddings_project(base.embeddings(TOKENS)))


def test_calls_that_record_nothing_keep_nothing(saved: Maker) -> None:
    import gc

    model, family = saved("mamba"), FAMILY["mamba"]
    module, call = rebuilt(family, model.config, load_file(model.folder / "model.safetensors"))
    for record in (False, True, False):
        with torch.no_grad():
            shown = family.forward(call, {"tokens": TOKENS}, record=record)
        assert len(shown.hidden) == (3 if record else 0)
        del shown
    gc.collect()
    shape = (*TOKENS.shape, 32)
    assert not [o for o in gc.get_objects() if type(o) is torch.Tensor and tuple(o.shape) == shape]
    assert module is not None
