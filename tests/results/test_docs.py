"""The Python examples of docs/results.md, run in order in one folder."""

import re
from pathlib import Path

import h5py
import pytest

from ckpt_tools.results import Trajectory, read_results, write_results
from ckpt_tools.results.writer import SCHEMA, SCHEMA_VERSION

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "results.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, groups, monkeypatch):
    steps = [0, 10, 20, 40]
    trajectory = Trajectory(steps, ["ab"] * 4, metrics={"loss": [4.0, 3.0, 2.0, 1.0]})
    write_results(tmp_path / "results.h5", groups, trajectory=trajectory)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_examples_run_and_print_the_numbers(folder, capsys):
    assert len(BLOCKS) == 5
    for block in BLOCKS:
        exec(compile(block, "docs/results.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == ["[ 1. 11. 21. 41.]", "1 3", "2.0"]
    assert printed[3] == "{0: 1.0, 10: 11.0, 20: 21.0, 40: 41.0} {'k': 2}"
    assert printed[4].startswith("rank {'onset': 20, 'ratio': None} ['effective_rank'")
    assert printed[6] == "[]"
    with read_results("norms.h5") as found:
        assert found["norm"]["largest"].read().tolist() == [[1.0, 0.0], [1.0, 5.0]]


def test_the_page_describes_this_schema(results_file):
    assert f"version **{SCHEMA_VERSION}** of the schema, named `{SCHEMA}`" in PAGE
    rows = re.findall(r"^\| (`/`|group|dataset|metric) \| (.*?) \|", PAGE, re.MULTILINE)
    told = {(where, name) for where, names in rows for name in re.findall(r"`(\w+)`", names)}
    own = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "json_attributes"}
    with h5py.File(results_file) as file:
        used = {("`/`", name) for name in file.attrs}
        used |= {("group", name) for g in file.values() for name in g.attrs}
        used |= {("dataset", name) for g in file.values() for d in g.values() for name in d.attrs if name != "metric"}
    assert {(where, name) for where, name in used if name not in own} <= told
