"""Which of the things nested in a file are the weights.

A training script saves whatever it needs to go on: `{"model": ..., "optimizer": ..., "epoch": 3}`, the same under other
names, averages of the weights beside them, one dict per network. Names decide, in this order: what belongs to the
training loop is left out, a known name of the weights is entered, a lone odd name too, and several odd names are all
kept, each in front of its tensors. Everything left out is listed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import FormatError, SourceError, nearest
from .containers import MAX_NAME, Walker, is_module, items_of, key_text
from .leaves import Leaf
from .source import Skip

MAX_TENSORS = 200_000
_MAX_STEPS = 8
_MAX_LISTED = 200
_WEIGHTS = (
    "model_state_dict", "state_dict", "model_state", "model_dict", "model", "module", "net", "network",
    "net_state_dict", "params", "parameters", "weights", "model_weights", "variables",
)  # fmt: skip
_AVERAGED = re.compile(r"(.*[_\W])?(ema|swa|shadow|averaged?)([_\W].*)?", re.IGNORECASE)
_LOOP = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"(.*[_\W])?(opt|optims?)([_\W].*)?|\w*optimi[sz]er.*", "optimizer state"),
        (r".*sched.*", "state of the learning-rate schedule"),
        (r"(.*[_\W])?(rng|random)([_\W].*)?", "state of random number generators"),
        (r"(.*[_\W])?grad(ient)?s?", "gradients"),
        (r"(.*[_\W])?scaler([_\W].*)?|amp", "state of the loss scaling"),
        (r"callbacks|loops|hooks|trainer|dataloaders?|sampler|(replay_)?buffer|datasets?", "state of the loop"),
        (r"batch_stats|running_stats", "running statistics of normalisation layers"),
        (r"(.*_)?(args|arguments|config|cfg|hparams|hyper_?parameters|options)", "settings"),
    )
)
_FIGURES = re.compile(r"(.*[_\W])?(loss|losses|metrics?|history|best|acc|accuracy|scores?)([_\W].*)?")
_FLAT_STATE = re.compile(r"optim(izers?)?(_state(_dict)?)?|lr_scheduler|rng_state")


@dataclass
class Chosen:
    """The weights of a tree: `leaves` by name, what was left out, and the mappings passed on the way, outermost first.

    `path` are the keys that were entered.
    """

    leaves: dict[str, Leaf] = field(default_factory=dict)
    skipped: list[Skip] = field(default_factory=list)
    beside: list[Mapping[Any, Any]] = field(default_factory=list)
    path: tuple[str, ...] = ()


def choose(root: Any, where: str, part: str = "") -> Chosen:
    """Return the weights in a tree of containers, or its part of that name ("ema": the averaged weights).

    Raises SourceError when the part does not exist, FormatError when the tree is a trap.
    """
    chosen, walker = Chosen(), Walker(where)
    node = _descend(walker, root, chosen, part)
    for number, (name, leaf) in enumerate(walker.flatten(node)):
        if number > MAX_TENSORS:
            raise FormatError(f"{where} holds more than {MAX_TENSORS:,} tensors; it is not read.")
        chosen.leaves[name] = leaf
    found = part in chosen.path or (part.lower() == "ema" and any(map(_AVERAGED.fullmatch, chosen.path)))
    _split_flat(chosen, where, "" if found else part)
    return chosen


def loop_reason(key: str) -> str:
    """Return what a key says it holds of the training loop, or ""."""
    return next((reason for pattern, reason in _LOOP if pattern.fullmatch(key.lower())), "")


def _descend(walker: Walker, node: Any, chosen: Chosen, part: str) -> Any:
    """Enter one box after the other; return the node whose tensors are the weights."""
    for _ in range(_MAX_STEPS):
        inner = None if is_module(node) else items_of(node)
        if inner is None:
            return node
        chosen.beside.append(inner)
        bearing = {key_text(key): child for key, child in inner.items() if walker.bears(child)}
        boxes = {key: child for key, child in bearing.items() if not isinstance(child, Leaf)}
        if not boxes:
            return node
        loop = {key: reason for key, child in bearing.items() if (reason := _of_the_loop(key, child))}
        if "param_groups" in inner:
            loop = dict.fromkeys(bearing, "optimizer state")
        asked = _asked(boxes, part) if not chosen.path else None
        way = asked or _way(bearing, loop, not chosen.path, len(inner))
        if way is None:
            _note(chosen, {key: bearing[key] for key in loop}, loop)
            return {key: child for key, child in bearing.items() if key not in loop} if loop else node
        _note(chosen, {key: child for key, child in bearing.items() if key != way}, loop)
        node, chosen.path = bearing[way], (*chosen.path, way)
    return node


def _of_the_loop(key: str, child: Any) -> str:
    if isinstance(child, Mapping) and {"state", "param_groups"} <= child.keys():
        return "optimizer state"
    if isinstance(child, Leaf):
        # Among the dotted names of a state dict nothing is of the loop: `opt.weight` is a layer's.
        return "" if "." in key else loop_reason(key) or _figure(key, child)
    return loop_reason(key)


def _figure(key: str, leaf: Leaf) -> str:
    shape = getattr(getattr(leaf, "extent", leaf), "shape", ())
    return "figures" if _FIGURES.fullmatch(key.lower()) and shape in ((), (1,)) else ""


def _asked(boxes: Mapping[str, Any], part: str) -> str | None:
    if part in boxes:
        return part
    return next((key for key in boxes if part.lower() == "ema" and _AVERAGED.fullmatch(key)), None)


def _way(bearing: Mapping[str, Any], loop: Mapping[str, str], first: bool, size: int) -> str | None:
    """Return the key to enter, None when the weights are here."""
    boxes = [key for key, child in bearing.items() if not isinstance(child, Leaf) and key not in loop]
    tensors = [key for key, child in bearing.items() if isinstance(child, Leaf) and key not in loop]
    known = sorted((k for k in boxes if k.lower() in _WEIGHTS), key=lambda k: _WEIGHTS.index(k.lower()))
    if known and (first or (len(boxes) == 1 and not tensors)):
        return known[0]
    plain = [key for key in boxes if not _AVERAGED.fullmatch(key)] or boxes
    if len(plain) == 1 and not tensors and (size > 1 or _dotted(bearing[plain[0]])):
        return plain[0]
    return None


def _dotted(node: Any) -> bool:
    inner = items_of(node) or {}
    return any(isinstance(child, Leaf) and "." in key_text(key) for key, child in inner.items())


def _note(chosen: Chosen, rest: Mapping[str, Any], loop: Mapping[str, str]) -> None:
    """List what is not entered."""
    for number, (key, child) in enumerate(rest.items()):
        if number == _MAX_LISTED:
            chosen.skipped.append(Skip("...", f"{len(rest) - number:,} more things beside the weights"))
            return
        if key in loop:
            reason = f"{loop[key]}, not weights"
        elif isinstance(child, Leaf):
            reason = "a tensor beside the weights"
        else:
            what = "averaged weights" if _AVERAGED.fullmatch(key) else "beside the weights that were chosen"
            reason = f"{what}; part {key!r} opens it"
        chosen.skipped.append(Skip(".".join((*chosen.path, key))[:MAX_NAME], reason))


def _split_flat(chosen: Chosen, where: str, part: str) -> None:
    """Leave out what lies between the weights by name: averages (`model_ema.conv.weight`), optimizer state, gradients.

    With `part`, keep only the names that begin with it.
    """
    heads = {name: name.partition(".")[0] for name in chosen.leaves if "." in name}
    averaged = {name for name, head in heads.items() if _AVERAGED.fullmatch(head)}
    if part:
        wanted = {name for name, head in heads.items() if head == part or (part.lower() == "ema" and name in averaged)}
        if not wanted:
            known = {*map(key_text, *chosen.beside[:1]), *heads.values()}
            raise SourceError(f"{where} has no part {part!r}.{nearest(part, sorted(known)[:20])}")
        chosen.path = (heads[min(wanted)],)
        chosen.leaves = {name.partition(".")[2]: chosen.leaves[name] for name in chosen.leaves if name in wanted}
        return
    left_out = {name: "a gradient, not a weight" for name in chosen.leaves if name.endswith((".grad", "_grad"))}
    left_out |= {n: "training state, not weights" for n, head in heads.items() if _FLAT_STATE.fullmatch(head)}
    if chosen.leaves.keys() - averaged - left_out.keys():
        left_out |= {name: f"averaged weights; part {heads[name]!r} opens them" for name in sorted(averaged)}
    chosen.skipped += [Skip(name, reason) for name, reason in left_out.items()]
    chosen.leaves = {name: leaf for name, leaf in chosen.leaves.items() if name not in left_out}
