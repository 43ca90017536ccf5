"""A trajectory made of revisions: the branches and tags of a repository that fit `hf://org/name@step*`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NoReturn

from ...errors import FetchError, nearest
from ..location import Item, RemotePath, Store
from ..source import Skip
from ..steps import step_in_name
from .hub import HubStore, Repository, parse_address

_NUMBER = re.compile(r"\d{1,18}", re.ASCII)


@dataclass(frozen=True)
class Revisions:
    """What fits a pattern: steps with their folders, all pinned, and what was left out."""

    path: RemotePath
    steps: list[tuple[int, RemotePath]]
    skipped: list[Skip]


class _Pattern(Store):
    """Stands for all revisions that fit; it has no files of its own."""

    def __init__(self, url: str) -> None:
        self.url = self.label = url

    def listing(self, folder: str) -> dict[str, Item]:
        """Return nothing: files belong to one revision."""
        return {}

    def open(self, path: RemotePath) -> NoReturn:
        """Refuse."""
        raise FetchError(f"{path} is no file.")


def matching(url: str, cache_size: int | None = None) -> Revisions | None:
    """Return the revisions that an `hf://` URL with a pattern fits, None for a URL without one.

    All names are resolved to commits by one request. A name without a number is skipped. Raises FetchError when
    nothing fits or the repository cannot be asked.
    """
    address = parse_address(url)
    if not address.is_pattern:
        return None
    repository = Repository(address.repository, cache_size)
    refs = repository.refs()
    fitting = sorted(name for name in refs if fnmatchcase(name, address.revision))
    if not fitting:
        raise FetchError(
            f"None of the {len(refs)} revisions of {address.repository} fits {address.revision!r}."
            f"{nearest(address.revision.strip('*?'), refs)}"
        )
    taken: dict[tuple[int, str], str] = {}
    skipped: list[Skip] = []
    for name in fitting:
        step = step_of(name, address.revision)
        if step is None:
            skipped.append(Skip(name, "a revision whose name holds no step"))
        elif taken.setdefault((step, refs[name]), name) != name:
            skipped.append(Skip(name, f"the same step and commit as {taken[step, refs[name]]}"))
    if not taken:
        raise FetchError(f"{url}: no name of the {len(fitting)} revisions that fit holds a step, as in step1000.")
    stores = [(step, HubStore(repository, commit, name)) for (step, commit), name in taken.items()]
    steps = [(step, RemotePath(store, address.folder)) for step, store in stores]
    return Revisions(RemotePath(_Pattern(str(address))), steps, skipped)


def step_of(name: str, pattern: str) -> int | None:
    """Return the step that a revision's name mentions (`step1000`), or its only number that the pattern left open."""
    step = step_in_name(name)
    if step is not None:
        return step
    known = set(_NUMBER.findall(pattern))
    numbers = [text for text in _NUMBER.findall(name) if text not in known]
    return int(numbers[0]) if len(numbers) == 1 else None
