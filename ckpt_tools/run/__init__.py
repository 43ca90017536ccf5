"""Runs on disk: what a trainer writes and what describes a trajectory of our own."""

from __future__ import annotations

from .copying import Copied
from .pack import check_run, pack
from .reader import RunInfo, is_run, read_metrics, read_probe, read_run
from .recorder import Recorder
from .schedule import Schedule
from .unpack import unpack
from .writer import RunWriter

__all__ = [
    "Copied",
    "Recorder",
    "RunInfo",
    "RunWriter",
    "Schedule",
    "check_run",
    "is_run",
    "pack",
    "read_metrics",
    "read_probe",
    "read_run",
    "unpack",
]
