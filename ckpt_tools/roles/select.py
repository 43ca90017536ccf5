"""Choose matrices by name."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from ..errors import OptionError, nearest


def select_names(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that match any pattern (all for no pattern); a pattern that matches nothing is an error."""
    chosen = dict.fromkeys(n for n in names if not patterns)
    for pattern in patterns:
        found = [n for n in names if fnmatchcase(n, pattern)]
        if not found:
            raise OptionError(f"No matrix matches {pattern!r}.{nearest(pattern, names)} See `ckpt inspect`.")
        chosen.update(dict.fromkeys(found))
    return [n for n in names if n in chosen]
