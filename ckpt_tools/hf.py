"""Families of third-party language models: one role table each (`roles/tables/*.toml`), models from `transformers`.

Nothing of the checkpoint's own code is ever run: the configuration is data and `auto_map` is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from .checkpoint.source import TensorInfo
from .errors import PluginError, SourceError
from .family import Activations, Family
from .roles import Layout, assign
from .roles.assemble import Recipe, recipe
from .streams import ResidualStream

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Keys of config.json that say how somebody ran the model, or name code, rather than what the model is.
_NOT_THE_MODEL = {
    "auto_map", "model_type", "transformers_version", "dtype", "torch_dtype", "quantization_config", "use_cache",
    "attn_implementation", "_attn_implementation", "experts_implementation", "return_dict", "output_attentions",
    "output_hidden_states", "_name_or_path",
}  # fmt: skip

_recipes: WeakKeyDictionary[torch.nn.Module, dict[Any, dict[str, str | Recipe]]] = WeakKeyDictionary()


class HFFamily(Family):
    """A family whose module comes from the `transformers` library."""

    loads: ClassVar[str] = "AutoModelForCausalLM"

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> torch.nn.Module:
        """Return the `transformers` module of this configuration: float32, evaluation mode, eager attention.

        Its weights are not even initialized, and global random state stays as it was. Raises SourceError when the
        configuration makes no model.
        """
        transformers = _library(cls.name)
        model_type = config.get("model_type")
        if not isinstance(model_type, str):
            raise SourceError(f"Family {cls.name!r}: config.json has no model_type, so the model cannot be rebuilt.")
        data = {k: _plain(v) for k, v in config.items() if k not in _NOT_THE_MODEL and not k.startswith("ckpt_")}
        try:
            hf_config = transformers.AutoConfig.for_model(model_type, use_cache=False, **data)
            module = _bare_module(getattr(transformers, cls.loads), hf_config)
        except (ValueError, TypeError, RuntimeError, AttributeError, _invalid()) as error:
            raise SourceError(
                f"Family {cls.name!r}: transformers {transformers.__version__} builds no model from this config.json "
                f"(model_type {model_type!r}, {cls.loads}): {error}"
            ) from None
        layers = _layers(module, cls._layout(module))
        if layers:
            ResidualStream(module, layers)
        return module

    @classmethod
    def forward(cls, module: Any, batch: Mapping[str, Tensor], *, record: bool = False) -> Activations:
        """Run the model on `batch["tokens"]` [batch, position]; with `record`, hidden states and attention maps too.

        State-space models have no attention: it is then empty.
        """
        how = {"output_hidden_states": True, "output_attentions": True} if record else {}
        out = module(input_ids=batch["tokens"], **how)
        attention = tuple(a for a in (getattr(out, "attentions", None) or ()) if a is not None)
        return Activations(out.logits, tuple(getattr(out, "hidden_states", None) or ()), attention)

    @classmethod
    def loss(cls, module: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the cross entropy in nats, weighted by `batch["weights"]` or averaged over the positions scored.

        `batch["targets"]` are token ids [batch, position] (negative: not scored) or distributions over the vocabulary;
        without the position axis they are about the last position. Without targets, a causal model is scored on the
        next token of `batch["tokens"]`; masked language models need them. Logits are not held all at once where they
        are many and linear in the hidden states (`heads`).
        """
        from .heads import loss_without_logits

        next_token = cls._is_scored_on_tokens(batch)
        found = loss_without_logits(module, batch, next_token)
        return cls.loss_of_logits(cls.forward(module, batch).logits, batch) if found is None else found

    @classmethod
    def loss_of_logits(cls, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the same loss from the logits [batch, position, vocabulary]."""
        if cls._is_scored_on_tokens(batch):
            return _cross_entropy(logits[:, :-1], batch["tokens"][:, 1:], None)
        return _cross_entropy(logits, batch["targets"], batch.get("weights"))

    @classmethod
    def _is_scored_on_tokens(cls, batch: Mapping[str, Tensor]) -> bool:
        if "targets" not in batch and cls.loads != "AutoModelForCausalLM":
            raise SourceError(
                f"Family {cls.name!r} is trained to fill in masked tokens, so its loss needs batch['targets'] "
                "[batch, position] beside the masked tokens, negative where nothing was masked."
            )
        return "targets" not in batch

    @classmethod
    def module_tensors(cls, module: torch.nn.Module, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a checkpoint's tensors under the module's names, for `torch.func.functional_call`.

        Names of a base model get the module's prefix, experts stored one by one are fused, tied parameters appear once.
        The result is differentiable in the stored tensors. Raises SourceError when a parameter has no tensor.
        """
        known = _recipes.setdefault(module, {})
        key = frozenset((name, tuple(t.shape)) for name, t in stored.items())
        if key not in known:
            known[key] = cls._plan(module, stored)
        return {
            name: stored[source] if isinstance(source, str) else source.make(stored)
            for name, source in known[key].items()
        }

    @classmethod
    def _plan(cls, module: torch.nn.Module, stored: Mapping[str, Tensor]) -> dict[str, str | Recipe]:
        _untie(module, stored)
        here, wanted = assign(_infos(stored), {}, cls.table, _config(module)), cls._layout(module)
        by_bare = {cls.table.bare(name): name for name in stored}
        plan: dict[str, str | Recipe] = {}
        missing = []
        for names in _tied_groups(module):
            shape = tuple(module.get_parameter(names[0]).shape)
            same = next((by_bare[b] for n in names if (b := cls.table.bare(n)) in by_bare), None)
            made = same or next((r for n in names if (r := recipe(n, shape, wanted, here))), None)
            if made is None:
                missing.append(names[0])
            elif isinstance(made, str) and tuple(stored[made].shape) != shape:
                raise SourceError(
                    f"Tensor {made!r} has shape {list(stored[made].shape)}, but the model that config.json describes "
                    f"has {list(shape)} for {names[0]!r}: configuration and checkpoint do not belong together."
                )
            else:
                plan[names[0]] = made
        buffers = (name for name, _ in module.named_buffers() if cls.table.bare(name) in by_bare)
        plan |= {name: by_bare[cls.table.bare(name)] for name in buffers}
        if missing:
            raise SourceError(
                f"The model cannot be run: the checkpoint has no tensor for {len(missing)} of its parameters, "
                f"such as {missing[0]!r}. Was only a part of the model saved?"
            )
        return plan

    @classmethod
    def _layout(cls, module: torch.nn.Module) -> Layout:
        return assign(_infos(dict(module.named_parameters(remove_duplicate=False))), {}, cls.table, _config(module))


def _library(family: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise PluginError(
            f"Family {family!r} needs the transformers library to run the model: pip install 'ckpt-tools[hf]'."
        ) from None
    return transformers


def _bare_module(loads: Any, config: Any) -> torch.nn.Module:
    """Return a module whose weights are whatever memory held: drawing them takes minutes for large models."""
    import torch
    from transformers import initialization

    # Not in the first releases of version 5, which then draw weights that are replaced.
    no_init_weights = getattr(initialization, "no_init_weights", nullcontext)
    with torch.random.fork_rng(devices=[]), no_init_weights():
        module = loads.from_config(
            config, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32
        )
    module.tie_weights()
    built: torch.nn.Module = module.eval()
    return built


def _invalid() -> type[Exception]:
    """Return what the library raises for values that a configuration does not take; older versions raise ValueError."""
    from huggingface_hub import errors

    found: type[Exception] = getattr(errors, "StrictDataclassError", ValueError)
    return found


def _cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    soft = targets.is_floating_point()
    if targets.dim() == (2 if soft else 1):
        logits = logits[:, -1]
    log_p = logits.log_softmax(-1)
    if soft:
        picked = (targets * log_p).sum(-1)
        return -(picked.mean() if weights is None else (weights * picked).sum())
    picked = log_p.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    if weights is None:
        weights = (targets >= 0).to(picked) / (targets >= 0).sum()
    return -(weights * picked).sum()


def _plain(value: Any) -> Any:
    """Return a value of config.json with the library's spelling of infinities and NaN as floats."""
    if isinstance(value, Mapping):
        return float(value["__float__"]) if set(value) == {"__float__"} else {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _config(module: Any) -> dict[str, Any]:
    found: dict[str, Any] = module.config.to_dict()
    return found


def _infos(tensors: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    """Return tensors in memory as a reader would list them."""
    return {
        name: TensorInfo(name, str(t.dtype).removeprefix("torch."), tuple(t.shape), t.nbytes, Path())
        for name, t in tensors.items()
    }


def _tied_groups(module: torch.nn.Module) -> list[list[str]]:
    """Return the names of each parameter, the module's first use of it first."""
    groups: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return list(groups.values())


def _untie(module: torch.nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Give parameters their own storage that the configuration ties but the checkpoint holds with different values."""
    import torch

    for first, *others in _tied_groups(module):
        for name in others:
            if first in stored and name in stored and not torch.equal(stored[first], stored[name]):
                parent, _, leaf = name.rpartition(".")
                own = torch.nn.Parameter(module.get_parameter(name).detach().clone())
                setattr(module.get_submodule(parent), leaf, own)


def _layers(module: torch.nn.Module, layout: Layout) -> list[torch.nn.Module]:
    """Return the modules of all layers, told by the tensors whose roles lie in the last one; empty when none do."""
    inside = [w for w in layout.matrices.values() if w.layer is not None]
    last = max(inside, key=lambda w: w.layer or 0, default=None)
    found = re.match(rf"(.*?)\.{last.layer}\.", last.tensor) if last else None
    if last is None or last.layer is None or found is None:
        return []
    return [module.get_submodule(f"{found[1]}.{i}") for i in range(last.layer + 1)]
