import json
import re
import shutil
import string
import subprocess
import tempfile
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
import pytest
import xarray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckpt_tools.analyzer import Analyzer, Out
from ckpt_tools.errors import ResultsError
from ckpt_tools.results import Group, Trajectory, check, read_results, write_results
from ckpt_tools.results.attributes import storable

ENGINES = ("h5netcdf", "netcdf4")
MATRICES = ["embed", "layers.0.attn.q", "модель/слой"]


@pytest.mark.parametrize("engine", ENGINES)
def test_xarray_reads_values_labels_and_units(results_file, engine):
    with xarray.open_datatree(results_file, engine=engine) as tree:
        assert set(tree.children) == {"rank", "probe", "trajectory"}
        rank = tree["rank"].to_dataset()
        assert dict(rank.sizes) == {"step": 4, "matrix": 3, "k": 3}
        assert rank["matrix"].values.tolist() == MATRICES
        assert rank["effective_rank"].sel(step=20, matrix="layers.0.attn.q").item() == 21.0
        assert np.isnan(rank["effective_rank"].sel(step=20, matrix="модель/слой").item())
        assert rank["effective_rank"].attrs["long_name"] == "exponential of the spectral entropy"
        assert rank["norm"].attrs["units"] == "nat"
        assert rank["singular_values"].dtype == np.float32
        np.testing.assert_array_equal(rank["singular_values"][0], [[3, 2, 1], [2, np.nan, np.nan], [np.nan] * 3])
        assert rank["iterations"].dtype == np.int32 and rank["iterations"][3].values.tolist() == [1, 2, 3]
        assert rank["stored_dtype"].sel(step=0).values.tolist() == ["bfloat16", "float32", "bfloat16"]
        assert tree["probe/step"].values.tolist() == [0, 40]
        assert tree["trajectory/eval_loss"].values.tolist() == [3, 2, 1, 0]


def test_plain_h5py_sees_the_schema(results_file):
    with h5py.File(results_file) as file:
        assert list(file) == ["trajectory", "rank", "probe"]
        assert file.attrs["Conventions"] == "CF-1.11"
        assert (file.attrs["schema"], file.attrs["schema_version"]) == ("ckpt-results", 1)
        assert file.attrs["history"].endswith("+00:00: ckpt analyze runs/markov")
        hashes = json.loads(file.attrs["content_hashes"])
        assert hashes == {str(s): f"{s:064x}" for s in (0, 10, 20, 40)}
        assert {"python", "numpy", "h5py", "hdf5"} <= set(json.loads(file.attrs["libraries"]))
        rank = file["rank"]
        assert list(rank)[:3] == ["step", "matrix", "k"]
        expected = {"analyzer": "rank", "analyzer_version": "3", "distribution": "ckpt-tools", "needs": "weights"}
        assert {key: rank.attrs[key] for key in expected} == expected
        assert rank.attrs["description"] == "Effective rank of every weight matrix."
        assert json.loads(rank.attrs["options"]) == {"k": 2}
        assert json.loads(rank.attrs["summary"]) == {"onset": 20, "ratio": None}
        assert json.loads(rank.attrs["skipped"]) == [{"name": "rotary.inv_freq", "reason": "buffer"}]
        values = rank["effective_rank"]
        assert (values.chunks, values.compression, values.shuffle) == ((4, 3), "gzip", True)
        assert values.attrs["ancillary_variables"] == "effective_rank_error"
        assert rank["effective_rank_error"].attrs["error_of"] == "effective_rank"


def test_every_dataset_holds_a_type_netcdf_has_and_a_scale_per_dim(results_file):
    seen = []

    def look(name, item):
        if isinstance(item, h5py.Dataset):
            seen.append(name)
            text = h5py.check_string_dtype(item.dtype)
            assert item.dtype.name in ("float64", "float32", "int64", "int32") or (text and text.length is None)
            assert item.is_scale or [len(d) for d in item.dims] == [1] * item.ndim
            assert [d[0].shape for d in item.dims if len(d)] == [(n,) for n in item.shape if not item.is_scale]
            assert item.attrs["units"] if not item.is_scale else True

    with h5py.File(results_file) as file:
        file.visititems(look)
    assert len(seen) == 15


