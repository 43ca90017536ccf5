"""Role tables: which stored tensor is which canonical weight, as data.

A rule maps a tensor-name template (see `template`) to one or more role templates and says how the stored array becomes
canonical matrices `[out, in]`:

- `transpose`: the tensor is stored `[in, out]` (GPT-2's Conv1D).
- `split`: how one stored matrix holds several roles along its output axis. `"equal"` cuts equal parts, `"interleaved"`
  takes every n-th row, `"heads"` interleaves the parts head by head (GPT-NeoX, BLOOM), `"groups"` interleaves per
  key-value group (the group's q heads, then its k, then its v), `"a : b : c"` cuts in that proportion, and a tuple
  gives each part's size. Proportions and sizes are products such as `"n_heads*head_dim"`; the size `"*"` is an equal
  share of the rest.
- `experts`: the first axis of the stored array counts experts, and the role template has `{e}`.
- `heads`: a stored `[head, in, out]` array of one small matrix per head: `"out"` when the heads make up the output axis
  (q, k, v), `"in"` when they make up the input axis (o).
- `shape`, `beside`: the rule only holds for tensors of this shape, or beside such another tensor.
- `whole`: the role of the undivided tensor where the facts needed to split it are unknown.
- `number`: the `{n}` of a role whose tensor name has none (the output layer of an MLP: a large number).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from .leftout import is_buffer
from .template import template

_LAYER = re.compile(r"(?:^|\.)[0-9]+\.")


@dataclass(frozen=True)
class Rule:
    """One line of a table; without `roles` the tensor is left out on purpose, for `reason`."""

    tensor: str
    roles: tuple[str, ...] = ()
    transpose: bool = False
    split: str | tuple[str, ...] = "equal"
    experts: bool = False
    reason: str = ""
    heads: str = ""
    shape: str = ""
    beside: str = ""
    whole: str = ""
    number: int | None = None

    def match(self, name: str) -> dict[str, str] | None:
        """Return the template's indices (`{"i": "3"}`) when `name` fits, else None."""
        return template(self.tensor).match(name)


def module(name: str, role: str, **how: Any) -> tuple[Rule, Rule]:
    """Return the rules of a module's `weight` and `bias`: `module("h.{i}.mlp.c_fc", "layers.{i}.mlp.up")`."""
    return modules(name, (role,), **how)


def modules(name: str, roles: tuple[str, ...], **how: Any) -> tuple[Rule, Rule]:
    """Return the rules of a module that fuses several roles in one `weight` and one `bias`.

    A `*` in the name stands for these two words where they are not its end: `gru.*_hh_l0`. A `shape` is that of the
    weight; the bias rule holds beside such a weight.
    """
    star = name if "*" in name else f"{name}.*"
    weight, bias = star.replace("*", "weight"), star.replace("*", "bias")
    of_bias = {**how, "shape": "", "whole": f"{how['whole']}.bias" if how.get("whole") else ""}
    if how.get("shape") and not how.get("beside"):
        of_bias["beside"] = f"{weight} {how['shape']}"
    return Rule(weight, roles, **how), Rule(bias, tuple(f"{role}.bias" for role in roles), **of_bias)


