"""Open checkpoints, run analyzers over their trajectory, store the numbers as HDF5.

Public names are imported on first use, so that `import ckpt_tools` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analyzer import Analyzer as Analyzer
    from .analyzer import Out as Out
    from .checkpoint import open_checkpoint as open_checkpoint
    from .checkpoint import open_trajectory as open_trajectory
    from .engine import analyze as analyze
    from .errors import CkptError as CkptError
    from .errors import OptionError as OptionError
    from .errors import RunError as RunError
    from .errors import nearest as nearest
    from .family import Activations as Activations
    from .family import Family as Family
    from .hookspecs import hookimpl as hookimpl
    from .options import Option as Option
    from .options import Options as Options
    from .options import option as option
    from .results import open_results as open_results
    from .roles.table import RoleTable as RoleTable
    from .roles.table import Rule as Rule
    from .run import RunWriter as RunWriter
    from .run import Schedule as Schedule
    from .spectra import product_singular_values as product_singular_values
    from .spectra import singular_values as singular_values

_HOME = {
    "Analyzer": "analyzer",
    "Out": "analyzer",
    "open_checkpoint": "checkpoint",
    "open_trajectory": "checkpoint",
    "analyze": "engine",
    "CkptError": "errors",
    "OptionError": "errors",
    "RunError": "errors",
    "nearest": "errors",
    "Activations": "family",
    "Family": "family",
    "hookimpl": "hookspecs",
    "Option": "options",
    "Options": "options",
    "option": "options",
    "open_results": "results",
    "RoleTable": "roles.table",
    "Rule": "roles.table",
    "RunWriter": "run",
    "Schedule": "run",
    "product_singular_values": "spectra",
    "singular_values": "spectra",
}
__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ckpt_tools' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
