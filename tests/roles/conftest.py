"""Tiny random models of every architecture, saved by the `transformers` library as its users save them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ckpt_tools.checkpoint.source import TensorInfo
from ckpt_tools.family import Family
from ckpt_tools.family_file import ckpt_families
from ckpt_tools.roles import Layout, RoleTable, assign

Array = np.ndarray[Any, np.dtype[Any]]

VOCABULARY = 61
TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
PLAIN = {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
PLAIN |= {"max_position_embeddings": 32}
GROUPED = {**PLAIN, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 12}
GPT = {**TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
MAMBA = {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
ALTERNATING = [[["global", "local"], 1]]
MOE = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 20}

CONFIGS: dict[str, dict[str, Any]] = {
    "bert": PLAIN,
    "bloom": {**TOKENS, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "cohere": GROUPED,
    "distilbert": {**TOKENS, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "pad_token_id": 0},
    "electra": {**PLAIN, "embedding_size": 24},
    "falcon": {**PLAIN, "new_decoder_architecture": True, "num_kv_heads": 2},
    "gemma": WIDE,
    "gemma2": WIDE,
    "gemma3_text": WIDE,
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neo": {**TOKENS, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": ALTERNATING},
    "gpt_neox": PLAIN,
    "gpt_oss": {**GROUPED, "head_dim": 8, "num_local_experts": 3, "num_experts_per_tok": 2},
    "gptj": {**GPT, "rotary_dim": 4},
    "granite": GROUPED,
    "llama": GROUPED,
    "mamba": MAMBA,
    "mamba2": {**MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 2, "expand": 2},
    "mistral": WIDE,
    "mixtral": {**GROUPED, "num_local_experts": 3},
    "modernbert": {**PLAIN, "cls_token_id": 0, "sep_token_id": 0, "pad_token_id": 0},
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": GROUPED,
    "olmoe": {**GROUPED, **MOE},
    "opt": {**PLAIN, "ffn_dim": 48, "word_embed_proj_dim": 24, "pad_token_id": 1},
    "phi": GROUPED,
    "phi3": GROUPED,
    "phimoe": {**GROUPED, "num_local_experts": 3},
    "qwen2": GROUPED,
    "qwen2_moe": {**GROUPED, **MOE},
    "qwen3": WIDE,
    "qwen3_moe": {**WIDE, **MOE},
    "roberta": {**PLAIN, "pad_token_id": 1},
    "smollm3": GROUPED,
    "stablelm": GROUPED,
    "starcoder2": GROUPED,
}
FAMILY: dict[str, Any] = {kind: family for family in ckpt_families() for kind in family.model_types}


@dataclass
class Saved:
    """A model in memory and what `save_pretrained` made of it."""

    kind: str
    module: Any
    folder: Path
    config: dict[str, Any]
    arrays: dict[str, Array]
    family: type[Family]

    def layout(self, table: RoleTable | None = None, config: Mapping[str, Any] | None = None) -> Layout:
        chosen = self.config if config is None else config
        return assign(infos(self.arrays), {}, table or self.family.table, chosen)

    def weights(self) -> dict[str, torch.Tensor]:
        """Every canonical weight by name."""
        return canonical(self.layout(), self.arrays)


def infos(arrays: Mapping[str, Array]) -> dict[str, TensorInfo]:
    return {n: TensorInfo(n, str(a.dtype), a.shape, a.nbytes, Path("model.safetensors")) for n, a in arrays.items()}


def canonical(layout: Layout, arrays: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    found = [*layout.matrices.values(), *layout.vectors.values()]
    for weight in found:
        assert weight.take(arrays[weight.tensor]).shape == weight.shape, weight.name
    return {w.name: torch.from_numpy(np.ascontiguousarray(w.take(arrays[w.tensor]))) for w in found}


def create(kind: str, **changes: Any) -> Any:
    """Return a random model with every parameter, biases and norms too, away from its usual start."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.for_model(kind, **{**CONFIGS[kind], **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        how = {"attn_implementation": "eager", "experts_implementation": "eager"}
        module = getattr(transformers, FAMILY[kind].loads).from_config(config, **how).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def save(kind: str, module: Any, folder: Path) -> Saved:
    module.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    return Saved(kind, module, folder, config, load_file(folder / "model.safetensors"), FAMILY[kind])


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Saved]:
    """Return the saved model of an architecture, made once; keyword arguments change its configuration."""
    pytest.importorskip("transformers")
    made: dict[Any, Saved] = {}

    def get(kind: str, **changes: Any) -> Saved:
        key = (kind, json.dumps(changes, sort_keys=True))
        if key not in made:
            made[key] = save(kind, create(kind, **changes), tmp_path_factory.mktemp(kind))
        return made[key]

    return get
