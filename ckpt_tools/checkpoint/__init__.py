"""Open checkpoints and trajectories: what they hold is listed at once, and read tensor by tensor."""

from .checkpoint import Checkpoint
from .opener import open_checkpoint
from .source import Skip, TensorInfo, TensorSource
from .trajectory import Trajectory, open_trajectory

__all__ = [
    "Checkpoint",
    "Skip",
    "TensorInfo",
    "TensorSource",
    "Trajectory",
    "open_checkpoint",
    "open_trajectory",
]
