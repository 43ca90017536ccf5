"""Role tables written as TOML."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import resources
from typing import Any

from ..errors import PluginError, nearest
from .table import RoleTable, Rule, modules
from .template import condition, shape_pattern, template

# Where third parties' configurations keep what splitting needs; a table's own [config] comes on top.
CONFIG = {
    "n_layers": "num_hidden_layers|n_layer|n_layers|num_layers",
    "n_heads": "num_attention_heads|n_head|n_heads|num_heads",
    "n_kv_heads": "num_key_value_heads|n_kv_heads|n_kv_head|num_kv_heads",
    "head_dim": "head_dim",
    "d_model": "hidden_size|n_embd|d_model|dim|n_embed",
}
_KINDS: dict[str, type | tuple[type, ...]] = {
    "extends": str,
    "prefix": (str, list),
    "signature": list,
    "closed": bool,
    "tied_by_default": (bool, list),
    "config": dict,
    "shapes": dict,
    "tied": dict,
    "modules": dict,
    "tensors": dict,
    "ignore": dict,
}
_RULE_KINDS: dict[str, type | tuple[type, ...]] = {
    "role": str,
    "roles": list,
    "transpose": bool,
    "split": (str, list),
    "experts": bool,
    "heads": str,
    "shape": str,
    "beside": str,
    "whole": str,
    "number": int,
}
_SPLITS = ("equal", "interleaved", "heads", "groups")


def table_from(data: Mapping[str, Any], where: str) -> RoleTable:
    """Return a table from its parsed TOML form; `where` names it in errors.

    Raises PluginError naming `where` and the key for anything unknown, of the wrong type, or malformed.
    """
    _check_kinds(data, _KINDS, where)
    if "extends" in data:
        data = _merged(_shipped(data["extends"], where), data)
    prefix = data.get("prefix", "")
    default = data.get("tied_by_default", True)
    for key, texts in (("signature", data.get("signature", ())), ("shapes", data.get("shapes", {}).values())):
        _check_conditions(key, texts, where)
    return RoleTable(
        rules=tuple(_rules(data, where)),
        tied=tuple(_tie(alias, to, where) for alias, to in data.get("tied", {}).items()),
        config={**CONFIG, **data.get("config", {})},
        signature=tuple(data.get("signature", ())),
        prefix=prefix if isinstance(prefix, str) else tuple(prefix),
        tied_by_default=default if isinstance(default, bool) else tuple(default),
        shapes=dict(data.get("shapes", {})),
        closed=data.get("closed", False),
    )


def shipped_tables() -> dict[str, str]:
    """Return the text of every table of this package by name."""
    folder = resources.files(f"{__package__}.tables")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {f.name.removesuffix(".toml"): f.read_text("utf-8") for f in files}


@lru_cache(maxsize=64)
def parsed(text: str) -> Mapping[str, Any]:
    """Return what a table in TOML says; raises tomllib.TOMLDecodeError."""
    return tomllib.loads(text)


@lru_cache(maxsize=1)
def _parsed() -> dict[str, Mapping[str, Any]]:
    return {name: parsed(text) for name, text in shipped_tables().items()}


def _shipped(name: str, where: str) -> dict[str, Any]:
    if name not in _parsed():
        raise PluginError(f"{where}: extends {name!r}, which is no table of this package.{nearest(name, _parsed())}")
    base = _parsed()[name]
    return _merged(_shipped(base["extends"], name), base) if "extends" in base else {**base}


# What a table does not take over from the one it extends: these say which checkpoints are meant.
_OWN = ("extends", "model_types", "signature", "closed", "tied_by_default", "loads", "name")


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return `own` over `base`, section by section; entries of `own` that `base` lacks come last."""
    found = {k: v for k, v in base.items() if k not in _OWN}
    for key, value in own.items():
        found[key] = {**found.get(key, {}), **value} if isinstance(value, dict) else value
    return found


