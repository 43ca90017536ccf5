"""What the parts of a pickle become when nothing is imported and nothing is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Builder = Callable[[str, tuple[Any, ...]], Any]
Persistent = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Global:
    """A name that the pickle wanted imported: `str()` of it is `module.name`."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True)
class Blob:
    """A long byte string that was left where it lies, `offset` bytes into the file."""

    offset: int
    size: int


@dataclass(slots=True, eq=False)
class Instance:
    """An object of a class that is not known here: what it was called with and what was put into it. Does nothing."""

    kind: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] | None = None
    values: list[Any] | None = None

    @property
    def fields(self) -> dict[Any, Any]:
        """The instance's attributes as far as the pickle tells."""
        state = self.state
        if isinstance(state, tuple):  # attributes, slots
            state = next((part for part in state if isinstance(part, dict) and part), None)
        return state if isinstance(state, dict) else {}


class Stateful:
    """A value made by a builder that wants the state which the pickle gives it afterwards."""

    def restore(self, state: Any) -> None:
        """Take the state; raises ValueError when it is not what it should be."""
        raise NotImplementedError
