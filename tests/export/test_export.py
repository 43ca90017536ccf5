"""Exports hold the numbers of the file, read back by other tools' readers or by independent code."""

from __future__ import annotations

import csv
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner

from ckpt_tools import Analyzer, Out
from ckpt_tools.cli.export import export as command
from ckpt_tools.errors import OptionError, ResultsError
from ckpt_tools.export import export
from ckpt_tools.export.events import MOST_SCALARS, crc32c, event, record
from ckpt_tools.results import Group, Trajectory, check, open_results, write_results

NAMES = ["embed", "модель, 1"]


class Probe(Analyzer):
    """Outputs of several shapes."""

    name = "probe"
    outputs: ClassVar = {
        "rank": Out(("matrix",), unit="nat", long_name="effective rank"),
        "rank_error": Out(("matrix",), error_of="rank"),
        "dtype": Out(("matrix",), dtype="str"),
        "count": Out(("matrix",), dtype="i4"),
        "spectrum": Out(("matrix", "index")),
        "total": Out(),
        "wide": Out(("cell",)),
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two steps; the second matrix has no rank at step 10."""
    records = [
        check(
            Probe(),
            {
                "matrix": NAMES,
                "rank": [1 / 3 + step, np.nan if step else 2.0],
                "rank_error": [1e-9, np.nan if step else 1e-9],
                "dtype": ["float32", "" if step else "bfloat16"],
                "count": [7, -1 if step else 5],
                "spectrum": [[3.0, 1.0], [2.0]],
                "total": 0.1 + step,
                "wide": np.zeros(MOST_SCALARS + 1),
            },
            "here",
            step=step,
        )
        for step in (0, 10)
    ]
    facts = {"source": "run", "created": "2026-01-02T03:04:05+00:00"}
    trajectory = Trajectory([0, 10], ["ab", "cd"], metrics={"eval/loss": [2.0, 1.0]})
    return write_results(tmp_path / "r.h5", [Group.of(Probe(), records)], facts, trajectory=trajectory)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_a_table_for_each_shape_and_empty_cells_without_values(results: Path) -> None:
    files, _ = export(results, "csv")
    names = {"probe.matrix.csv", "probe.matrix-index.csv", "probe.csv", "probe.cell.csv", "trajectory.csv"}
    assert {f.name for f in files} == names | {"columns.csv"} and files[0].parent == results.with_name("r-csv")
    table = rows(files[0].parent / "probe.matrix.csv")
    assert [(r["step"], r["matrix"]) for r in table] == [("0", NAMES[0]), ("0", NAMES[1]), ("10", NAMES[0])]
    assert float(table[2]["rank"]) == 1 / 3 + 10 and table[1]["dtype"] == "bfloat16" and table[1]["count"] == "5"
    spectrum = rows(files[0].parent / "probe.matrix-index.csv")
    assert [r["spectrum"] for r in spectrum] == ["3.0", "1.0", "2.0"] * 2
    about = {r["column"]: r for r in rows(files[0].parent / "columns.csv")}
    assert about["rank"]["unit"] == "nat" and about["rank_error"]["error_of"] == "rank"


def test_one_table_can_be_one_file_and_labels_narrow_it(results: Path, tmp_path: Path) -> None:
    target = tmp_path / "rank.csv"
    export(results, "csv", target, what=["probe.rank"], matrices=["emb*"])
    assert rows(target) == [{"step": str(s), "matrix": "embed", "rank": repr(1 / 3 + s)} for s in (0, 10)]
    with pytest.raises(ResultsError, match=r"5 tables .* do not fit into one file"):
        export(results, "csv", tmp_path / "all.csv")


def test_parquet_keeps_types_missing_values_and_units(results: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export(results, "parquet", tmp_path / "out")
    table = parquet.read_table(tmp_path / "out" / "probe.matrix.parquet")
    assert table.column("rank").to_pylist() == [1 / 3, 2.0, 1 / 3 + 10]
    assert table.column("count").to_pylist() == [7, 5, 7] and str(table.schema.field("count").type) == "int32"
    assert table.schema.field("rank").metadata == {b"unit": b"nat", b"long_name": b"effective rank"}
    assert table.column("matrix").to_pylist()[1] == NAMES[1]


def test_netcdf_has_the_chosen_part_and_ncdump_reads_it(results: Path, tmp_path: Path) -> None:
    netCDF4 = pytest.importorskip("netCDF4")
    target = tmp_path / "part.nc"
    export(results, "netcdf", target, what=["probe.rank", "probe.total"], matrices=["embed"])
    with netCDF4.Dataset(target) as file:
        group = file["probe"]
        assert set(group.variables) == {"step", "matrix", "rank"}
        assert group["rank"][:].tolist() == [[1 / 3], [1 / 3 + 10]] and group["rank"].units == "nat"
        assert file.source == "run" and group.analyzer == "probe"
    if shutil.which("ncdump"):
        done = subprocess.run(["ncdump", "-h", target], capture_output=True, text=True, check=True)
        assert "double rank(step, matrix)" in done.stdout


def test_netcdf_of_everything_equals_the_results(results: Path, tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    export(results, "netcdf", tmp_path / "all.nc")
    with open_results(results) as tree, xarray.open_datatree(tmp_path / "all.nc", engine="h5netcdf") as other:
        for name in ("probe", "trajectory"):
            xarray.testing.assert_equal(tree[name].to_dataset().load(), other[name].to_dataset().load())


# Decoded by the descriptions of the formats, not with the code under test.
def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def fields(data: bytes) -> list[tuple[int, Any]]:
    found, at = [], 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:
            value: Any
            value, at = varint(data, at)
        else:
            size, at = (8, at) if key & 7 == 1 else (4, at) if key & 7 == 5 else varint(data, at)
            value, at = data[at : at + size], at + size
        found.append((key >> 3, value))
    return found


def events(path: Path) -> list[dict[int, Any]]:
    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        found.append(dict(fields(data[12 : 12 + size])))
        data = data[16 + size :]
    return found


def test_tensorboard_events_hold_every_number_at_its_step(results: Path, tmp_path: Path) -> None:
    (path,), notes = export(results, "tensorboard", tmp_path / "logs")
    assert notes == ["probe.wide has 1001 numbers per step, too many curves; left out"]
    head, first, second = events(path)
    assert head[3] == b"brain.Event:2" and struct.unpack("<d", head[1])[0] == 1767323045.0
    assert (first[2], second[2]) == (0, 10)
    scalars = []
    for one in (first, second):
        values = [dict(fields(value)) for _, value in fields(one[5])]
        scalars.append({v[1].decode(): struct.unpack("<f", v[2])[0] for v in values})
    assert scalars[1]["probe/rank/embed"] == pytest.approx(1 / 3 + 10, rel=1e-7)
    assert scalars[1]["trajectory/eval_loss"] == 1.0 and scalars[0]["probe/total"] == pytest.approx(0.1)
    assert f"probe/rank/{NAMES[1]}" in scalars[0] and f"probe/rank/{NAMES[1]}" not in scalars[1]
    assert f"probe/count/{NAMES[1]}" not in scalars[1] and "probe/spectrum/embed [index 1]" in scalars[0]


def test_checksums_are_those_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    framed = record(event(1.5, 300, [("a", 0.5)]))
    assert len(framed) == 16 + struct.unpack("<Q", framed[:8])[0]


def test_existing_targets_are_kept_and_unknown_formats_named(results: Path, tmp_path: Path) -> None:
    (tmp_path / "r.nc").write_text("mine")
    with pytest.raises(ResultsError, match=r"exists already\. Add --force"):
        export(results, "netcdf")
    assert (tmp_path / "r.nc").read_text() == "mine"
    with pytest.raises(OptionError, match=r"no export to 'parket'\. Did you mean 'parquet'\?"):
        export(results, "parket")


def test_the_command_names_what_it_wrote(results: Path, tmp_path: Path) -> None:
    args = [str(results), "--to", "csv", "--what", "probe.total", "-o", str(tmp_path / "t.csv")]
    done = CliRunner().invoke(command, args)
    assert done.exit_code == 0 and done.stdout == f"{tmp_path / 't.csv'}\n"
