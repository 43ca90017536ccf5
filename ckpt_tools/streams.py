"""The residual stream of third-party models: what enters the first layer and what leaves each.

Libraries differ, between models and from one release to the next, in what they hand out as hidden states: the last one
normed, the first one missing. Here they are taken from the layers themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


class ResidualStream:
    """Makes a module's `hidden_states` its residual stream: the input of the first of `layers`, then each output.

    Nothing is kept in calls that do not ask for hidden states.
    """

    def __init__(self, module: nn.Module, layers: list[nn.Module]) -> None:
        self._recording = False
        self._kept: list[Tensor] = []
        module.register_forward_pre_hook(self._begin, with_kwargs=True)
        layers[0].register_forward_pre_hook(self._enter, with_kwargs=True)
        for layer in layers:
            layer.register_forward_hook(self._leave)
        module.register_forward_hook(self._hand_out)

    def _begin(self, _module: Any, _args: Any, how: dict[str, Any]) -> None:
        self._recording = bool(how.get("output_hidden_states"))
        self._kept = []

    def _enter(self, _layer: Any, args: tuple[Any, ...], how: dict[str, Any]) -> None:
        if self._recording:
            self._kept.append(args[0] if args else how["hidden_states"])

    def _leave(self, _layer: Any, _args: Any, out: Any) -> None:
        if self._recording:
            self._kept.append(out[0] if isinstance(out, tuple) else out)

    def _hand_out(self, _module: Any, _args: Any, out: Any) -> None:
        if self._recording:
            out.hidden_states = tuple(self._kept)
        self._recording = False
        self._kept = []
