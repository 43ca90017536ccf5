"""A device that is not the CPU, on a machine that has no other: its tensors refuse what a GPU's tensors refuse.

Every operation is computed by the CPU on tensors that say they are elsewhere. Tensors here and there do not mix, none
there becomes an array, and without `float64` none there is in double precision. It takes torch's hook for devices
written in Python, which holds for the whole process, hence in one of its own:

python pretend.py FOLDER float64|float32 RUN...

analyzes runs of a few steps on both and prints, as JSON, what each analyzer came to.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from ckpt_tools import Analyzer, Out, View, analyze, arrays, engine, heads, squares
from ckpt_tools.engine import device
from ckpt_tools.registry import load_registry

NAME = "pretend"
BETWEEN = ("copy_", "index", "index_put", "index_put_", "_index_put_impl_")
"""What real devices let pass: copies, and indices that are here."""


class Away(Tensor):
    """A tensor that is there; `inner` holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Away:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made: Away = Tensor._make_wrapper_subclass(cls, inner.shape, device=torch.device(NAME, 0), **layout)
        made.inner = inner
        return made

    def tolist(self) -> Any:
        """Return the numbers: what a real device does by copying."""
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Device.current.run(function, args, kwargs or {})


class Device(TorchDispatchMode):
    """The device, while the context lasts."""

    current: Device

    def __init__(self, float64: bool = True) -> None:
        super().__init__()
        self._float64 = float64
        Device.current = self

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(function, args, kwargs or {})

    def run(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Compute on the CPU and hand out the result where it belongs."""
        name = function.overloadpacket.__name__
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        there = [t for t in tensors if isinstance(t, Away)]
        if there and name not in BETWEEN and any(t.dim() for t in tensors if not isinstance(t, Away)):
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {NAME}:0 and cpu")
        asked = kwargs.get("device")
        here = {**kwargs, "device": "cpu"} if asked is not None else kwargs
        args, here = tree_map(lambda t: t.inner if isinstance(t, Away) else t, (args, here))
        out = function(*args, **here)
        stays = torch.device(asked).type == NAME if asked is not None else bool(there)
        known = {id(t.inner): t for t in there}  # what is written in place comes out as it went in
        return tree_map(lambda t: self._away(t, known) if stays and isinstance(t, Tensor) else t, out)

    def _away(self, tensor: Tensor, known: Mapping[int, Away]) -> Away:
        if id(tensor) in known:
            return known[id(tensor)]
        if tensor.dtype == torch.float64 and not self._float64:
            raise TypeError(f"Cannot convert a tensor to float64: {NAME} has none")
        return Away(tensor)


class Made(TorchFunctionMode):
    """torch.tensor makes its numbers below everything that a mode sees: make them here, then copy."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.tensor and kwargs.get("device") is not None:
            return torch.tensor(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        if function is Tensor.new_tensor:
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(args[0].device)
        return function(*args, **kwargs)


class Careless(Analyzer):
    """Takes a tensor of the model for an array."""

    name = "careless"
    needs = "forward"
    outputs: ClassVar[Mapping[str, Out]] = {"x": Out(unit="1", long_name="largest logit")}

    def analyze(self, view: View) -> Mapping[str, Any]:
        """Return the largest logit."""
        return {"x": view.model().forward(view.batch()).logits.numpy().max()}


TWO_HOP = {"entities": 8, "d_model": 16, "d_ff": 12, "gamma": 0.5}
ANCHOR = {"samples": 60, "batch": 0, "d_model": 8, "d_state": 4}
RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "transformer": ("transformer", "two_hop", {**TWO_HOP, "layers": 1, "heads": 2}),
    "population": ("transformer", "markov", {"d_model": 16, "d_ff": 12}),
    "attn_mlp": ("attn_mlp", "signal", {"samples": 20, "dimension": 8, "gamma": 0.5}),
    "mlp": ("mlp", "regression", {"hidden": (7, 5), "std": 0.3}),
    "emb_mlp": ("emb_mlp", "two_hop", TWO_HOP),
    "gpt": ("gpt", "two_hop", {**TWO_HOP, "layers": 1, "heads": 2}),
    "mamba 1": ("mamba", "anchor", {**ANCHOR, "block": 1, "layers": 1}),
    "mamba 2": ("mamba", "anchor", {**ANCHOR, "layers": 1}),
}
MODELS = ("answers", "asymmetry", "attention", "alignment", "calibration", "flow", "flatness", "landscape")
ANALYZERS = ("rank", "drift", *MODELS)
SAMPLE = Path(__file__).parents[2] / "samples" / "calibration.py"
OPTIONS = {
    "flatness": {"density_probes": 1, "density_steps": 3, "max_products": 6, "probes": 2, "sigma": [0.01]},
    "flow": {"span": 2, "heads": True},
    "landscape": {"points": 3},
    "attention": {"rows": 3},
}


def made(folder: Path, name: str) -> dict[str, Any]:
    """Write a run, or a checkpoint of a third-party model, and return the arguments of `analyze`."""
    if name == "llama":
        return llama(folder)
    family, task, settings = RUNS[name]
    settings = {**settings, "steps": 1, "save": "every:1", "device": "cpu"}
    load_registry().family(family).train(task, settings, folder / "run")
    return {"source": folder / "run"}


def llama(folder: Path) -> dict[str, Any]:
    """Write a LLaMA whose weights are large enough for a GPU, and tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=2100, num_hidden_layers=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder / "llama")
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, 2100, (2, 6)))
    return {"source": folder / "llama", "data": {"path": folder / "tokens.npy"}}


def main(folder: Path, names: Sequence[str], float64: bool) -> dict[str, dict[str, str]]:
    """Return what became of each analyzer there, by run: "same" as here, or what differs, or why it failed."""
    _setup_privateuseone_for_python_backend(NAME)  # before autograd counts the devices
    squares.WORTH, heads.LARGE = 0, 0
    for module in (device, engine):
        module.resolve = lambda asked, *_: asked if asked == "cpu" else f"{NAME}:0"  # type: ignore[attr-defined]
    arrays.NO_FLOAT64 = () if float64 else (NAME,)  # type: ignore[assignment]
    return {name: on_both(folder / name, name, float64) for name in names}


def on_both(folder: Path, name: str, float64: bool) -> dict[str, str]:
    """Return what became of each analyzer over one run."""
    how = {**made(folder, name), "options": OPTIONS, "plugin_files": [SAMPLE]}
    here = analyze(plugins=ANALYZERS, output=folder / "here.h5", **how)
    with Made(), Device(float64):
        there = analyze(plugins=[*ANALYZERS, Careless], output=folder / "there.h5", device="cuda", **how)
    fails_here = {name: reason for _, name, reason in here.failures}
    failures = {name: reason for _, name, reason in there.failures if reason != fails_here.get(name)}
    with h5py.File(here.path) as one, h5py.File(there.path) as other:
        found = {name: compared(one[name], other[name]) for name in ANALYZERS if name in one and name in other}
        again = analyze(plugins=ANALYZERS, output=there.path, **how)
        return {**found, **failures, "device": other.attrs["device"], "computed again": str(again.computed)}


def compared(here: Any, there: Any) -> str:
    """Return "same" or the outputs of an analyzer that are not the same to the last bit, with the largest change."""
    changes = {}
    for name, values in here.items():
        one, other = values[...], there[name][...]
        floats = one.dtype.kind == "f"
        if not np.array_equal(one, other, equal_nan=floats):
            changes[name] = np.nanmax(np.abs(other - one)) / np.nanmax(np.abs(one)) if floats else np.inf
    return ", ".join(f"{name} by {change:.1e}" for name, change in changes.items()) or "same"


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[3:], sys.argv[2] == "float64")))
