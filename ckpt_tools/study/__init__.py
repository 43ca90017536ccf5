"""Studies: a paper's experiment as a short file that declares runs, analyses, claims and figures.

Names are imported on first use, so that a study file costs next to nothing to read.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .declare import Analysis as Analysis
    from .declare import Claim as Claim
    from .declare import Figure as Figure
    from .declare import Run as Run
    from .declare import Study as Study
    from .declare import Table as Table
    from .declare import first as first
    from .found import Found as Found
    from .found import Measures as Measures
    from .found import RunResults as RunResults
    from .judge import Verdict as Verdict
    from .judge import verdicts as verdicts
    from .load import Loaded as Loaded
    from .load import load_study as load_study
    from .perform import Performance as Performance
    from .perform import perform as perform
    from .report import write_report as write_report

_PUBLIC = {
    "declare": ("Analysis", "Claim", "Figure", "Run", "Study", "Table", "first"),
    "found": ("Found", "Measures", "RunResults"),
    "judge": ("Verdict", "verdicts"),
    "load": ("Loaded", "load_study"),
    "perform": ("Performance", "perform"),
    "report": ("write_report",),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ckpt_tools.study' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
