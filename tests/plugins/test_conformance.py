"""Every analyzer this distribution provides passes the conformance kit."""

from functools import cache

import pytest

from ckpt_tools.registry import Registry, load_registry
from ckpt_tools.testing import CHECKS, BoundCheck, NotApplicable

pytestmark = pytest.mark.slow


@cache
def registry() -> Registry:
    return load_registry()


def names() -> list[str]:
    plugins = [p for p in registry().plugins if p.distribution == "ckpt-tools"]
    return sorted(a.name for p in plugins for a in p.ensure().analyzers)


def test_nothing_is_broken() -> None:
    assert {p.name: p.broken for p in registry().plugins if p.ensure().broken} == {}
    assert {"rank", "condensation", "drift", "heavytail", "flatness"} <= set(names())


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("check", CHECKS)
def test_conforms(name: str, check: str) -> None:
    try:
        BoundCheck(check, registry().analyzer(name)).verdict()
    except NotApplicable as reason:
        assert check == "blocks" or check.startswith("invariant_to_"), f"{check} must apply to every analyzer: {reason}"