@pytest.mark.parametrize("tool", ["ncdump", "h5dump"])
def test_the_tools_of_older_libraries_read_it(results_file, tool):
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run([tool, results_file], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "layers.0.attn.q" in done.stdout
    if tool == "ncdump":
        assert re.search(r"double effective_rank\(step, matrix\)", done.stdout)
        assert 'string effective_rank:units = "1"' in done.stdout


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_at_all_is_a_valid_file_too(tmp_path, engine):
    class Empty(Analyzer):
        """No matrices, or no steps."""

        name = "empty"
        outputs: ClassVar = {"x": Out(("matrix",)), "y": Out(dtype="i8"), "z": Out(("matrix",), dtype="str")}

    nothing = check(Empty(), {"matrix": [], "x": [], "y": 1, "z": []}, "here", step=5)
    write_results(tmp_path / "a.h5", [Group.of(Empty(), [nothing])])
    write_results(tmp_path / "b.h5", [Group.of(Empty(), [])])
    for name, sizes in (("a.h5", {"step": 1, "matrix": 0}), ("b.h5", {"step": 0, "matrix": 0})):
        with xarray.open_datatree(tmp_path / name, engine=engine) as tree:
            assert dict(tree["empty"].sizes) == sizes


def test_names_a_file_cannot_hold_are_escaped(tmp_path):
    class One(Analyzer):
        """One output."""

        name = "one"
        outputs: ClassVar = {"x": Out(("matrix",))}

    labels = ["../../etc/x\0\n", "half\ud800", "a/b"]
    path = write_results(tmp_path / "r.h5", [Group.of(One(), [check(One(), {"matrix": labels, "x": [1, 2, 3]}, "x")])])
    with h5py.File(path) as file:
        assert list(file["one"]) == ["step", "matrix", "x"]
        assert file["one/matrix"].asstr()[:].tolist() == ["../../etc/x\\x00\n", "half\\ud800", "a/b"]


def test_metric_names_never_become_paths_and_never_clash(tmp_path):
    metrics = {"eval/loss": [1.0], "eval loss": [2.0], "2x": [3.0], "path": [4.0], "step": [5.0]}
    path = write_results(tmp_path / "r.h5", [], trajectory=Trajectory([7], ["ab"], ["p"], metrics))
    with h5py.File(path) as file:
        found = {v.attrs["metric"]: (k, v[0]) for k, v in file["trajectory"].items() if "metric" in v.attrs}
    assert found == {
        "eval/loss": ("eval_loss", 1.0),
        "eval loss": ("eval_loss_2", 2.0),
        "2x": ("metric_2x", 3.0),
        "path": ("path_2", 4.0),
        "step": ("step_2", 5.0),
    }


def test_metrics_must_fit_the_steps(tmp_path):
    with pytest.raises(ValueError, match="'loss' has 2 entries for 1 steps"):
        write_results(tmp_path / "r.h5", [], trajectory=Trajectory([7], ["ab"], metrics={"loss": [1.0, 2.0]}))
    assert list(tmp_path.iterdir()) == []


def test_groups_may_not_share_a_name_or_take_the_trajectorys(tmp_path, groups):
    with pytest.raises(ResultsError, match="two groups named 'rank'"):
        write_results(tmp_path / "r.h5", [groups[0], groups[0]])
    with pytest.raises(ResultsError, match="two groups named 'trajectory'"):
        write_results(tmp_path / "r.h5", [Group("trajectory", groups[0].series)])
    with pytest.raises(ResultsError, match="'a/b' is not an identifier"):
        write_results(tmp_path / "r.h5", [Group("a/b", groups[0].series)])


def test_a_long_json_attribute_survives(tmp_path):
    hashes = Trajectory(range(3000), [f"{i:064x}" for i in range(3000)])
    with read_results(write_results(tmp_path / "r.h5", [], trajectory=hashes)) as found:
        assert found.attrs["content_hashes"]["2999"] == f"{2999:064x}"


def test_large_rows_are_chunked_within_a_step_and_many_steps_together(tmp_path):
    class Wide(Analyzer):
        """Rows of very different size."""

        name = "wide"
        outputs: ClassVar = {"row": Out(("i", "j")), "number": Out()}

    rows = [check(Wide(), {"row": np.full((300, 400), i), "number": i}, "x", step=i) for i in range(5)]
    with h5py.File(write_results(tmp_path / "r.h5", [Group.of(Wide(), rows)])) as file:
        chunks = file["wide/row"].chunks
        assert chunks[0] == 1 and np.prod(chunks) * 8 <= 2**18
        assert file["wide/number"].chunks == (5,)
        assert file["wide/row"][:, 7, 9].tolist() == [0, 1, 2, 3, 4]


def test_a_chunk_holds_what_is_written_at_once(tmp_path):
    class Several(Analyzer):
        """Outputs of ten and of a thousand numbers."""

        name = "several"
        outputs: ClassVar = {"few": Out(("i",)), "many": Out(("j",)), "text": Out((), dtype="str"), "one": Out()}

    raw = {"few": np.zeros(10), "many": np.zeros(1000), "text": "x", "one": 0}
    rows = [check(Several(), {**raw, "one": i}, "x", step=i) for i in range(300)]
    with h5py.File(write_results(tmp_path / "r.h5", [Group.of(Several(), rows)])) as file:
        chunks = {name: file["several"][name].chunks for name in Several.outputs}
        at_once = chunks["many"][0]
        assert 1 < at_once < 300 and at_once * 8096 <= 2**18
        assert all(chunk[0] % at_once == 0 or chunk[0] == 300 for chunk in chunks.values())
        assert chunks["one"] == (300,), "small ones hold 4 KiB"
        assert file["several/one"][...].tolist() == list(range(300))


def test_blocks_of_steps_end_up_in_their_places(tmp_path, groups, monkeypatch):
    monkeypatch.setattr("ckpt_tools.results.writer._BLOCK_BYTES", 1)
    one = write_results(tmp_path / "one.h5", groups)
    monkeypatch.undo()
    all_ = write_results(tmp_path / "all.h5", groups)
    with h5py.File(one) as a, h5py.File(all_) as b:
        for name in ("singular_values", "stored_dtype", "norm"):
            np.testing.assert_array_equal(a["rank"][name][...], b["rank"][name][...])


LABELS = st.one_of(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=4, unique=True),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4, unique=True),
    st.none(),
)
TEXT = st.text(string.ascii_letters + "/ é层\n", max_size=5)
KINDS = {
    "f8": st.floats(),
    "f4": st.floats(width=32),
    "i8": st.integers(-(2**63), 2**63 - 1),
    "i4": st.integers(-(2**31), 2**31 - 1),
    "i1": st.integers(-128, 127),
    "str": TEXT,
}


