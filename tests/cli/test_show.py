import json
import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest
from click.testing import CliRunner

from ckpt_tools.analyzer import Analyzer, Out
from ckpt_tools.cli.show import show
from ckpt_tools.errors import ResultsError
from ckpt_tools.results import Group, Trajectory, check, write_results

MATRICES = ["layers.0.attn.q", "layers.1.attn.q", "layers.0.mlp.up", "evil\x1b[2J[red]"]


class Rank(Analyzer):
    """Effective ranks."""

    name = "rank"
    outputs: ClassVar = {
        "effective_rank": Out(("matrix",), long_name="exponential of the entropy"),
        "stable_rank": Out(("matrix",)),
        "singular_values": Out(("matrix", "k")),
        "per_head": Out(("layer", "head"), unit="bit"),
        "stored": Out(("matrix",), dtype="str"),
        "total": Out(),
        "total_error": Out(error_of="total"),
    }


def written(path, steps):
    records = [
        check(
            Rank(),
            {
                "matrix": MATRICES,
                "effective_rank": [1.0 + i, 2.0, np.nan, 4.0],
                "stable_rank": np.full(4, 0.25),
                "singular_values": np.arange(8.0).reshape(4, 2),
                "per_head": np.full((1, 2), i),
                "stored": ["bfloat16"] * 4,
                "total": 10.0 - i,
                "total_error": 0.1,
            },
            "here",
            step=10 * i,
        )
        for i in range(steps)
    ]
    loss = [1 / (1 + i) for i in range(steps)]
    trajectory = Trajectory([r.step for r in records], ["ab"] * steps, metrics={"loss": loss})
    skipped = [(f"layers.{i}.rotary", "buffer") for i in range(10)]
    summary = {
        "onset": 20,
        "ratio": 0.123456,
        "stages": ["I", "II"],
        "order": [{"group": "mlp", "step": 10}, {"group": "attn", "step": None}],
        "frozen": [],
        "lowest": dict(zip(MATRICES, [1.23456, None, 3, 4.5], strict=True)),
        "onset_step": {side: dict.fromkeys(MATRICES, number) for number, side in enumerate(("left", "right"))},
    }
    group = Group.of(Rank(), records, summary=summary, skipped=skipped)
    facts = {
        "source": "runs/markov",
        "storage_dtypes": ["bfloat16"],
        "notes": ["no family"],
        "skipped_checkpoints": {"step_50": "truncated"},
    }
    return write_results(path, [group], facts, trajectory=trajectory)


@pytest.fixture
def many(tmp_path):
    """Results of five checkpoints."""
    return written(tmp_path / "many.h5", 5)


@pytest.fixture
def single(tmp_path):
    """Results of a single checkpoint."""
    return written(tmp_path / "single.h5", 1)


def run(*args):
    done = CliRunner(env={"COLUMNS": "80"}).invoke(show, [str(a) for a in args])
    if done.exception:
        raise done.exception
    return done.output


def line_of(output, start):
    return next(line for line in output.splitlines() if line.startswith(start)).split()


def test_the_main_output_is_a_table_with_a_sparkline(many):
    output = run(many)
    assert line_of(output, "layers.0.attn.q") == ["layers.0.attn.q", "1", "5", "1", "5", "▁▃▅▆█"]
    assert line_of(output, "layers.1.attn.q")[-1] == "▄▄▄▄▄"
    assert line_of(output, "layers.0.mlp.up") == ["layers.0.mlp.up", "nan", "nan", "nan", "nan"]
    assert line_of(output, "total") == ["total", "10", "6", "6", "10", "█▆▅▃▁"]
    assert line_of(output, "loss") == ["loss", "1", "0.2", "0.2", "1", "█▄▂▁▁"]
    assert "rank.effective_rank: exponential of the entropy" in output


def test_the_header_tells_source_steps_caveats_and_what_was_skipped(many):
    output = " ".join(run(many).split())
    for fact in (
        "source runs/markov",
        "steps 5, from 0 to 40",
        "stored as bfloat16",
        "shifts effective ranks by up to 28 % on steep spectra",
        "note no family",
        "skipped step_50: truncated",
        "layers.7.rotary and 2 more (--json lists all): buffer",
        "Summary of rank onset 20 ratio 0.1235 stages",
    ):
        assert fact in output


def test_the_summary_is_a_table_of_what_is_known_of_each_matrix(many):
    output = run(many)
    assert line_of(output, "  order") == ["order", "mlp", "10,", "attn", "-"]
    assert line_of(output, "  frozen") == ["frozen", "none"]
    table = output[output.index("Summary of rank", output.index("Summary of rank") + 1) :]
    assert table.split()[3:10] == ["onset_", "onset_", "lowest", "step", "left", "step", "right"]
    assert line_of(table, "layers.0.attn.q") == ["layers.0.attn.q", "1.235", "0", "1"]
    assert line_of(table, "layers.1.attn.q") == ["layers.1.attn.q", "-", "0", "1"]
    chosen = run(many, "--matrices", "*.mlp.up")
    assert "layers.0.mlp.up" in chosen and "layers.0.attn.q" not in chosen


def test_the_other_outputs_are_named_with_the_command(many):
    output = run(many)
    assert "Also in rank: stable_rank, singular_values, per_head, stored, total_error." in output
    assert f"ckpt show {many} --what rank.stable_rank" in output
    assert "stable_rank" in run(many, "--what", "rank.stable_rank")


