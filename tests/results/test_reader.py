import h5py
import numpy as np
import pytest

from ckpt_tools.errors import ResultsError
from ckpt_tools.results import open_results, read_results


def test_results_come_back_with_facts_decoded(results_file):
    with read_results(results_file) as found:
        assert list(found.groups) == ["rank", "probe"]
        assert found.attrs["storage_dtypes"] == ["bfloat16"]
        rank = found["rank"]
        assert rank.attrs["options"] == {"k": 2} and "json_attributes" not in rank.attrs
        assert rank.attrs["summary"] == {"onset": 20, "ratio": None}
        assert rank.steps.tolist() == [0, 10, 20, 40]
        assert rank.labels["matrix"] == ["embed", "layers.0.attn.q", "модель/слой"]
        norm = rank["norm"]
        assert (norm.dims, norm.unit, norm.shape, norm.is_text) == (("step",), "nat", (4,), False)
        np.testing.assert_array_equal(norm.read(), np.array([0, 10, 20, 40]) / 7)
        assert rank["effective_rank_error"].error_of == "effective_rank"
        assert rank["stored_dtype"].is_text
        assert rank["stored_dtype"].read()[0].tolist() == ["bfloat16", "float32", "bfloat16"]
        assert found.trajectory["eval_loss"].attrs["metric"] == "eval/loss"


def test_open_results_gives_a_datatree(results_file):
    with open_results(results_file) as tree:
        assert tree["rank/effective_rank"].sel(step=10, matrix="embed").item() == 10.0
        assert tree["probe/loss"].attrs["units"] == "nat"


def test_unknown_names_get_the_nearest(results_file):
    with read_results(results_file) as found:
        with pytest.raises(ResultsError, match=r"no analyzer 'ranks'\. Did you mean 'rank'\?"):
            found["ranks"]
        with pytest.raises(ResultsError, match=r"no output 'norms'\. Did you mean 'norm'\?"):
            found["rank"]["norms"]


@pytest.mark.parametrize("opening", [read_results, open_results])
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_text("step,loss"), "is not an HDF5 file"),
        (lambda path: h5py.File(path, "w").close(), "no ckpt results file"),
    ],
)
def test_what_is_no_results_file_is_named(tmp_path, opening, make, expected):
    path = tmp_path / "r.h5"
    make(path)
    with pytest.raises(ResultsError, match=expected):
        opening(path)


def test_a_newer_schema_asks_for_an_upgrade(results_file):
    with h5py.File(results_file, "r+") as file:
        file.attrs["schema_version"] = 2
    with pytest.raises(ResultsError, match=r"version 2 .* reads up to 1.*pip install -U ckpt-tools"):
        read_results(results_file)


def test_a_truncated_file_is_damaged(results_file):
    results_file.write_bytes(results_file.read_bytes()[:5000])
    with pytest.raises(ResultsError, match="damaged"):
        read_results(results_file)


def test_damage_within_the_values_is_found_when_they_are_read(results_file):
    with h5py.File(results_file) as file:
        where = file["rank/effective_rank"].id.get_chunk_info(0).byte_offset
    data = bytearray(results_file.read_bytes())
    data[where + 2 : where + 12] = b"\xff" * 10
    results_file.write_bytes(data)
    with read_results(results_file) as found, pytest.raises(ResultsError, match="rank/effective_rank is damaged"):
        found["rank"]["effective_rank"].read()


def test_malformed_json_is_named(results_file):
    with h5py.File(results_file, "r+") as file:
        file["rank"].attrs["options"] = "{"
    with pytest.raises(ResultsError, match=r"results\.h5:rank: an attribute is not valid JSON"):
        read_results(results_file)


def test_a_dataset_without_scales_is_named(results_file):
    with h5py.File(results_file, "r+") as file:
        file["rank"]["bare"] = [1.0]
    with pytest.raises(ResultsError, match="rank/bare has a dimension without a scale"):
        read_results(results_file)


def test_links_out_of_the_file_are_not_followed(results_file, tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = [1.0]
    for link in (h5py.ExternalLink(str(tmp_path / "secret.h5"), "/x"), h5py.SoftLink("/probe/loss")):
        with h5py.File(results_file, "r+") as file:
            file["rank"]["link"] = link
        with pytest.raises(ResultsError, match="'link' is a link"):
            read_results(results_file)
        with h5py.File(results_file, "r+") as file:
            del file["rank"]["link"]


def test_values_kept_in_other_files_are_not_read(results_file, tmp_path):
    (tmp_path / "raw").write_bytes(bytes(32))
    with h5py.File(results_file, "r+") as file:
        rank = file["rank"]
        outside = rank.create_dataset("outside", (4,), "f8", external=[(str(tmp_path / "raw"), 0, 32)])
        outside.dims[0].attach_scale(rank["step"])
    with read_results(results_file) as found, pytest.raises(ResultsError, match="in other files"):
        found["rank"]["outside"].read()


def test_a_size_the_file_does_not_hold_is_not_allocated(results_file):
    with h5py.File(results_file, "r+") as file:
        rank = file["rank"]
        rank.create_dataset("huge", data=np.arange(4)).make_scale("huge")
        bomb = rank.create_dataset("bomb", (4, 2**40), "f8", chunks=(1, 2**16), compression="gzip")
        bomb.dims[0].attach_scale(rank["step"])
        bomb.dims[1].attach_scale(rank["huge"])
    with read_results(results_file) as found, pytest.raises(ResultsError, match="claims 35184372088832 bytes"):
        found["rank"]["bomb"].read()


def test_a_file_that_is_replaced_meanwhile_stays_readable(results_file, tmp_path):
    with read_results(results_file) as found:
        (tmp_path / "other").write_bytes(b"")
        (tmp_path / "other").replace(results_file)
        assert found["rank"]["norm"].read()[3] == 40 / 7
