"""From stored tensors to canonical weights: every float tensor gets a name, a shape and a recipe, or a reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..checkpoint.source import Skip, TensorInfo
from .leftout import left_out
from .match import Match, Matcher, Naming
from .plain import Axes, by_head, flat, is_kernel, natural, turned
from .split import Parts, Unsplittable, split_parts
from .table import RoleTable, Rule
from .ties import Ties, find_ties

Array = np.ndarray[Any, np.dtype[Any]]
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class WeightInfo:
    """A canonical weight: `name` is its role, or the tensor's own name when the role is unknown (then role is "").

    `shape` is `(out, in)` for a matrix and `(n,)` for a vector; `dtype` is the stored one. `expert` is the index on the
    first axis of a fused tensor, `axes` the order the remaining stored axes are brought to before they are flattened to
    `shape` (empty: as they lie), `parts` the rows of the result, as (start, stop, step).
    """

    name: str
    role: str
    tensor: str
    dtype: str
    shape: tuple[int, ...]
    layer: int | None = None
    axes: Axes = ()
    parts: Parts | None = None
    expert: int | None = None

    @property
    def transpose(self) -> bool:
        """Whether rows of the weight are not rows of the stored tensor."""
        return bool(self.axes)

    def take(self, stored: Array) -> Array:
        """Return the canonical array cut from the whole stored tensor."""
        array = stored if self.expert is None else stored[self.expert]
        if self.axes:
            array = array.transpose(self.axes)
        array = array.reshape(-1, *self.shape[1:])
        if self.parts is not None:
            rows = [array[start:stop:step] for start, stop, step in self.parts]
            array = rows[0] if len(rows) == 1 else np.concatenate(rows)
        return array


@dataclass
class Layout:
    """All canonical weights of a checkpoint.

    `aliases` maps a role that is stored nowhere to the role it is tied to; `notes` says where the role table and the
    checkpoint do not go together, so that tensors keep their own names.
    """

    matrices: dict[str, WeightInfo] = field(default_factory=dict)
    vectors: dict[str, WeightInfo] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    skipped: list[Skip] = field(default_factory=list)
    facts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def assign(
    tensors: Mapping[str, TensorInfo],
    aliases: Mapping[str, str],
    table: RoleTable,
    config: Mapping[str, Any],
    equal: Callable[[str, str], bool] | None = None,
) -> Layout:
    """Return the layout of a checkpoint's tensors under a table; an empty table leaves every role unknown.

    `aliases` maps names to the stored tensors they share storage with. `equal(a, b)` tells whether two stored tensors
    have the same content; it is asked only for pairs that the table says may be tied.
    """
    matcher = Matcher(table, tensors)
    layout = Layout(facts=table.facts(config, matcher.sizes()))
    ties = find_ties(table, matcher, tensors, aliases, config, equal)
    wanted = [i for i in tensors.values() if i.name not in ties.copies and not _skip(layout, i)]
    matches = {i.name: m for i in wanted if (m := matcher.find(i, ties.named.get(i.name, "")))}
    strangers = [i.name for i in wanted if table.closed and len(i.shape) > 1 and i.name not in matches]
    if strangers:
        layout.notes.append(f"roles unknown: this is no plain network, since {strangers[0]!r} is of another kind")
        matches = {}
    _name_weights(layout, wanted, matches)
    layout.aliases = _alias_roles(matcher, Naming(matches.values()), ties, tensors, layout)
    return layout


def _skip(layout: Layout, info: TensorInfo) -> bool:
    reason = left_out(info)
    if reason:
        layout.skipped.append(Skip(info.name, reason))
    return bool(reason)


_Ordered = tuple[Any, WeightInfo]


def _name_weights(layout: Layout, wanted: list[TensorInfo], matches: Mapping[str, Match]) -> None:
    naming = Naming(matches.values())
    found: list[_Ordered] = []
    cuts: dict[tuple[int, tuple[int, ...]], _Cut] = {}
    for info in wanted:
        match = matches.get(info.name)
        if match is not None and not match.rule.roles:
            layout.skipped.append(Skip(info.name, match.rule.reason))
        elif match is not None and (indices := naming.indices(match)) is not None:
            key = (match.position, info.shape)
            if key not in cuts:
                cuts[key] = _cut(match.rule, info.name, info.shape, layout.facts)
            found += _by_rule(layout, match, cuts[key], indices, naming)
        else:
            found += _by_name(info)
    twice = {name for name, count in Counter(w.name for _, w in found).items() if count > 1}
    if twice:
        found = _without_clashes(layout, found, twice, wanted)
    for _, weight in sorted(found, key=lambda pair: pair[0]):
        (layout.matrices if len(weight.shape) == 2 else layout.vectors)[weight.name] = weight


def _without_clashes(
    layout: Layout, found: list[_Ordered], twice: set[str], wanted: list[TensorInfo]
) -> list[_Ordered]:
    """Give tensors that claim the same role their own names back."""
    rivals = {w.tensor for _, w in found if w.name in twice}
    layout.notes.append(f"roles unknown: several tensors would be {min(twice)!r}: {', '.join(sorted(rivals))}")
    kept = [pair for pair in found if pair[1].tensor not in rivals]
    return kept + [pair for info in wanted if info.name in rivals for pair in _by_name(info)]


@dataclass(frozen=True, slots=True)
class _Cut:
    """How tensors of one rule and shape are cut: shared by all layers. `problem` says why they stay whole."""

    axes: Axes
    shape: tuple[int, ...]
    roles: tuple[str, ...]
    parts: list[Parts | None]
    problem: str = ""


def _cut(rule: Rule, name: str, shape: tuple[int, ...], facts: Mapping[str, int]) -> _Cut:
    axes, shape = _canonical(rule, name, shape[1:] if rule.experts else shape)
    try:
        return _Cut(axes, shape, rule.roles, split_parts(rule, shape[0], facts))
    except Unsplittable as error:
        return _Cut(axes, shape, (rule.whole,), [None], str(error))


def _by_rule(layout: Layout, match: Match, cut: _Cut, indices: dict[str, str], naming: Naming) -> Iterator[_Ordered]:
    info, stack, prefix = match.info, naming.order(match), naming.prefix(match)
    if cut.problem:
        layout.notes.append(f"{info.name} stays whole: {cut.problem}")
    for expert in range(info.shape[0]) if match.rule.experts else (None,):
        if expert is not None:
            indices["e"] = str(expert)
        for number, (role, part) in enumerate(zip(cut.roles, cut.parts, strict=True)):
            full = prefix + role.format(**indices) if role else ""
            name = full or (info.name if expert is None else f"{info.name}.{expert}")
            rows = cut.shape[0] if part is None else sum(len(range(*r)) for r in part)
            layer = _layer(full)
            where = (stack, match.position, int(indices.get("e", 0)), number)
            rank = _model_order(full, layer, *where) if full else _own_key(name)
            shape = (rows, *cut.shape[1:])
            stored = info.encoding or info.dtype
            yield rank, WeightInfo(name, full, info.name, stored, shape, layer, cut.axes, part, expert)


def _canonical(rule: Rule, name: str, shape: tuple[int, ...]) -> tuple[Axes, tuple[int, ...]]:
    if rule.heads:
        return by_head(shape, rule.heads)
    if rule.transpose and len(shape) > 1:
        return turned(shape)
    return flat(name, shape)


def _layer(role: str) -> int | None:
    found = _LAYER.search(role)
    return int(found[1]) if found else None


def _model_order(role: str, layer: int | None, stack: int, *rest: int) -> tuple[int, ...]:
    """Order as data flows: embeddings, layers, then the rest as the table lists it."""
    zone = 2 if layer is not None else 0 if role == "embed" else 1 if role.startswith("embed") else 3
    return (zone, stack, layer or 0, *rest)


def _own_key(name: str) -> tuple[Any, ...]:
    return (4, *natural(name))


def _by_name(info: TensorInfo) -> Iterator[_Ordered]:
    name = info.name
    if len(info.shape) == 3 and "expert" in name.lower():
        for expert in range(info.shape[0]):
            own = f"{name}.{expert}"
            yield _own_key(own), WeightInfo(own, "", name, info.encoding or info.dtype, info.shape[1:], expert=expert)
    else:
        axes, shape = turned(info.shape) if is_kernel(name) and len(info.shape) > 1 else flat(name, info.shape)
        yield _own_key(name), WeightInfo(name, "", name, info.encoding or info.dtype, shape, axes=axes)


def _alias_roles(
    matcher: Matcher, naming: Naming, ties: Ties, tensors: Mapping[str, TensorInfo], layout: Layout
) -> dict[str, str]:
    """Return ties by role where both roles are known, else by tensor name; a role that is stored itself is no alias."""
    weights = [*layout.matrices.values(), *layout.vectors.values()]
    by_tensor, stored = {w.tensor: w.name for w in weights}, {w.name for w in weights}
    roles = {}
    for alias, target in ties.aliases.items():
        if target in by_tensor:
            role = _alias_role(naming, matcher.find(tensors[target], alias)) or alias
            if role not in stored:
                roles[role] = by_tensor[target]
    return roles


def _alias_role(naming: Naming, match: Match | None) -> str:
    indices = naming.indices(match) if match is not None and len(match.rule.roles) == 1 else None
    return "" if match is None or indices is None else naming.prefix(match) + match.rule.roles[0].format(**indices)