def test_lines_fit_eighty_columns_and_control_characters_do_not_reach_the_terminal(many, single):
    for output in (run(many), run(single), run(many, "--what", "rank"), run(single, "--what", "rank")):
        lines = [line for line in output.splitlines() if not line.startswith(("Show one", "results"))]
        assert max(map(len, lines)) <= 80
        assert "\x1b" not in output and "evil\\x1b[2J[red]" in output


def test_a_single_checkpoint_shows_outputs_side_by_side_without_sparkline(single):
    output = run(single)
    assert "one checkpoint, step 0" in output
    lines = [line.split() for line in output.splitlines()]
    assert ["effective_", "stable_"] in lines and ["rank", "rank"] in lines
    assert line_of(output, "layers.1.attn.q") == ["layers.1.attn.q", "2", "0.25"]
    assert line_of(output, "total") == ["total", "10"]
    assert not set("▁▂▃▄▅▆▇█") & set(output)


def test_outputs_with_more_dims_have_one_row_per_cell(many):
    output = run(many, "--what", "rank.singular_values", "--what", "rank.per_head", "--what", "rank.stored")
    assert "layers.1.attn.q [k 1]" in output
    assert "rank.per_head [bit]" in output
    assert line_of(output, "layer 0, head 1")[-5:] == ["0", "4", "0", "4", "▁▃▅▆█"]
    assert line_of(output, "layers.0.attn.q  ")[1:] == ["bfloat16", "bfloat16"]


def test_matrices_narrow_the_rows(many):
    output = run(many, "--matrices", "layers.*.attn.q")
    assert "layers.1.attn.q" in output and "mlp.up" not in output and "loss" not in output
    data = json.loads(run(many, "--matrices", "*.up", "--what", "rank.singular_values", "--json"))
    group = data["groups"]["rank"]
    assert group["labels"] == {"matrix": ["layers.0.mlp.up"], "k": [0, 1]}
    assert group["outputs"]["singular_values"]["values"] == [[[4.0, 5.0]]] * 5


def test_json_holds_everything_with_nan_as_null(many):
    data = json.loads(run(many, "--json"), parse_constant=pytest.fail)
    assert data["attributes"]["source"] == "runs/markov"
    rank = data["groups"]["rank"]
    assert set(rank["outputs"]) == set(Rank.outputs)
    assert rank["steps"] == [0, 10, 20, 30, 40]
    assert rank["labels"]["matrix"] == MATRICES
    assert rank["outputs"]["effective_rank"] == {
        "dims": ["step", "matrix"],
        "unit": "1",
        "long_name": "exponential of the entropy",
        "error_of": None,
        "values": [[1.0 + i, 2.0, None, 4.0] for i in range(5)],
    }
    assert rank["outputs"]["total_error"]["error_of"] == "total"
    assert len(rank["attributes"]["skipped"]) == 10
    assert data["groups"]["trajectory"]["outputs"]["loss"]["values"][1] == 0.5


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--what", "rank.efective_rank"], "no 'rank.efective_rank'. Did you mean 'rank.effective_rank'?"),
        (["--what", "rnk"], "Did you mean 'rank'?"),
        (["--matrices", "layers.*.attn.k"], "No label matches 'layers.*.attn.k'. Did you mean 'layers."),
        (["--matrices", "zzz"], "Known: "),
    ],
)
def test_unknown_names_get_the_nearest(many, args, expected):
    with pytest.raises(ResultsError) as caught:
        run(many, *args)
    assert expected in str(caught.value)


def test_a_glob_that_matches_none_of_many_labels_names_one(tmp_path):
    class One(Analyzer):
        """One output."""

        name = "one"
        outputs: ClassVar = {"x": Out(("matrix",))}

    labels = [f"w{i}" for i in range(200)]
    full = check(One(), {"matrix": labels, "x": np.zeros(200)}, "here")
    empty = check(One(), {"matrix": [], "x": []}, "here", step=1)
    path = write_results(tmp_path / "r.h5", [Group.of(One(), [full, empty])])
    with pytest.raises(ResultsError, match=r"The first of 200 labels is 'w0'\."):
        run(path, "--matrices", "zzz")
    assert "100 more rows; --matrices GLOB narrows the choice" in run(path)


def test_an_analyzer_without_steps_says_so(tmp_path):
    path = write_results(tmp_path / "r.h5", [Group.of(Rank(), [])])
    output = run(path)
    assert "rank.effective_rank: exponential of the entropy: no step was analyzed." in output


def test_a_terminal_without_unicode_gets_ascii(many):
    code = "import sys; from ckpt_tools.cli.show import show; show([sys.argv[1]])"
    env = {"PYTHONIOENCODING": "ascii", "COLUMNS": "80", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code, str(many)], capture_output=True, env=env, check=True)
    assert done.stdout.isascii()
    assert line_of(done.stdout.decode("ascii"), "layers.0.attn.q")[-1] == "_-+*@"


def test_show_imports_neither_xarray_nor_torch(many):
    code = "import sys; from ckpt_tools.cli.show import show; show([sys.argv[1]], standalone_mode=False)"
    command = [sys.executable, "-c", f"{code}; print(*sys.modules)", str(many)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not {"xarray", "torch", "pandas", "sklearn", "scipy"} & set(done.stdout.split())
