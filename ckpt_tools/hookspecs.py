"""The two hooks a plugin may implement. Both return data; nothing else is called at load time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from .analyzer import Analyzer
    from .family import Family

PROJECT = "ckpt_tools"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def ckpt_analyzers() -> list[type[Analyzer]]:  # type: ignore[empty-body]
    """Return the analyzer classes this plugin provides."""


@hookspec
def ckpt_families() -> list[type[Family]]:  # type: ignore[empty-body]
    """Return the families this plugin provides."""
