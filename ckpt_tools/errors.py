"""The one tree of errors a user can mend.

The command line prints a `CkptError` without traceback and exits with 2. Any other exception is a bug in the tool
or in a plugin and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 1_600
"""Most characters of a message about a source."""


class CkptError(Exception):
    """Base of all errors whose message says what, where, what was expected and what to do."""


class SourceError(CkptError):
    """A checkpoint, run or trajectory cannot be opened or read.

    A stranger's file may hold names of megabytes: the middle of a very long message is left out.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} [...] {text[-_LONGEST // 4 :]}"


class FetchError(SourceError):
    """A remote checkpoint cannot be fetched: refused, gone, changed, or the network gave out. Others may be well."""


class FormatError(SourceError):
    """A file is not what it claims to be: truncated, malformed, hostile, or of an unknown format."""


class OptionError(CkptError):
    """An option does not exist, has the wrong type or lies outside its range."""


class PluginError(CkptError):
    """A plugin is missing, broken, badly declared, or returned something it did not declare."""


class ResultsError(CkptError):
    """A results file cannot be written or read."""


class RunError(CkptError):
    """A run folder cannot be created, written or resumed."""


class ClusterError(CkptError):
    """A cluster cannot be reached or started, or was lost."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the closest known name, or the list of known names when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(names)}." if names else ""
