"""Role tables: which stored tensor is which canonical weight, as data.

A rule maps a tensor-name template to one or more role templates and says how the stored array becomes canonical
matrices `[out, in]`. Templates use `{i}` for the layer and `{e}` for the expert:

- `transpose`: the tensor is stored `[in, out]` (GPT-2's Conv1D).
- `split`: how one stored matrix holds several roles along its output axis. `"equal"` cuts equal parts, `"heads"`
  interleaves the parts head by head (GPT-NeoX, BLOOM), `"groups"` interleaves per key-value group (the group's q heads,
  then its k, then its v); a tuple gives each part's size as a product such as `"n_heads*head_dim"`.
- `experts`: a stored 3-D array holds one matrix per expert, and the role template has `{e}`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from ..errors import PluginError


@dataclass(frozen=True)
class Rule:
    """One line of a table; without `roles` the tensor is left out on purpose, for `reason`."""

    tensor: str
    roles: tuple[str, ...] = ()
    transpose: bool = False
    split: str | tuple[str, ...] = "equal"
    experts: bool = False
    reason: str = ""

    def match(self, name: str) -> dict[str, str] | None:
        """Return the template's indices (`{"i": "3"}`) when `name` fits, else None."""
        found = _pattern(self.tensor).fullmatch(name)
        return found.groupdict() if found else None


def module(name: str, role: str, **how: Any) -> tuple[Rule, Rule]:
    """Return the rules of a module's `weight` and `bias`: `module("h.{i}.mlp.c_fc", "layers.{i}.mlp.up")`."""
    return modules(name, (role,), **how)


def modules(name: str, roles: tuple[str, ...], **how: Any) -> tuple[Rule, Rule]:
    """Return the rules of a module that fuses several roles in one `weight` and one `bias`."""
    return Rule(f"{name}.weight", roles, **how), Rule(f"{name}.bias", tuple(f"{r}.bias" for r in roles), **how)


@lru_cache(maxsize=4096)
def _pattern(template: str) -> re.Pattern[str]:
    seen: set[str] = set()
    out = ""
    for part in re.split(r"(\{[a-z]+\})", template):
        key = part[1:-1]
        if not part.startswith("{"):
            out += re.escape(part)
        elif key in seen:
            out += f"(?P={key})"
        else:
            seen.add(key)
            out += rf"(?P<{key}>\d+)"
    return re.compile(out)


@dataclass(frozen=True)
class RoleTable:
    """Rules (first match wins), tied names, and the words a configuration uses for heads and widths.

    `tied` maps an alias tensor to the tensor it equals when the configuration ties them. `config` maps our words
    (`n_layers`, `n_heads`, `n_kv_heads`, `head_dim`, `d_model`) to configuration keys, alternatives joined by `|`.
    `signature` lists templates that must all occur for recognition by names alone. `prefix` may be absent from names.
    """

    rules: tuple[Rule, ...]
    tied: tuple[tuple[str, str], ...] = ()
    config: Mapping[str, str] = field(default_factory=dict)
    signature: tuple[str, ...] = ()
    prefix: str = ""

    def find(self, name: str) -> tuple[int, Rule, dict[str, str]] | None:
        """Return the first rule that fits a tensor name, its position and its indices."""
        bare = name.removeprefix(self.prefix)
        for position, rule in enumerate(self.rules):
            indices = rule.match(bare)
            if indices is not None:
                return position, rule, indices
        return None

    def signature_matches(self, names: Collection[str]) -> bool:
        """Return whether every signature template matches some name (never for an empty signature)."""
        bare = [n.removeprefix(self.prefix) for n in names]
        return bool(self.signature) and all(any(_pattern(t).fullmatch(n) for n in bare) for t in self.signature)

    def tied_names(self, names: Collection[str], config: Mapping[str, Any]) -> dict[str, str]:
        """Return `{absent alias: stored tensor}` for the ties of this checkpoint.

        A tie holds when the alias is not stored and the configuration does not deny it.
        """
        if config.get("tie_word_embeddings") is False:
            return {}
        found = {}
        for alias, target in self.tied:
            stored = next((n for n in (self.prefix + target, target) if n in names), None)
            if stored and alias not in names and self.prefix + alias not in names:
                found[alias] = stored
        return found

    @cached_property
    def role_templates(self) -> tuple[str, ...]:
        """All role templates of the table, in order."""
        return tuple(role for rule in self.rules for role in rule.roles)

    def facts(self, config: Mapping[str, Any]) -> dict[str, int]:
        """Return the integers our words stand for in this configuration; words it does not give are absent."""
        found: dict[str, int] = {}
        for word, keys in self.config.items():
            value = next((config[k] for k in keys.split("|") if config.get(k) is not None), None)
            if isinstance(value, int) and not isinstance(value, bool):
                found[word] = value
        if found.get("n_heads"):
            found.setdefault("n_kv_heads", found["n_heads"])
            if "d_model" in found:
                found.setdefault("head_dim", found["d_model"] // found["n_heads"])
        return found


_KEYS = {"model_types", "signature", "prefix", "config", "tied", "modules", "tensors", "ignore"}
_RULE_KEYS = {"role", "roles", "transpose", "split", "experts"}


def table_from(data: Mapping[str, Any], where: str) -> RoleTable:
    """Return a table from its TOML form; `where` names it in errors.

    Sections: `[modules]` (name -> role, weight and bias implied), `[tensors]` (full name -> role), `[ignore]` (full
    name -> reason), `[tied]`, `[config]`; values of the first two are a role or `{roles=..., transpose=..., ...}`.
    """
    unknown = sorted(set(data) - _KEYS)
    if unknown:
        raise PluginError(f"{where}: unknown key {unknown[0]!r}; a role table has {', '.join(sorted(_KEYS))}.")
    return RoleTable(
        rules=tuple(_rules(data, where)),
        tied=tuple(data.get("tied", {}).items()),
        config=dict(data.get("config", {})),
        signature=tuple(data.get("signature", ())),
        prefix=data.get("prefix", ""),
    )


def _rules(data: Mapping[str, Any], where: str) -> Iterator[Rule]:
    for name, value in data.get("tensors", {}).items():
        roles, how = _how(value, f"{where}: tensor {name!r}")
        yield Rule(name, roles, **how)
    for name, value in data.get("modules", {}).items():
        roles, how = _how(value, f"{where}: module {name!r}")
        yield from modules(name, roles, **how)
    for name, reason in data.get("ignore", {}).items():
        yield Rule(name, reason=reason)


def _how(value: Any, where: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    if isinstance(value, str):
        return (value,), {}
    unknown = sorted(set(value) - _RULE_KEYS)
    if unknown or not (value.get("role") or value.get("roles")):
        raise PluginError(f"{where}: expected role or roles, and any of transpose, split, experts. Got {dict(value)}.")
    how = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k not in ("role", "roles")}
    return tuple(value.get("roles") or [value["role"]]), how
