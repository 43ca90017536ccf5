"""From stored tensors to canonical weights: every float tensor gets a name, a shape and a recipe, or a reason."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from ..checkpoint.source import Skip, TensorInfo
from ..errors import SourceError
from .split import Parts, split_parts
from .table import RoleTable, Rule

Array = np.ndarray[Any, np.dtype[Any]]

# What frameworks store beside weights; matched against the whole tensor name.
_BUFFERS = re.compile(
    r".*(running_mean|running_var|num_batches_tracked|inv_freq|masked_bias|causal_mask|attn_mask|\bmask"
    r"|\.IGNORE|rotary_emb\.\w+|position_ids|freqs_cis|freqs_cos|freqs_sin)"
)


@dataclass(frozen=True, slots=True)
class WeightInfo:
    """A canonical weight: `name` is its role, or the tensor's own name when the role is unknown (then role is "").

    `shape` is `(out, in)` for a matrix and `(n,)` for a vector; `dtype` is the stored one. `parts` picks rows of the
    output axis, `expert` the first axis of a fused 3-D tensor.
    """

    name: str
    role: str
    tensor: str
    dtype: str
    shape: tuple[int, ...]
    layer: int | None = None
    transpose: bool = False
    parts: Parts | None = None
    expert: int | None = None

    def take(self, stored: Array) -> Array:
        """Return the canonical array cut from the whole stored tensor."""
        array = stored if self.expert is None else stored[self.expert]
        if self.transpose:
            array = array.swapaxes(0, -1)
        if self.parts is not None:
            array = np.concatenate([array[a:b] for a, b in self.parts])
        return array.reshape(self.shape)


@dataclass
class Layout:
    """All canonical weights of a checkpoint. `aliases` maps a role that is stored nowhere to the role it is tied to."""

    matrices: dict[str, WeightInfo] = field(default_factory=dict)
    vectors: dict[str, WeightInfo] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    skipped: list[Skip] = field(default_factory=list)
    facts: dict[str, int] = field(default_factory=dict)


def assign(
    tensors: Mapping[str, TensorInfo], aliases: Mapping[str, str], table: RoleTable, config: Mapping[str, Any]
) -> Layout:
    """Return the layout of a checkpoint's tensors under a table; an empty table leaves every role unknown."""
    layout = Layout(facts=table.facts(config))
    found: list[tuple[Any, WeightInfo]] = []
    for info in tensors.values():
        reason = _left_out(info)
        match = table.find(info.name)
        if match and not match[1].roles:
            reason = match[1].reason
        if reason:
            layout.skipped.append(Skip(info.name, reason))
        elif match:
            found += _by_rule(info, *match, layout.facts)
        else:
            found += _by_name(info)
    for _, weight in sorted(found, key=lambda pair: pair[0]):
        _insert(layout, weight)
    layout.aliases = _alias_roles(table, {**table.tied_names(tensors, config), **aliases}, layout)
    return layout


def _insert(layout: Layout, weight: WeightInfo) -> None:
    group = layout.matrices if len(weight.shape) == 2 else layout.vectors
    if weight.name in group:
        raise SourceError(
            f"Tensors {group[weight.name].tensor!r} and {weight.tensor!r} both map to role {weight.name!r}: "
            "the role table of this family does not fit this checkpoint."
        )
    group[weight.name] = weight


def _left_out(info: TensorInfo) -> str:
    """Return why a tensor is not a weight, or ""."""
    if _BUFFERS.fullmatch(info.name):
        return "buffer, not a trained weight"
    if not info.dtype.startswith(("float", "bfloat")):
        return f"{info.dtype} values, not a float weight"
    if info.size == 0:
        return "empty tensor"
    return "scalar" if not info.shape else ""


_Found = Iterator[tuple[Any, WeightInfo]]


def _by_rule(info: TensorInfo, position: int, rule: Rule, indices: dict[str, str], facts: Mapping[str, int]) -> _Found:
    experts = range(info.shape[0]) if rule.experts else (None,)
    shape = info.shape[1:] if rule.experts else info.shape
    if rule.transpose:
        shape = shape[::-1]
    parts = split_parts(rule, shape[0], facts, info)
    for expert in experts:
        index = indices if expert is None else {**indices, "e": str(expert)}
        for number, (role, part) in enumerate(zip(rule.roles, parts, strict=True)):
            name = role.format(**index)
            rows = shape[0] if part is None else sum(b - a for a, b in part)
            layer = int(index["i"]) if "i" in index else None
            weight = WeightInfo(
                name, name, info.name, info.dtype, _flat((rows, *shape[1:])), layer, rule.transpose, part, expert
            )
            yield _model_order(name, layer, position, int(index.get("e", 0)), number), weight


def _model_order(role: str, layer: int | None, position: int, expert: int, part: int) -> tuple[int, ...]:
    """Order as data flows: embeddings, layers, then the rest as the table lists it."""
    zone = 1 if layer is not None else 0 if role.startswith("embed") else 2
    return (zone, layer or 0, position, expert, part)


def _by_name(info: TensorInfo) -> _Found:
    key = (3, *_natural(info.name))
    if len(info.shape) == 3 and "expert" in info.name.lower():
        for expert in range(info.shape[0]):
            name = f"{info.name}.{expert}"
            yield (*key, (0, expert, "")), WeightInfo(name, "", info.name, info.dtype, info.shape[1:], expert=expert)
    else:
        yield key, WeightInfo(info.name, "", info.name, info.dtype, _flat(info.shape))


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts layer 2 before layer 10."""
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", name) if p)


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return convolution kernels `[out, in, k...]` as matrices `[out, in*k...]`; drop singleton axes first."""
    squeezed = tuple(n for n in shape if n > 1) if len(shape) > 2 else shape
    if len(squeezed) < 2 <= len(shape):
        squeezed = (shape[0], prod(shape[1:]))
    return squeezed if len(squeezed) <= 2 else (squeezed[0], prod(squeezed[1:]))


def _alias_roles(table: RoleTable, tied: Mapping[str, str], layout: Layout) -> dict[str, str]:
    """Return ties by role where both roles are known, else by tensor name."""
    by_tensor = {w.tensor: w.name for w in [*layout.matrices.values(), *layout.vectors.values()]}
    roles = {}
    for alias, target in tied.items():
        match = table.find(alias)
        known = match is not None and len(match[1].roles) == 1
        name = match[1].roles[0].format(**match[2]) if match and known else alias
        if target in by_tensor:
            roles[name] = by_tensor[target]
    return roles
