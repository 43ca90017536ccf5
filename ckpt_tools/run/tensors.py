"""The named tensors of a torch module, found anew at every save but not searched for anew."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from itertools import chain
from operator import is_
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

_WRAPPERS = {"DistributedDataParallel": "module", "DataParallel": "module", "OptimizedModule": "_orig_mod"}


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside wrappers of torch that would put a prefix before every tensor's name."""
    while (inner := _WRAPPERS.get(type(module).__name__)) is not None:
        module = getattr(module, inner)
    return module


def ties(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return `{alias: name}` of tensors that are the same memory read the same way; the first name is the tensor's."""
    first: dict[Any, str] = {}
    found: dict[str, str] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            found[name] = first.setdefault(place, name)
    return {name: target for name, target in found.items() if name != target}


class ModuleTensors:
    """Called, returns what `module.state_dict` holds: tensors by name, sharing memory.

    `state_dict` takes a hundredth of a short training step, so its result is kept while no module, parameter or buffer
    has been replaced, added or removed. Values that are no tensors are left out with a warning.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._tensors: dict[str, Tensor] = {}
        self._tables: list[dict[str, Any]] = []
        self._empty: list[dict[str, Any]] = []
        self._sizes: list[int] = []
        self._values: list[Any] = []
        self._warned = False

    def __call__(self) -> dict[str, Tensor]:
        if not self._tables or not self._unchanged():
            self._tensors = self._found()
            tables = list(_tables(self._module)) if _is_plain(self._module) else []
            self._tables, self._empty = [t for t in tables if t], [t for t in tables if not t]
            self._sizes, self._values = list(map(len, self._tables)), list(_values(self._tables))
        return self._tensors

    def _unchanged(self) -> bool:
        return (
            not any(self._empty)
            and list(map(len, self._tables)) == self._sizes
            and all(map(is_, _values(self._tables), self._values))
        )

    def _found(self) -> dict[str, Tensor]:
        from torch import Tensor

        state = self._module.state_dict(keep_vars=True)
        other = [name for name, value in state.items() if not isinstance(value, Tensor)]
        if other and not self._warned:
            self._warned = True
            warnings.warn(f"not recorded, as they are no tensors: {', '.join(other)}", stacklevel=4)
        return {name: value for name, value in state.items() if name not in other}


def _values(tables: list[dict[str, Any]]) -> Iterator[Any]:
    return chain.from_iterable(map(dict.values, tables))


def _tables(module: nn.Module) -> Iterator[dict[str, Any]]:
    for part in module.modules():
        yield from (part._modules, part._parameters, part._buffers)


def _is_plain(module: nn.Module) -> bool:
    """Return whether `state_dict` holds the parameters and buffers as they are, without somebody's own rules."""
    from torch.nn import Module

    rules = ("state_dict", "_save_to_state_dict", "get_extra_state")
    return all(
        not part._state_dict_hooks
        and not part._state_dict_pre_hooks
        and all(getattr(type(part), rule) is getattr(Module, rule) for rule in rules)
        for part in module.modules()
    )
