"""Results files side by side: two of them cell by cell, or two sets of runs with paired statistics."""

from .cells import Comparison, Difference, compare
from .statistics import Effect, Effects, effects

__all__ = ["Comparison", "Difference", "Effect", "Effects", "compare", "effects"]