def _check_kinds(data: Mapping[str, Any], kinds: Mapping[str, Any], where: str) -> None:
    for key, value in data.items():
        if key not in kinds:
            raise PluginError(f"{where}: unknown key {key!r}.{nearest(key, kinds)}")
        if not isinstance(value, kinds[key]):
            raise PluginError(f"{where}: {key} must be {_words(kinds[key])}. Got {value!r} instead.")
        if isinstance(value, list) and not all(isinstance(item, str) for item in value):
            raise PluginError(f"{where}: {key} must hold texts only. Got {value!r} instead.")


def _words(kind: Any) -> str:
    names = {str: "a text", list: "a list of texts", bool: "true or false", dict: "a table", int: "a whole number"}
    return " or ".join(names[k] for k in (kind if isinstance(kind, tuple) else (kind,)))


def _check_conditions(key: str, texts: Any, where: str) -> None:
    for text in texts:
        for part in str(text).lstrip("!").split(" | "):
            try:
                condition(part)
            except ValueError as error:
                raise PluginError(f"{where}: {key}: {error}.") from None


def _tie(alias: str, to: Any, where: str) -> tuple[str, ...]:
    names = [to] if isinstance(to, str) else to
    if not isinstance(names, list) or not 1 <= len(names) <= 2 or not all(isinstance(name, str) for name in names):
        raise PluginError(f"{where}: tied: {alias!r} must be a tensor name or [tensor, beside]. Got {to!r} instead.")
    return (alias, *names)


def _rules(data: Mapping[str, Any], where: str) -> Iterator[Rule]:
    for section in (key for key in data if key in ("tensors", "modules")):
        for name, value in data[section].items():
            here = f"{where}: {section}: {name!r}"
            for choice in value if isinstance(value, list) else [value]:
                roles, how = _how(choice, here)
                made = modules(name, roles, **how) if section == "modules" else (Rule(name, roles, **how),)
                yield from (_checked(rule, here) for rule in made)
    for name, reason in data.get("ignore", {}).items():
        yield _checked(Rule(name, reason=str(reason)), f"{where}: ignore: {name!r}")


def _how(value: Any, here: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    if isinstance(value, str):
        return tuple(_expanded(value)), {}
    if not isinstance(value, Mapping):
        raise PluginError(f"{here} must be a role or a table with role or roles. Got {value!r} instead.")
    _check_kinds(value, _RULE_KINDS, here)
    if ("role" in value) == ("roles" in value):
        raise PluginError(f"{here} needs role (one text) or roles (a list), not both. Got {dict(value)} instead.")
    how = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k not in ("role", "roles")}
    return tuple(r for role in value.get("roles") or [value["role"]] for r in _expanded(role)), how


def _expanded(role: str) -> list[str]:
    """Return the roles that `layers.{i}.attn.{q|k|v}` stands for."""
    found = re.search(r"\{([^{}]*\|[^{}]*)\}", role)
    return [role] if found is None else [role.replace(found[0], choice) for choice in found[1].split("|")]


def _checked(rule: Rule, here: str) -> Rule:
    """Return a rule whose templates, patterns and words make sense, or raise PluginError."""
    try:
        keys = {*template(rule.tensor).keys, *("e" * rule.experts), *("n" * (rule.number is not None))}
        needed = {key for role in (*rule.roles, rule.whole) for key in template(role).keys}
        if rule.shape:
            shape_pattern(rule.shape)
        if rule.beside:
            needed |= set(condition(rule.beside)[0].keys)
    except ValueError as error:
        raise PluginError(f"{here}: {error}.") from None
    if needed - keys:
        raise PluginError(f"{here}: {{{min(needed - keys)}}} does not occur in the tensor name.")
    if rule.heads not in ("", "in", "out"):
        raise PluginError(f'{here}: heads must be "in" or "out". Got {rule.heads!r} instead.')
    if isinstance(rule.split, str) and rule.split not in _SPLITS and ":" not in rule.split:
        known = ", ".join(_SPLITS)
        raise PluginError(f"{here}: split must be {known}, a : b : c or a list. Got {rule.split!r} instead.")
    parts = len(rule.split.split(":")) if isinstance(rule.split, str) else len(rule.split)
    if rule.split not in _SPLITS and parts != len(rule.roles):
        raise PluginError(f"{here}: split gives {parts} parts, but there are {len(rule.roles)} roles.")
    return rule
