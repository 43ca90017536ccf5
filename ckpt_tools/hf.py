"""Families of third-party language models: one role table each (`roles/tables/*.toml`), models from `transformers`.

Nothing of the checkpoint's own code is ever run: the configuration is data and `auto_map` is ignored.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any, ClassVar

from .errors import PluginError, SourceError
from .family import Activations, Family
from .hookspecs import hookimpl
from .roles.table import table_from

if TYPE_CHECKING:
    import torch


class HFFamily(Family):
    """A family whose module comes from the `transformers` library."""

    loads: ClassVar[str] = "AutoModelForCausalLM"

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> torch.nn.Module:
        """Return the `transformers` module of this configuration, in evaluation mode, with eager attention."""
        try:
            import transformers
        except ImportError:
            raise PluginError(
                f"Family {cls.name!r} needs the transformers library to run the model: pip install 'ckpt-tools[hf]'."
            ) from None
        data = {k: v for k, v in config.items() if k not in ("auto_map", "model_type", "transformers_version", "dtype")}
        model_type = config.get("model_type")
        if not isinstance(model_type, str):
            raise SourceError(f"Family {cls.name!r}: config.json has no model_type, so the model cannot be rebuilt.")
        hf_config = transformers.AutoConfig.for_model(model_type, **data)
        module = getattr(transformers, cls.loads).from_config(hf_config, attn_implementation="eager")
        built: torch.nn.Module = module.eval()
        return built

    @classmethod
    def forward(cls, module: Any, batch: Mapping[str, torch.Tensor], *, record: bool = False) -> Activations:
        """Run the model on `batch["tokens"]`; with `record`, hidden states and attention maps too."""
        out = module(input_ids=batch["tokens"], output_hidden_states=record, output_attentions=record, use_cache=False)
        attention = tuple(a for a in (getattr(out, "attentions", None) or ()) if a is not None)
        return Activations(out.logits, tuple(getattr(out, "hidden_states", None) or ()), attention)

    @classmethod
    def loss(cls, module: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean next-token cross entropy in nats over `batch["tokens"]`."""
        import torch

        logits = cls.forward(module, batch).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["tokens"][:, 1:].flatten())


def family_from_toml(text: str, name: str, where: str) -> type[Family]:
    """Return a family from the text of a role table in TOML; `model_types` and the table are its whole content."""
    data = tomllib.loads(text)
    model_types = tuple(data.pop("model_types", ()))
    loads = data.pop("loads", HFFamily.loads)
    return type(
        name.title().replace("_", "").replace("-", ""),
        (HFFamily,),
        {
            "__doc__": text.partition("\n")[0].lstrip("# "),
            "name": name,
            "table": table_from(data, where),
            "model_types": model_types,
            "loads": loads,
        },
    )


@hookimpl
def ckpt_families() -> list[type[Family]]:
    """Return one family per role table shipped with the package."""
    folder = resources.files("ckpt_tools.roles.tables")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return [family_from_toml(f.read_text("utf-8"), f.name.removesuffix(".toml"), f.name) for f in files]
