"""Open checkpoints, run analyzers over their trajectory, store the numbers as HDF5.

Public names are imported on first use, so that `import ckpt_tools` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analyzer import Analyzer as Analyzer
    from .analyzer import Figure as Figure
    from .analyzer import Out as Out
    from .arrays import to_numpy as to_numpy
    from .checkpoint import Checkpoint as Checkpoint
    from .checkpoint import Trajectory as Trajectory
    from .checkpoint import open_checkpoint as open_checkpoint
    from .checkpoint import open_trajectory as open_trajectory
    from .data import DataSource as DataSource
    from .data import ProbeSource as ProbeSource
    from .engine import Outcome as Outcome
    from .engine import analyze as analyze
    from .errors import CkptError as CkptError
    from .errors import OptionError as OptionError
    from .errors import PluginError as PluginError
    from .errors import ResultsError as ResultsError
    from .errors import RunError as RunError
    from .errors import SourceError as SourceError
    from .errors import nearest as nearest
    from .family import Activations as Activations
    from .family import Family as Family
    from .hookspecs import hookimpl as hookimpl
    from .host import ModelHost as ModelHost
    from .losses import linear_cross_entropy as linear_cross_entropy
    from .model import Model as Model
    from .options import Option as Option
    from .options import Options as Options
    from .options import option as option
    from .results import Series as Series
    from .results import open_results as open_results
    from .results import read_results as read_results
    from .roles import RoleTable as RoleTable
    from .roles import Rule as Rule
    from .roles import WeightInfo as WeightInfo
    from .roles import module as module
    from .roles import modules as modules
    from .run import Recorder as Recorder
    from .run import RunInfo as RunInfo
    from .run import RunWriter as RunWriter
    from .run import Schedule as Schedule
    from .run import is_run as is_run
    from .run import read_run as read_run
    from .spectra import Spectrum as Spectrum
    from .spectra import product_singular_values as product_singular_values
    from .spectra import singular_values as singular_values
    from .text import load_encoder as load_encoder
    from .view import BatchView as BatchView
    from .view import View as View
    from .weights import AttentionWeights as AttentionWeights

_PUBLIC = {
    "analyzer": ("Analyzer", "Figure", "Out"),
    "arrays": ("to_numpy",),
    "checkpoint": ("Checkpoint", "Trajectory", "open_checkpoint", "open_trajectory"),
    "data": ("DataSource", "ProbeSource"),
    "engine": ("Outcome", "analyze"),
    "errors": ("CkptError", "OptionError", "PluginError", "ResultsError", "RunError", "SourceError", "nearest"),
    "family": ("Activations", "Family"),
    "hookspecs": ("hookimpl",),
    "host": ("ModelHost",),
    "losses": ("linear_cross_entropy",),
    "model": ("Model",),
    "options": ("Option", "Options", "option"),
    "results": ("Series", "open_results", "read_results"),
    "roles": ("RoleTable", "Rule", "WeightInfo", "module", "modules"),
    "run": ("Recorder", "RunInfo", "RunWriter", "Schedule", "is_run", "read_run"),
    "spectra": ("Spectrum", "product_singular_values", "singular_values"),
    "text": ("load_encoder",),
    "view": ("BatchView", "View"),
    "weights": ("AttentionWeights",),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
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