@st.composite
def analyses(draw):
    """An analyzer with random outputs, and one raw result per step."""
    sizes, labels = {}, {}
    for dim in ("matrix", "head"):
        labels[dim] = draw(LABELS)
        sizes[dim] = draw(st.integers(1, 3)) if labels[dim] is None else len(labels[dim])
    dims = st.sampled_from([(), ("matrix",), ("head",), ("matrix", "head"), ("head", "matrix")])
    kinds = draw(st.lists(st.tuples(dims, st.sampled_from(sorted(KINDS))), min_size=1, max_size=4))

    class Random(Analyzer):
        """Outputs drawn at random."""

        name = "random"
        outputs: ClassVar = {f"out_{i}": Out(d, dtype=kind) for i, (d, kind) in enumerate(kinds)}

    used = {d for o in Random.outputs.values() for d in o.dims}
    raws = []
    for _ in range(draw(st.integers(1, 3))):
        raw = {d: labels[d] for d in used if labels[d] is not None}
        for name, out in Random.outputs.items():
            dtype = "U5" if out.dtype == "str" else out.dtype
            shape = tuple(sizes[d] for d in out.dims)
            raw[name] = draw(hnp.arrays(dtype, shape, elements=KINDS[out.dtype], fill=st.nothing()))
        raws.append(raw)
    return Random(), raws


def stored(array):
    return np.vectorize(storable, otypes="U")(array) if array.dtype.kind == "U" else array


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(analyses())
def test_what_is_written_comes_back_bit_for_bit(case):
    analyzer, raws = case
    records = [check(analyzer, raw, "here", step=i * 3) for i, raw in enumerate(raws)]
    with tempfile.TemporaryDirectory() as folder:
        path = write_results(Path(folder) / "r.h5", [Group.of(analyzer, records)])
        with read_results(path) as found, xarray.open_datatree(path, engine="h5netcdf") as tree:
            group = found["random"]
            assert group.steps.tolist() == [r.step for r in records]
            for dim, labels in records[0].labels.items():
                expected = [storable(x) for x in labels] if isinstance(labels, list) else labels.tolist()
                assert list(group.labels[dim]) == expected
                assert tree["random"][dim].values.tolist() == expected
            for name, out in analyzer.outputs.items():
                expected = np.stack([stored(r.values[name]) for r in records])
                got = group[name].read()
                assert group[name].dims == ("step", *out.dims)
                assert got.dtype.kind == "U" if out.dtype == "str" else got.dtype == np.dtype(out.dtype)
                np.testing.assert_array_equal(got, expected)
                np.testing.assert_array_equal(tree["random"][name].values.astype(got.dtype), expected)
