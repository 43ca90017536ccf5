"""Role tables: which stored tensor is which canonical weight, as data.

A rule maps a tensor-name template to one or more role templates and says how the stored array becomes canonical
matrices `[out, in]`:

- `transpose`: stored `[in, out]` (GPT-2's Conv1D).
- `split`: how one stored matrix holds several roles along its output axis. "equal" cuts equal parts, "heads"
  interleaves the parts head by head (GPT-NeoX, BLOOM), "groups" interleaves per key-value group (q heads of the group,
  then its k and v), or a tuple of integer configuration expressions such as `("n_heads*head_dim", "n_kv_heads*head_dim")`.
- `experts`: a stored 3-D array holds one matrix per expert; the role template has `{e}`.

Templates use `{i}` for the layer and `{e}` for the expert.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any


@dataclass(frozen=True)
class Rule:
    """One line of a table; `roles` empty means: left out on purpose, for `reason`."""

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


@lru_cache(maxsize=4096)
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"(\{[a-z]+\})", template)
    seen: set[str] = set()
    out = ""
    for part in parts:
        if not part.startswith("{"):
            out += re.escape(part)
        elif part[1:-1] in seen:
            out += f"(?P={part[1:-1]})"
        else:
            seen.add(part[1:-1])
            out += rf"(?P<{part[1:-1]}>\d+)"
    return re.compile(out)


@dataclass(frozen=True)
class RoleTable:
    """Rules in order (first match wins), tied names, and how a configuration names heads and widths.

    `tied` maps an alias tensor to the tensor it equals when the configuration ties them. `config` maps our words
    (`n_layers`, `n_heads`, `n_kv_heads`, `head_dim`, `d_model`) to keys of the checkpoint's configuration, several
    joined with `|`. `signature` lists templates that must all occur for a table to be recognised by names alone.
    """

    rules: tuple[Rule, ...]
    tied: tuple[tuple[str, str], ...] = ()
    config: Mapping[str, str] = None  # type: ignore[assignment]
    signature: tuple[str, ...] = ()

    def find(self, name: str) -> tuple[Rule, dict[str, str]] | None:
        """Return the first rule that fits a tensor name, with its indices."""
        for rule in self.rules:
            indices = rule.match(name)
            if indices is not None:
                return rule, indices
        return None

    def signature_matches(self, names: Collection[str]) -> bool:
        """Return whether every signature template matches some name (never for an empty signature)."""
        return bool(self.signature) and all(any(_pattern(t).fullmatch(n) for n in names) for t in self.signature)

    @cached_property
    def role_templates(self) -> tuple[str, ...]:
        """All role templates of the table."""
        return tuple(role for rule in self.rules for role in rule.roles)

    def facts(self, config: Mapping[str, Any]) -> dict[str, int]:
        """Return the integers our words stand for in this configuration; words it does not give are absent."""
        found: dict[str, int] = {}
        for word, keys in (self.config or {}).items():
            value = next((config[k] for k in keys.split("|") if config.get(k) is not None), None)
            if isinstance(value, int) and not isinstance(value, bool):
                found[word] = value
        if "n_heads" in found:
            found.setdefault("n_kv_heads", found["n_heads"])
            if "d_model" in found:
                found.setdefault("head_dim", found["d_model"] // found["n_heads"])
        return found


def table_from(data: Mapping[str, Any]) -> RoleTable:
    """Return a table from its TOML form (`docs/formats.md`): `[[rule]]` entries, `[tied]`, `[config]`, `signature`."""
    rules: Iterable[Mapping[str, Any]] = data.get("rule", ())
    return RoleTable(
        rules=tuple(
            Rule(
                tensor=r["tensor"],
                roles=tuple([r["role"]] if "role" in r else r.get("roles", ())),
                transpose=r.get("transpose", False),
                split=r["split"] if isinstance(r.get("split", "equal"), str) and "split" in r
                else tuple(r["split"]) if "split" in r else "equal",
                experts=r.get("experts", False),
                reason=r.get("reason", ""),
            )
            for r in rules
        ),
        tied=tuple(data.get("tied", {}).items()),
        config=dict(data.get("config", {})),
        signature=tuple(data.get("signature", ())),
    )
