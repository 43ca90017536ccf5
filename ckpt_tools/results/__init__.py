"""Results: records checked, aligned along the trajectory, written as HDF5 and read back."""

from .origin import Trajectory
from .reader import Results, open_results, read_results
from .record import Record, check, check_batch, check_summary
from .series import Series
from .target import check_target
from .writer import Group, write_results

__all__ = [
    "Group",
    "Record",
    "Results",
    "Series",
    "Trajectory",
    "check",
    "check_batch",
    "check_summary",
    "check_target",
    "open_results",
    "read_results",
    "write_results",
]
