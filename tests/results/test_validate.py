"""Every rule of the schema has a file that breaks it, and no other rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from ckpt_tools.cli.show import show
from ckpt_tools.errors import ResultsError
from ckpt_tools.results.validate import GATES, RULES, validate

Mutant = Callable[[h5py.File, Path], Any]


def attribute(where: str, name: str, value: Any) -> Mutant:
    def change(file: h5py.File, folder: Path) -> None:
        if value is None:
            del file[where].attrs[name]
        else:
            file[where].attrs[name] = value

    return change


def added(name: str, dtype: Any, **attrs: Any) -> Mutant:
    """A dataset along step that is sound but for what the test is about."""

    def change(file: h5py.File, folder: Path) -> None:
        made = file["rank"].create_dataset(name, shape=(4,), dtype=dtype)
        made.dims[0].attach_scale(file["rank/step"])
        made.attrs.update({"units": "1", "long_name": name, **attrs})

    return change


def bare(file: h5py.File, folder: Path) -> None:
    made = file["rank"].create_dataset("bare", data=np.zeros(4))
    made.attrs.update({"units": "1", "long_name": "bare", "_FillValue": np.nan})


def crossed(file: h5py.File, folder: Path) -> None:
    """Dimensions in the wrong order, each with its scale."""
    made = file["rank"].create_dataset("crossed", data=np.zeros((3, 4)))
    made.dims[0].attach_scale(file["rank/matrix"])
    made.dims[1].attach_scale(file["rank/step"])
    made.attrs.update({"units": "1", "long_name": "crossed", "_FillValue": np.nan})


def short(file: h5py.File, folder: Path) -> None:
    made = file["rank"].create_dataset("short", data=np.zeros(3))
    made.dims[0].attach_scale(file["rank/step"])
    made.attrs.update({"units": "1", "long_name": "short", "_FillValue": np.nan})


def written(where: str, at: int, value: Any) -> Mutant:
    def change(file: h5py.File, folder: Path) -> None:
        file[where][at] = value

    return change


def renamed(file: h5py.File, folder: Path) -> None:
    file.move("probe", "other")


def linked(file: h5py.File, folder: Path) -> None:
    file["rank/link"] = h5py.SoftLink("/probe/loss")


def stray(file: h5py.File, folder: Path) -> None:
    file["stray"] = [1.0]


def nested(file: h5py.File, folder: Path) -> None:
    file["rank"].create_group("inner")


def outside(file: h5py.File, folder: Path) -> None:
    (folder / "raw").write_bytes(bytes(32))
    file["rank"].create_dataset("outside", (4,), "f8", external=[(str(folder / "raw"), 0, 32)])


def bomb(file: h5py.File, folder: Path) -> None:
    made = file["rank"].create_dataset("bomb", (4, 2**40), "f8", chunks=(1, 2**16), compression="gzip")
    made.attrs.update({"units": "1", "long_name": "bomb", "_FillValue": np.nan})


def hashes_gone(file: h5py.File, folder: Path) -> None:
    del file["trajectory/content_hash"]


MUTANTS: list[tuple[str, Mutant, str]] = [
    ("schema", attribute("/", "schema", "other"), "not 'ckpt-results'"),
    ("schema", attribute("/", "schema_version", 9), "not an integer from 1 to 1"),
    ("schema", attribute("/", "Conventions", "none"), "not CF-1.11"),
    ("schema", attribute("/", "created", "yesterday"), "created is 'yesterday'"),
    ("json", attribute("rank", "options", "{"), "options is named in json_attributes but is no JSON text"),
    ("json", attribute("/", "json_attributes", "["), "json_attributes is not JSON"),
    ("json", attribute("/", "libraries", "[]"), "libraries is list as JSON, expected dict"),
    ("group", attribute("probe", "analyzer_version", None), "lacks the attribute 'analyzer_version'"),
    ("group", attribute("probe", "needs", "everything"), "needs is 'everything'"),
    ("group", renamed, "says it is of analyzer 'probe'"),
    ("skipped", attribute("rank", "skipped", json.dumps([{"name": "x"}])), "expected a name and a reason"),
    ("figures", attribute("rank", "figures", json.dumps([{"output": "gone"}])), "names no output of the group"),
    ("types", added("half", "f2", _FillValue=np.nan), "has type float16"),
    ("types", added("flag", "?"), "has type bool"),
    ("types", added("ragged", h5py.vlen_dtype("f8")), "not all readers know"),
    ("scales", bare, "1 dimension(s) without a scale"),
    ("scales", crossed, "the first must be 'step'"),
    ("scales", short, "has 3 entries along 'step'"),
    ("steps", written("probe/step", 0, 50), "not a list of ascending integers"),
    ("steps", written("probe/step", 1, 39), "step 39, which the trajectory does not have"),
    ("labels", written("rank/matrix", 1, "embed"), "a label that occurs twice"),
    ("units", attribute("rank/norm", "units", None), "lacks 'units'"),
    ("units", attribute("rank/norm", "long_name", ""), "lacks 'long_name'"),
    ("errors", attribute("rank/effective_rank_error", "error_of", "norm"), "is the error of 'norm'"),
    ("errors", attribute("rank/norm", "ancillary_variables", "iterations"), "which is not its error"),
    ("padding", attribute("rank/norm", "_FillValue", 0.0), "its _FillValue is not NaN"),
    ("padding", attribute("rank/iterations", "padding", 0), "its padding is not -1"),
    ("hashes", attribute("/", "content_hashes", "{}"), "differ from the attribute"),
    ("hashes", written("trajectory/content_hash", 2, "changed"), "differ from the attribute content_hashes"),
    ("hashes", hashes_gone, "no content_hash for each step"),
    ("metrics", attribute("trajectory/eval_loss", "metric", None), "the name it was logged under"),
    ("links", linked, "is a link"),
    ("links", stray, "expected groups at the root"),
    ("links", nested, "datasets within them"),
    ("links", outside, "values in other files"),
    ("readable", bomb, "claims 35184372088832 bytes"),
]


@pytest.mark.parametrize(("rule", "mutant", "expected"), MUTANTS, ids=[f"{m[0]}-{i}" for i, m in enumerate(MUTANTS)])
def test_only_the_broken_rule_is_named(
    results_file: Path, tmp_path: Path, rule: str, mutant: Mutant, expected: str
) -> None:
    assert validate(results_file) == []
    with h5py.File(results_file, "r+") as file:
        mutant(file, tmp_path)
    faults = validate(results_file)
    assert {fault.rule for fault in faults} == {rule}
    assert any(expected in fault.message for fault in faults)


def test_every_rule_has_a_mutant() -> None:
    assert {rule for rule, _, _ in MUTANTS} == {*GATES, *RULES}


def test_damaged_values_are_a_fault(results_file: Path) -> None:
    with h5py.File(results_file) as file:
        where = file["rank/effective_rank"].id.get_chunk_info(0).byte_offset
    data = bytearray(results_file.read_bytes())
    data[where + 2 : where + 12] = b"\xff" * 10
    results_file.write_bytes(data)
    (fault,) = validate(results_file)
    assert fault.rule == "readable" and fault.where == "rank/effective_rank"


def test_the_command_lists_every_fault(results_file: Path) -> None:
    done = CliRunner().invoke(show, [str(results_file), "--validate"])
    assert done.output == f"{results_file} keeps ckpt-results 1: 16 rules hold\n"
    with h5py.File(results_file, "r+") as file:
        del file["rank/norm"].attrs["units"]
        file["rank/iterations"].attrs["padding"] = 0
    with pytest.raises(ResultsError, match=r"in 2 place\(s\):\n  - rank/norm: .*\n  - rank/iterations: .* \[padding\]"):
        CliRunner().invoke(show, [str(results_file), "--validate"], catch_exceptions=False)


def test_a_file_that_is_no_hdf5_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_text("step,loss")
    with pytest.raises(ResultsError, match="cannot be opened as HDF5"):
        validate(tmp_path / "x.h5")
