"""What the run behind a results file was made with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from .reader import Results

SEEDS = ("seed", "train.seed")
_PART = re.compile(r"(\w+)=([^_]+(?:_[^_=]+)*?)(?=_\w+=|$)")


def settings_of(found: Results) -> dict[str, Any]:
    """Return what a run was made with, flat (`config.gamma`, `train.lr`, `seed`), else what its folder's name says."""
    run = found.attrs.get("run") or {}
    flat = {
        f"{part}.{key}": value
        for part, settings in run.items()
        if isinstance(settings, Mapping)
        for key, value in settings.items()
    }
    flat |= {key: value for key, value in run.items() if not isinstance(value, Mapping)}
    name = PurePath(str(found.attrs.get("source", ""))).name
    return flat or {key: _number(value) for key, value in _PART.findall(name)}


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def seed_of(found: Results) -> str:
    """Return the seed of the run, as text; "" when nothing says it."""
    settings = settings_of(found)
    return next((str(settings[name]) for name in SEEDS if name in settings), "")
