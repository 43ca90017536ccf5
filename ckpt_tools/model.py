"""Run a checkpoint's model: rebuilt once per trajectory, filled with each checkpoint's tensors in turn.

The module is built on CPU from family and configuration; then its weights are replaced by single NaNs of the right
shape, so that it costs no memory and a weight that nobody supplied cannot pass for a number. Each call puts a
checkpoint's tensors in with `torch.func.functional_call` around the whole family function: inside, `module` is the
real module, submodules, hooks and all, and the result equals that after `load_state_dict` bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .arrays import CPU
from .data import split_batch
from .errors import OptionError, PluginError, nearest
from .family import Activations, Family

Batch = Mapping[str, Tensor]
Tensors = dict[str, Tensor]
T = TypeVar("T")

_CPU = torch.device(CPU)


class _Caller(nn.Module):
    """Calls a function of the module as if it were the module's own forward pass."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(self.module, *args, **kwargs)


class Skeleton:
    """A module without weights of its own; a tied tensor goes by the first of its names.

    `tied` maps every name to that first one. `required` gives the shapes of what a checkpoint must hold: parameters
    and stored float buffers; `optional` those of other stored buffers, whose built values serve as well; `constants`
    are float buffers that are never stored, `built` these and all buffers that are not float. `trainable` are all names
    of the parameters that training changes.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval()
        self._caller = _Caller(module)
        first: dict[int, str] = {}
        parameters = dict(module.named_parameters(remove_duplicate=False))
        buffers = dict(module.named_buffers(remove_duplicate=False))
        self.tied = {name: first.setdefault(id(t), name) for name, t in (parameters | buffers).items()}
        stored = module.state_dict().keys()
        own = {name: b for name, b in buffers.items() if self.tied[name] == name}
        needed = {n: b for n, b in own.items() if n in stored and b.is_floating_point()}
        self.required = {n: tuple(t.shape) for n, t in (parameters | needed).items() if self.tied[n] == n}
        self.optional = {n: tuple(b.shape) for n, b in own.items() if n in stored and n not in needed}
        self.built = {n: b for n, b in own.items() if n not in needed}
        self.constants = {n: b for n, b in self.built.items() if b.is_floating_point()}
        self.trainable = [name for name, p in parameters.items() if p.requires_grad]
        for p in module.parameters():
            p.data = torch.full((), torch.nan, dtype=p.dtype).expand(p.shape)

    def call(
        self, tensors: Mapping[str, Tensor], tied: Mapping[str, str], function: Callable[..., T], *args: Any, **kw: Any
    ) -> T:
        """Return function(module, ...) with the tensors in the module, each under all names tied to it."""
        full = {f"module.{name}": tensors[one] for name, one in tied.items() if one in tensors}
        out: T = functional_call(self._caller, full, (function, *args), kw, tie_weights=False)
        return out


@dataclass(eq=False)
class Model:
    """One checkpoint's model. `tensors` are its parameters and buffers by module name, a tied one once.

    `tied` maps every name to the one in `tensors`. `roles` maps a parameter to the roles it holds (several for fused
    q, k, v, none when unknown), `transposed` are stored `[in, out]`, `unused` are stored tensors that the module has no
    place for. Treat all tensors as read-only. They are on `device`, and batches are moved there; activations come back
    to `home`, which is the CPU where the device has no float64 to measure them in, else the device.
    """

    family: type[Family]
    skeleton: Skeleton
    tensors: Tensors
    tied: Mapping[str, str]
    dtype: torch.dtype
    roles: dict[str, tuple[str, ...]] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    unused: tuple[str, ...] = ()
    device: torch.device = _CPU
    home: torch.device = _CPU

    def __post_init__(self) -> None:
        self._versions = {name: t._version for name, t in self.tensors.items()}
        self._require: Callable[[str], None] | None = None

    def guarded(self, require: Callable[[str], None]) -> Model:
        """Return the same model, whose loss first calls `require("loss")`."""
        twin = copy(self)
        twin._require = require
        return twin

    def parameters(self) -> Tensors:
        """Return the trainable tensors by name, without gradients; make differentiable copies of them to derive."""
        return {name: self.tensors[name] for name in self.skeleton.trainable if self.tied[name] == name}

    def select(self, patterns: Iterable[str] = ()) -> list[str]:
        """Return the trainable parameters whose role or name fits any pattern, all for none.

        Raises OptionError for a pattern that fits nothing, or only some of the roles fused in one tensor.
        """
        chosen: set[str] = set()
        names, patterns = list(self.parameters()), tuple(patterns)
        for pattern in patterns:
            found = [name for name in names if self._fits(name, pattern)]
            if not found:
                known = [*names, *(role for name in names for role in self.roles.get(name, ()))]
                raise OptionError(f"No parameter of the model fits {pattern!r}.{nearest(pattern, known)}")
            chosen.update(found)
        return [name for name in names if not patterns or name in chosen]

    def _fits(self, name: str, pattern: str) -> bool:
        roles = self.roles.get(name, ())
        fits = [fnmatchcase(role, pattern) for role in roles]
        if any(fits) and not all(fits) and not fnmatchcase(name, pattern):
            raise OptionError(
                f"{pattern!r} fits {roles[fits.index(True)]!r}, which is stored fused with "
                f"{roles[fits.index(False)]!r} in {name!r}. Choose all of them, or the tensor."
            )
        return any(fits) or fnmatchcase(name, pattern)

    def forward(
        self, batch: Batch, *, record: bool = False, tensors: Mapping[str, Tensor] | None = None
    ) -> Activations:
        """Return logits, and with `record` hidden states and attention.

        `tensors` replace parameters by name; without them no graph is recorded.
        """
        shown = self._run(self.family.forward, batch, tensors, record=record)
        if self.home == self.device:
            return shown
        logits, *kept = (t.to(self.home) for t in (shown.logits, *shown.hidden, *shown.attention))
        return Activations(logits, tuple(kept[: len(shown.hidden)]), tuple(kept[len(shown.hidden) :]))

    def loss(self, batch: Batch, *, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the family's scalar loss in nats; `tensors` as in `forward`."""
        self._permit_loss()
        return self._run(self.family.loss, batch, tensors)

    def loss_and_logits(self, batch: Batch, *, tensors: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return the loss and the logits it was computed from, in one graph and on the model's device.

        The logits are what the module itself returned, or its `logits`. A family whose `loss` does without them defines
        `loss_of_logits(logits, batch)` too. Raises PluginError for one whose `loss` does not call the module once.
        """
        self._permit_loss()
        of_logits = getattr(self.family, "loss_of_logits", None)
        if of_logits is not None:
            batch = self._cast(batch)
            given: Tensor = self.call(lambda module: self.family.forward(module, batch).logits, tensors=tensors)
            return of_logits(given, batch), given
        seen: list[Any] = []
        watch = self.skeleton.module.register_forward_hook(lambda module, args, out: seen.append(out))
        try:
            loss = self.call(self.family.loss, self._cast(batch), tensors=tensors)
        finally:
            watch.remove()
        logits = [getattr(out, "logits", out) for out in seen]
        if len(logits) != 1 or not isinstance(logits[0], Tensor):
            raise PluginError(
                f"The loss of family {self.family.name!r} called its module {len(seen)} times; it must do so once, and "
                "get logits, for them to be known here."
            )
        return loss, logits[0]

    def call(
        self, function: Callable[..., T], *args: Any, tensors: Mapping[str, Tensor] | None = None, **kwargs: Any
    ) -> T:
        """Return function(module, ...), where `module` has this checkpoint's tensors, with `tensors` in their place."""
        replaced = {self.tied.get(name, name): t for name, t in (tensors or {}).items()}
        unknown = sorted(set(replaced) - set(self.tensors))
        if unknown:
            raise PluginError(f"The model has no tensor {unknown[0]!r}.{nearest(unknown[0], self.tensors)}")
        return self.skeleton.call({**self.tensors, **replaced}, self.tied, function, *args, **kwargs)

    def split(self, batch: Batch, rows: int) -> list[tuple[float, Batch]]:
        """Return (share, batch) pairs of at most `rows` examples (0: all); the loss is the sum of share times theirs.

        Weights are scaled to sum to 1 in each part; what is not per example is in every part.
        """
        return split_batch(batch, rows)

    def changed(self) -> list[str]:
        """Return the names of tensors that were written to since they were read."""
        return [name for name, t in self.tensors.items() if t._version != self._versions[name]]

    def _run(self, function: Callable[..., T], batch: Batch, tensors: Mapping[str, Tensor] | None, **kwargs: Any) -> T:
        if tensors is not None:
            return self.call(function, self._cast(batch), tensors=tensors, **kwargs)
        # Torch picks some kernels by whether a weight requires gradients; a trained module's weights do.
        marked = {name: t.detach().requires_grad_() for name, t in self.parameters().items()}
        with torch.no_grad():
            return self.call(function, self._cast(batch), tensors=marked, **kwargs)

    def _permit_loss(self) -> None:
        if self._require is not None:
            self._require("loss")

    def _cast(self, batch: Batch) -> Batch:
        return {key: placed(t, self.dtype, self.device) for key, t in batch.items()}


def placed(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor on a device, one of floats in the dtype; the same tensor where that is so."""
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).to(device)
