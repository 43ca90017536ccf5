"""`ckpt plugins new`: the files of a plugin distribution that works as it is written."""

from __future__ import annotations

from pathlib import Path

from ..errors import PluginError

PLUGIN = '''"""{title}: a ckpt-tools analyzer."""

from ckpt_tools import Analyzer, Out, hookimpl, option


class {cls}(Analyzer):
    """Largest absolute entry of every weight matrix."""

    name = "{name}"
    needs = "weights"
    outputs = {{"peak": Out(dims=("matrix",), unit="1", long_name="largest absolute entry")}}
    scale: float = option(1.0, help="Factor on every value.", min=0.0)

    def analyze(self, view):
        matrices = view.matrices()
        return {{"matrix": list(matrices), "peak": [self.scale * abs(m).max() for m in matrices.values()]}}


@hookimpl
def ckpt_analyzers():
    return [{cls}]
'''

TEST = """import numpy as np
import pytest
from ckpt_tools import analyze, read_results
from ckpt_tools.testing import analyzer_checks
from {module} import {cls}
from safetensors.numpy import save_file


@pytest.mark.parametrize("check", analyzer_checks({cls}), ids=str)
def test_conforms(check):
    check()


def test_peak_of_a_known_matrix(tmp_path):
    save_file({{"w": np.array([[1.0, -3.0], [2.0, 0.0]], "f4")}}, tmp_path / "model.safetensors")
    analyze(tmp_path / "model.safetensors", [{cls}(scale=2.0)], output=tmp_path / "r.h5")
    with read_results(tmp_path / "r.h5") as results:
        assert results["{name}"]["peak"].read().tolist() == [[6.0]]
"""

PYPROJECT = """[build-system]
requires = ["setuptools>=69"]
build-backend = "setuptools.build_meta"

[project]
name = "ckpt-{dist}"
version = "0.1.0"
description = "{title}: an analyzer for ckpt-tools"
requires-python = ">=3.11"
dependencies = ["ckpt-tools"]

[project.entry-points.ckpt_tools]
{name} = "{module}"

[tool.setuptools]
py-modules = ["{module}"]
"""


def write_plugin(name: str, out: str | None = None) -> Path:
    """Write plugin, test and pyproject of an analyzer and return the folder; raises PluginError if it exists."""
    if not name.isidentifier() or name != name.lower():
        raise PluginError(f"{name!r} cannot name an analyzer: use lower-case letters, digits and underscores.")
    dist = name.replace("_", "-")
    folder = Path(out or f"ckpt-{dist}")
    if folder.exists():
        raise PluginError(f"{folder} exists already; choose another folder with --out.")
    words = {
        "name": name,
        "dist": dist,
        "module": f"ckpt_{name}",
        "cls": "".join(part.title() for part in name.split("_")),
        "title": name.replace("_", " ").capitalize(),
    }
    folder.mkdir(parents=True)
    for file, text in ((f"ckpt_{name}.py", PLUGIN), (f"test_{name}.py", TEST), ("pyproject.toml", PYPROJECT)):
        (folder / file).write_text(text.format(**words), encoding="utf-8")
    return folder
