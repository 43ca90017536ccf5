import base64
import re

import h5py
import numpy as np
import pytest

from ckpt_tools.report.blocks import Blocks
from ckpt_tools.report.charts import charts_of, log_steps
from ckpt_tools.results import read_results

KINDS = {"f4": "<f4", "f8": "<f8", "u2": "<u2", "u4": "<u4"}


def decoded(blocks, address):
    (text,) = re.findall(rf'id="{address["id"]}">([^<]*)<', blocks.html())
    return np.frombuffer(base64.b64decode(text), KINDS[address["kind"]])


@pytest.fixture
def made(many):
    blocks = Blocks()
    with read_results(many) as results:
        found = charts_of(results["kinds"], 0, blocks, 10**6)
    return found, {chart["output"]: chart for chart in (*found.main, *found.others)}, blocks


def test_views_follow_from_dimensions_alone(made):
    _, charts, _ = made
    assert {name: chart["views"] for name, chart in charts.items()} == {
        "count": ["lines", "stepmap", "bars"],
        "rising": ["lines", "stepmap", "bars"],
        "total": ["lines"],
        "map": ["lines", "map", "stepmap"],
        "spectrum": ["lines", "map", "stepmap", "profile"],
        "five": ["lines", "map", "stepmap", "profile"],
    }


def test_a_single_checkpoint_has_bars_and_maps(single):
    with read_results(single) as results:
        found = charts_of(results["kinds"], 0, Blocks(), 10**6)
    views = {chart["output"]: chart["views"] for chart in (*found.main, *found.others)}
    assert views["rising"] == views["total"] == ["bars"]
    assert views["map"] == ["map"] and views["spectrum"] == ["map", "profile"]


def test_numbers_arrive_as_they_are_with_errors_and_gaps(made):
    _, charts, blocks = made
    rising = decoded(blocks, charts["rising"]["values"]).reshape(5, 3)
    assert rising.tolist() == [[i, 4 - i, 2] for i in range(5)]
    assert decoded(blocks, charts["rising"]["error"]).tolist() == [0.25] * 15
    count = decoded(blocks, charts["count"]["values"]).reshape(5, 3)
    assert np.isnan(count[:, 1]).all() and (count[:, 0] == 7).all()
    assert decoded(blocks, charts["rising"]["steps"]).tolist() == [0, 10, 20, 30, 40]
    assert "rising_error" not in charts and charts["rising"]["unit"] == "bit"


def test_what_varies_comes_first_and_what_is_empty_is_named(made):
    found, _, _ = made
    assert [chart["output"] for chart in found.main] == ["rising", "total", "map", "spectrum"]
    assert found.empty == ["never"] and [v.name for v in found.texts] == ["dtype"]


def test_thinned_curves_carry_their_steps_and_errors(many):
    blocks = Blocks()
    with read_results(many) as results:
        group = results["kinds"]
        found = charts_of(group, 0, blocks, 3)
    assert len(found.too_large) == 3 and "five (16 numbers per step)" in found.too_large
    (rising,) = [c for c in (*found.main, *found.others) if c["output"] == "rising"]
    assert not rising["byCell"] and decoded(blocks, rising["index"]).tolist() == [4]
    assert decoded(blocks, rising["values"]).tolist() == [4.0, 0.0, 2.0]
    assert len(decoded(blocks, rising["error"])) == 3


@pytest.mark.parametrize(
    ("figures", "main"),
    [
        ([{"output": "five", "kind": "map"}, {"output": "total", "log": "y"}], ["five", "total"]),
        ([{"output": "nowhere"}, "junk", {"kind": 3}, {"output": ["five"]}], ["rising", "total", "map", "spectrum"]),
        ({"output": "five"}, ["rising", "total", "map", "spectrum"]),
    ],
)
def test_figures_an_analyzer_asks_for_come_first(many, figures, main):
    with read_results(many) as results:
        group = results["kinds"]
        group.attrs["figures"] = figures
        found = charts_of(group, 0, Blocks(), 10**6)
    assert [chart["output"] for chart in found.main] == main
    if main[0] == "five":
        assert found.main[0]["views"][0] == "map" and found.main[1]["logY"] is True


def test_a_heat_map_has_the_last_dimension_up(many):
    with read_results(many) as results:
        group = results["kinds"]
        group.attrs["figures"] = [{"output": "five", "kind": "heatmap"}]
        (chart,) = charts_of(group, 0, Blocks(), 10**6).main
    assert chart["views"][0] == "stepmap" and chart["lines"] == "key"


def test_outputs_of_another_form_are_drawn_or_named(many, tmp_path):
    path = tmp_path / "odd.h5"
    path.write_bytes(many.read_bytes())
    with h5py.File(path, "r+") as file:
        group = file["kinds"]
        group["map"].attrs["error_of"] = "nowhere"
        fixed = group.create_dataset("fixed", data=np.zeros(3))
        fixed.dims[0].attach_scale(group["matrix"])
    with read_results(path) as results:
        found = charts_of(results["kinds"], 0, Blocks(), 10**6)
    assert found.elsewhere == ["fixed"]
    assert "map" in [chart["output"] for chart in found.main]


def test_equal_arrays_are_stored_once():
    blocks = Blocks()
    first, second = blocks.add([1.0, 2.0], "f4"), blocks.add(np.array([1, 2]), "f4")
    assert first == second and first != blocks.add([1.0, 2.0], "f8")
    assert blocks.add_index(np.array([70_000]))["kind"] == "u4"


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([*range(10), *range(10, 1000, 10)], True),
        (range(0, 1000, 10), False),
        ([0, 1, 2, 5], False),
        ([2**k for k in range(16)], True),
    ],
)
def test_dense_starts_get_a_logarithmic_axis(steps, expected):
    assert log_steps(np.array(list(steps))) is expected
