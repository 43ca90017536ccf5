"""Conformance kit for analyzers: the same checks for built-in ones and for yours.

import pytest
from ckpt_tools.testing import analyzer_checks
from my_plugin import Sparsity

@pytest.mark.parametrize("check", analyzer_checks(Sparsity), ids=str)
def test_conforms(check):
    check()
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..analyzer import Analyzer
from .bench import Bench, Blocked, NonConformance, NotApplicable
from .checks import CHECKS


@dataclass(frozen=True)
class BoundCheck:
    """One check of one analyzer class; calling it raises NonConformance when the rule is broken.

    It passes silently where the rule does not concern the analyzer. Raises Blocked when the analyzer does not run at
    all, which the check `outputs` then explains.
    """

    name: str
    cls: type[Analyzer]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def __call__(self) -> None:
        try:
            self.verdict()
        except NotApplicable:
            return

    def verdict(self) -> None:
        """As a call, but raises NotApplicable where the rule does not concern the analyzer."""
        with tempfile.TemporaryDirectory(prefix="ckpt-check-") as folder:
            CHECKS[self.name](Bench(self.cls, Path(folder), self.options))


def analyzer_checks(cls: type[Analyzer], **options: Any) -> list[BoundCheck]:
    """Return all checks for an analyzer class configured with `options`."""
    return [BoundCheck(name, cls, options) for name in CHECKS]


__all__ = ["CHECKS", "Blocked", "BoundCheck", "NonConformance", "NotApplicable", "analyzer_checks"]
