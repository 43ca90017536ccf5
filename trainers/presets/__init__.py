"""Presets: settings shipped by name, one TOML file per task.

A file has one table per preset, `[mini]`, whose sub-tables `[mini.transformer]` hold what is for one family only. A
`from` in the table says where the settings come from. Settings of a family that has them are taken, others are not:
presets also serve families that they were not written for.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from importlib import resources
from typing import Any

from ckpt_tools import OptionError, nearest


def presets(task: str) -> dict[str, dict[str, Any]]:
    """Return all presets of a task by name; none for a task without a file."""
    file = resources.files(__package__) / f"{task}.toml"
    return tomllib.loads(file.read_text("utf-8")) if file.is_file() else {}


def preset(family: str, task: str, name: Any, known: Collection[str]) -> dict[str, Any]:
    """Return the settings of a preset for a family, those in `known`; nothing for no name.

    Raises OptionError with the nearest name.
    """
    if name is None or str(name).lower() in ("", "none"):
        return {}
    there = presets(task)
    if name not in there:
        raise OptionError(f"Task {task} has no preset {str(name)!r}.{nearest(str(name), there)}")
    general = {key: value for key, value in there[name].items() if not isinstance(value, Mapping)}
    found = {**general, **there[name].get(family, {})}
    return {key: value for key, value in found.items() if key in known}
