"""docs/analyzers.md says of every analyzer what its class says, and after whom it is.

`python tests/plugins/test_analyzers_page.py` writes the tables anew.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.cli.plugins import reference
from ckpt_tools.registry import load_registry

PATH = Path(__file__).resolve().parents[2] / "docs" / "analyzers.md"
BLOCK = "<!-- ckpt plugins show {} --markdown -->\n{}\n<!-- end -->\n"


@cache
def analyzers() -> dict[str, Any]:
    plugins = [p for p in load_registry().plugins if p.distribution == "ckpt-tools"]
    return {a.name: a for p in plugins for a in p.ensure().analyzers}


def sections() -> dict[str, str]:
    parts = re.split(r"^## (\w+)\n", PATH.read_text("utf-8"), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_analyzer_has_its_section() -> None:
    assert sorted(sections()) == sorted(analyzers())


@pytest.mark.parametrize("name", analyzers())
def test_tables_are_those_of_the_class(name: str) -> None:
    assert BLOCK.format(name, reference(analyzers()[name])) in sections()[name], f"stale: run python {__file__}"


@pytest.mark.parametrize("name", analyzers())
def test_every_section_names_a_source(name: str) -> None:
    own = sections()[name].partition("<!--")[0]
    assert re.search(r"arXiv \d{4}\.\d{5}|[A-Z]\w+(, [A-Z]\w+)*( & \w+| et al\.)?,? (\w+ \d+, )?(19|20)\d\d", own)


def test_tables_say_dimensions_units_errors_and_ranges() -> None:
    table = reference(analyzers()["flatness"])
    assert "| `trace_se` | step | nat | Standard error of the trace (error of `trace`) |" in table
    assert "| `k` | `3` | int in [1, inf) | How many of the largest eigenvalues. |" in table
    assert "| `curvature` | `hessian` | one of hessian, gauss_newton | Which matrix. |" in table
    assert reference(analyzers()["drift"]).startswith("Needs weights and, of other checkpoints: first, ")


def write() -> None:
    text = re.sub(r"\n*<!-- ckpt plugins show .*?<!-- end -->\n", "\n", PATH.read_text("utf-8"), flags=re.DOTALL)
    head, *parts = re.split(r"^## (\w+)\n", text, flags=re.MULTILINE)
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        block = BLOCK.format(name, reference(analyzers()[name]))
        head += f"## {name}\n{body.rstrip()}\n\n{block}\n"
    PATH.write_text(head.rstrip() + "\n", "utf-8")


if __name__ == "__main__":
    write()
