"""A results file as part of a report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..results.reader import Results


@dataclass(frozen=True, eq=False)
class Part:
    """A results file within the report: its number from 0, and the SHA-256 (hex) of the file."""

    number: int
    results: Results
    digest: str

    @classmethod
    def of(cls, number: int, results: Results) -> Part:
        """Return the part of a file, its bytes read once for the digest."""
        with results.path.open("rb") as file:
            return cls(number, results, hashlib.file_digest(file, "sha256").hexdigest())

    def anchor(self, group: str) -> str:
        """Return the address of a group's section within the page."""
        return f"f{self.number}-g{list(self.results.groups).index(group)}"


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a fact that should be a mapping, or an empty one: files may come from anybody."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """Return a fact that should be a list, or an empty one."""
    return value if isinstance(value, list) else []


def entries(value: Any) -> list[Mapping[str, Any]]:
    """Return the mappings of a fact that should be a list of them."""
    return [item for item in items(value) if isinstance(item, dict)]
