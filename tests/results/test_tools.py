"""netCDF's and HDF5's own tools read results files, and see the numbers that were written."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest


def output(*command: str | Path) -> str:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def test_ncdump_reads_header_and_values(results_file: Path) -> None:
    header = output("ncdump", "-h", results_file)
    for line in (
        "group: rank {",
        "double effective_rank(step, matrix) ;",
        "float singular_values(step, matrix, k) ;",
        'string norm:units = "nat" ;',
        ':analyzer = "probe" ;',
    ):
        assert line in header
    values = output("ncdump", "-v", "rank/norm,rank/matrix", results_file)
    numbers = re.search(r" norm = (.*?) ;", values, re.DOTALL)
    assert numbers is not None
    assert [float(n) for n in numbers[1].split(",")] == pytest.approx([0, 10 / 7, 20 / 7, 40 / 7])
    assert "модель/слой" in values


def test_h5dump_reads_structure_and_values(results_file: Path) -> None:
    names = output("h5dump", "-n", results_file)
    assert re.search(r"dataset\s+/rank/singular_values\n", names) and re.search(r"group\s+/probe\n", names)
    values = output("h5dump", "-d", "/rank/iterations", results_file)
    assert "(0,0): 1, 2, 3" in values and "H5T_STD_I32LE" in values
    whole = output("h5dump", results_file)
    assert "effective_rank" in whole and "error" not in whole.split("ATTRIBUTE")[0]
