"""Runs on disk: what a trainer writes and what describes a trajectory of our own."""

from __future__ import annotations

from .reader import RunInfo, is_run, read_metrics, read_probe, read_run
from .schedule import Schedule
from .writer import RunWriter

__all__ = ["RunInfo", "RunWriter", "Schedule", "is_run", "read_metrics", "read_probe", "read_run"]
