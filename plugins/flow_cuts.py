"""Attention with edges cut: a query is kept from looking at a key, and its other weights grow to sum to 1 again.

A cut adds -inf to the scores before the softmax. It is made from outside by a hook on each attention module, found by
the role of its queries' weights, whose forward takes an additive mask: an argument named `prior` or `attention_mask`,
`[..., query, key]`, as eager attention of the transformers library does. Where a module sees its last Q positions only,
the last Q rows of a cut apply.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ckpt_tools import Model, SourceError

MASKS = ("prior", "attention_mask")
_QUERIES = re.compile(r"layers\.(\d+)\.attn\.q")


def attention_modules(model: Model) -> dict[int, nn.Module]:
    """Return the attention module of every layer that can be cut; raises SourceError when there is none."""
    paths = {
        int(found[1]): name.rpartition(".")[0]
        for name, roles in model.roles.items()
        for role in roles
        if (found := _QUERIES.fullmatch(role))
    }
    modules = {layer: _masked_module(model.skeleton.module, path) for layer, path in sorted(paths.items())}
    able = {layer: module for layer, module in modules.items() if module is not None}
    if not able:
        raise SourceError(
            f"The models of family {model.family.name!r} have no attention that takes an additive mask, so no edge of "
            "it can be cut: leave `flow` out."
        )
    return able


def _masked_module(root: nn.Module, path: str) -> nn.Module | None:
    """Return the nearest module around `path` whose forward takes a mask."""
    while path:
        path = path.rpartition(".")[0]
        module = root.get_submodule(path)
        if path and _mask_name(module):
            return module
    return None


def _mask_name(module: nn.Module) -> str:
    names = inspect.signature(module.forward).parameters
    return next((name for name in MASKS if name in names), "")


@contextmanager
def cut(modules: Mapping[int, nn.Module], edges: Mapping[int, Tensor]) -> Iterator[None]:
    """Cut, by layer, the edges where a bool tensor `[(example, head,) query, key]` is true, until the context ends.

    A query that loses all its keys has no attention: see to it that one is left.
    """
    hooks = [modules[layer].register_forward_pre_hook(_hook(mask), with_kwargs=True) for layer, mask in edges.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hook(edges: Tensor) -> Any:
    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        name = _mask_name(module)
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        before = bound.arguments.get(name)
        # Not every layer is given a mask, but every one is given states.
        states = next(value for value in bound.arguments.values() if isinstance(value, Tensor))
        bound.arguments[name] = _cut_mask(before, edges.to(states.device))
        return bound.args, bound.kwargs

    return add


def _cut_mask(before: Tensor | None, edges: Tensor) -> Tensor:
    if before is None:
        return torch.zeros(edges.shape, device=edges.device).masked_fill(edges, -torch.inf)
    rows = edges[..., -before.shape[-2] :, :]
    if before.dtype == torch.bool:
        return before & ~rows
    return torch.where(rows, -torch.inf, before)


def visible_edges(maps: Tensor) -> Tensor:
    """Return which edges `[query, key]` carry any weight in maps `[B, head, query, key]`, and are not a query's last.

    Those of a query with one key only are left out: without it there would be no attention.
    """
    seen = (maps != 0).any(0).any(0)
    return seen & (seen.sum(-1, keepdim=True) > 1)


def classes(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return classes of positions by name, bool `[B, T]`, none when the batch does not tell them.

    `place` `[B]` is where a key stands, followed by two anchors: classes `key`, `anchors`, `last` (which may be an
    anchor too) and `other`. Else `classes` `[B, T]` numbers them.
    """
    length = batch["tokens"].shape[1]
    if "place" in batch:
        positions = torch.arange(length, device=batch["place"].device)
        since = positions - batch["place"][:, None]
        last = (positions == length - 1).expand_as(since)
        key, anchors = since == 0, (since == 1) | (since == 2)
        return {"key": key, "anchors": anchors, "last": last, "other": ~(key | anchors | last)}
    if "classes" in batch:
        return {str(int(c)): batch["classes"] == c for c in batch["classes"].unique()}  # type: ignore[no-untyped-call]
    return {}


def between(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the edges `[B, 1, query, key]` from keys of one class to queries of another, a position's own left out."""
    edges = queries[:, :, None] & keys[:, None, :]
    return (edges & ~torch.eye(edges.shape[-1], dtype=torch.bool, device=edges.device))[:, None]


def accuracy(logits: Tensor, batch: Mapping[str, Tensor]) -> float:
    """Return the share of right answers, weighted by `weights` if there are any; NaN for targets that are no tokens.

    Without targets, the next token is right.
    """
    if "targets" not in batch:
        return float((logits[:, :-1].argmax(-1) == batch["tokens"][:, 1:]).double().mean())
    targets = batch["targets"]
    if targets.is_floating_point():
        return float("nan")
    right = (logits[:, -1] if targets.dim() == 1 else logits).argmax(-1) == targets
    weights = batch.get("weights", (targets >= 0).double())
    return float((right * weights).sum() / weights.sum())


def contrast(logits: Tensor, batch: Mapping[str, Tensor]) -> float:
    """Return the mean of ln p(inferential) - ln p(symmetric) at the last position, in nats; NaN without such answers.

    Over examples whose candidate answers `inferential` and `symmetric` `[B]` differ, but for those taught the latter.
    """
    if not {"inferential", "symmetric"} <= batch.keys():
        return float("nan")
    one, other = batch["inferential"], batch["symmetric"]
    chosen = one != other
    if "targets" in batch and batch["targets"].shape == other.shape:
        chosen &= batch["targets"] != other
    rows = chosen.nonzero().flatten()
    log_p = logits[rows, -1].double().log_softmax(-1)
    at = torch.arange(len(rows), device=rows.device)
    return float((log_p[at, one[rows]] - log_p[at, other[rows]]).mean()) if len(rows) else float("nan")