@dataclass(frozen=True)
class RoleTable:
    """Rules (the first that holds wins) and what is known of the checkpoints they fit.

    `tied`: pairs (alias, tensor), or (alias, tensor, third) for ties that only hold beside a third tensor; the tensor
    may be given as `a | b`;
    `tied_by_default`: whether models are tied whose configuration does not say so, or the model types that are.
    `config`: our words (`n_layers`, `n_heads`, `n_kv_heads`, `head_dim`, `d_model`) to configuration keys, see `facts`;
    `shapes`: words to conditions whose letter `n` gives them, such as `layers.{i}.mixer.A_log [n]`.
    `signature`: templates that must all occur for recognition by names alone (`a | b`: either; `!a`: must not).
    `prefix` may be absent from names; several alternatives may be given. `closed`: the table is only for checkpoints
    all of whose matrices it knows.
    """

    rules: tuple[Rule, ...]
    tied: tuple[tuple[str, ...], ...] = ()
    config: Mapping[str, str] = field(default_factory=dict)
    signature: tuple[str, ...] = ()
    prefix: str | tuple[str, ...] = ""
    tied_by_default: bool | tuple[str, ...] = True
    shapes: Mapping[str, str] = field(default_factory=dict)
    closed: bool = False

    @cached_property
    def prefixes(self) -> tuple[str, ...]:
        """All prefixes, longest first, and the empty one."""
        given = (self.prefix,) if isinstance(self.prefix, str) else self.prefix
        return tuple(sorted({*given, ""}, key=len, reverse=True))

    @cached_property
    def role_templates(self) -> tuple[str, ...]:
        """All role templates of the table, in order."""
        return tuple(role for rule in self.rules for role in rule.roles)

    def bare(self, name: str) -> str:
        """Return a tensor name without the table's prefix."""
        for prefix in self.prefixes:
            if name.startswith(prefix):
                return name[len(prefix) :]
        return name

    def find(self, name: str) -> tuple[int, Rule, dict[str, str]] | None:
        """Return the first unconditional rule that fits a tensor name, its position and its indices."""
        bare = self.bare(name)
        for position, rule in enumerate(self.rules):
            indices = None if rule.shape or rule.beside else rule.match(bare)
            if indices is not None:
                return position, rule, indices
        return None

    def signature_matches(self, names: Collection[str]) -> bool:
        """Return whether names are those of this table's checkpoints (never for an empty signature)."""
        return bool(self.signature) and self.outer(names) is not None

    def outer(self, names: Collection[str]) -> str | None:
        """Return what wraps all names outside the table's own prefix (`"model."`, mostly ""), or None for no fit."""
        wrap, few = "", _one_per_kind(frozenset(names))
        while not self._fits([self.bare(n[len(wrap) :]) for n in few]):
            first, dot, _ = few[0][len(wrap) :].partition(".") if few else ("", "", "")
            wrap += first + dot
            if not dot or not all(n.startswith(wrap) for n in few):
                return None
        return wrap

    def _fits(self, bare: Collection[str]) -> bool:
        for entry in self.signature:
            wanted = not entry.startswith("!")
            choices = [template(t.strip()) for t in entry.lstrip("!").split(" | ")]
            if wanted != any(t.match(n) is not None for t in choices for n in bare):
                return False
        return not self.closed or all(is_buffer(n) or self._knows(n) for n in bare)

    def _knows(self, bare: str) -> bool:
        return any(rule.match(bare) is not None for rule in self.rules)

    def facts(self, config: Mapping[str, Any], sizes: Mapping[str, int] | None = None) -> dict[str, int]:
        """Return the whole numbers our words stand for; words that neither configuration nor `sizes` give are absent.

        A word's keys are alternatives joined by `|`; the first that gives a positive whole number counts. An
        alternative may be a number, and may depend on another key: `multi_query=true:1`.
        """
        given = flat_config(config)
        found = {word: value for word, keys in self.config.items() if (value := _number(keys, given)) is not None}
        found = {**(sizes or {}), **found}
        if found.get("n_heads"):
            found.setdefault("n_kv_heads", found["n_heads"])
            if "d_model" in found:
                found.setdefault("head_dim", found["d_model"] // found["n_heads"])
        return found


@lru_cache(maxsize=8)
def _one_per_kind(names: frozenset[str]) -> list[str]:
    """Return, of names that differ in their first numeric part only, one: the layers of a model are alike."""
    return list({_LAYER.sub(".", name, count=1): name for name in sorted(names)}.values())


_TEXT_PARTS = ("text_config", "llm_config", "language_config", "decoder")


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the language model's part of a multimodal one on top."""
    parts = [config[key] for key in _TEXT_PARTS if isinstance(config.get(key), Mapping)]
    return {**config, **{k: v for part in parts for k, v in part.items() if v is not None}}


def _number(keys: str, config: Mapping[str, Any]) -> int | None:
    for alternative in keys.split("|"):
        given, _, key = alternative.strip().rpartition(":")
        switch, _, wanted = given.partition("=")
        if given and str(config.get(switch)).lower() != wanted:
            continue
        value = int(key) if key.isdigit() else config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
