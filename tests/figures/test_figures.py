"""What is drawn: the numbers of the file, on the right axes, in panels and colours that can be told apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ckpt_tools.analyzer import Figure
from ckpt_tools.cli.plot import plot as command
from ckpt_tools.errors import OptionError, ResultsError
from ckpt_tools.figures import plot
from ckpt_tools.figures.canvas import thinned
from ckpt_tools.figures.draw import Options, figure
from ckpt_tools.figures.requests import requests
from ckpt_tools.figures.style import PALETTE, plain, style
from ckpt_tools.results import read_results

from .conftest import LABELS, STEPS, Declared, run_facts, written

pytestmark = pytest.mark.slow

pytest.importorskip("matplotlib")


def drawn(paths: Any, what: str, kind: str = "", lines: str = "", matrices: Any = (), **options: Any) -> Any:
    """Return the figure of one output."""
    from contextlib import ExitStack

    from ckpt_tools.figures import _others
    from ckpt_tools.figures.data import load

    with ExitStack() as stack:
        files = [stack.enter_context(read_results(path)) for path in paths]
        stack.enter_context(style())
        ((chosen, variable, declared, own),) = requests(files[0], [what], matrices, kind, lines)
        data = [load(chosen, variable), *_others(files[1:], chosen, variable, matrices)]
        against = load(chosen, chosen.group.variables[declared.against]) if declared.against else None
        made, note = figure(files, data, declared, against, Options(**options), chosen=own)
        made.draw_without_rendering()
        return made, note


def titles(made: Any) -> list[str]:
    return [axes.get_title(loc="left") for axes in made.axes]


def curves(axes: Any) -> list[list[float]]:
    return [line.get_ydata().tolist() for line in axes.lines]


def test_matrices_with_layers_become_a_panel_per_role_and_layers_colours(probe: Path) -> None:
    made, _ = drawn([probe], "probe.rank")
    assert [t for t in titles(made) if t] == ["embed", "attn.q", "attn.k", "unembed"]
    (q,) = (axes for axes in made.axes if axes.get_title(loc="left") == "attn.q")
    positions = [LABELS.index(f"layers.{i}.attn.q") for i in range(4)]
    assert curves(q) == [[(p + 1.0) * (s + 1) for s in STEPS] for p in positions]
    colours = [line.get_color() for line in q.lines]
    assert len(set(map(tuple, colours))) == 4
    bar = made.axes[-1]
    assert bar.get_ylabel() == "layer" and bar.get_ylim() == (0, 3)


def test_stated_errors_are_bands(probe: Path) -> None:
    made, _ = drawn([probe], "probe.rank", matrices=["embed"])
    (axes,) = (axes for axes in made.axes if axes.get_xlabel() == "training step")
    box = axes.collections[0].get_paths()[0].vertices
    assert box[:, 1].min() == 0.5 and box[:, 1].max() == 1001.5


def test_the_loss_lies_above_and_can_be_left_out(probe: Path) -> None:
    made, _ = drawn([probe], "probe.total")
    assert [axes.get_ylabel() for axes in made.axes] == ["loss", "total norm"]
    assert curves(made.axes[0]) == [[1 / (1 + s) for s in STEPS]]
    made, _ = drawn([probe], "probe.total", loss=False)
    assert [axes.get_ylabel() for axes in made.axes] == ["total norm"]


def test_few_labels_have_different_colours_and_a_legend_with_units_on_the_axis(probe: Path) -> None:
    made, _ = drawn([probe], "probe.few", loss=False)
    (axes,) = made.axes
    assert curves(axes) == [[1.0] * 5, [2.0] * 5, [float(s) for s in STEPS]]
    assert [line.get_color() for line in axes.lines] == list(PALETTE[:3])
    assert axes.get_ylabel() == "entropy (nat)"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["head 0", "head 1", "head 2"]


def test_cells_without_a_value_are_not_drawn(probe: Path) -> None:
    made, _ = drawn([probe], "probe.count", loss=False)
    assert curves(made.axes[0]) == [[3.0] * 5, [1.0] * 5]


def test_a_long_numbered_dimension_is_a_heat_map_with_steps_across(probe: Path) -> None:
    made, _ = drawn([probe], "probe.many", log="x")
    above, axes, bar = made.axes
    (mesh,) = axes.collections
    np.testing.assert_array_equal(mesh.get_array(), np.add.outer(np.arange(20.0), STEPS))
    assert axes.get_ylabel() == "position" and bar.get_ylabel() == "entropy by position"
    assert axes.get_xscale() == "symlog" and axes.get_xlim() == above.get_xlim() == (0, 1000)
    borders = mesh.get_coordinates()[0, :, 0]
    assert borders.tolist() == [0, 0.5, 5.5, 55, 550, 1000]


def test_matrices_can_be_a_heat_map_of_layers_for_each_role(probe: Path) -> None:
    made, _ = drawn([probe], "probe.rank", kind="heatmap", loss=False)
    assert [t for t in titles(made) if t] == ["attn.q", "attn.k"]
    q = made.axes[0].collections[0].get_array()
    np.testing.assert_array_equal(q[:, 0], [LABELS.index(f"layers.{i}.attn.q") + 1.0 for i in range(4)])
    names = [label.get_text() for label in made.axes[2].get_yticklabels()]
    assert names == ["embed", "unembed"]


def test_spectra_are_profiles_with_steps_as_colours(probe: Path) -> None:
    made, _ = drawn([probe], "probe.spectrum", matrices=["embed"], log="y")
    axes, bar = made.axes
    np.testing.assert_allclose(curves(axes), [[(s + 1) * 10.0**-k for k in range(5)] for s in STEPS])
    assert bar.get_ylabel() == "training step" and axes.get_xlabel() == "index" and axes.get_yscale() == "log"


def test_two_dimensions_with_the_same_labels_are_maps_at_wanted_steps(probe: Path) -> None:
    made, _ = drawn([probe], "probe.mass", at=(9, 2000))
    first, second, _ = made.axes
    assert [t for t in titles(made) if t] == ["step 10", "step 1000"]
    for axes in (first, second):
        np.testing.assert_array_equal(axes.images[0].get_array(), [[0.75, 0.25], [0.5, 0.5]])
    assert first.get_ylabel() == "query" and first.get_xlabel() == "key"


def test_a_declared_scatter_plot_sets_one_output_against_another(tmp_path: Path) -> None:
    path = written(tmp_path / "d.h5", Declared)
    made, _ = drawn([path], "declared.size", at=(1000,))
    (axes,) = made.axes
    points = axes.collections[0].get_offsets()
    np.testing.assert_allclose(points, np.stack([np.linspace(-3, 3, 6), np.arange(6.0) * 1000], axis=1))
    assert axes.get_ylabel() == "amplitude" and axes.get_xlabel() == "orientation (rad)"
    made, _ = drawn([path], "declared.size", at=(100, 1000), log="y")
    assert [one.get_yscale() for one in made.axes] == ["log", "log"]
    assert made.axes[0].get_ylim() == made.axes[1].get_ylim()
    assert "$" not in "".join(text.get_text() for text in made.axes[0].get_yticklabels())


def test_declared_figures_are_drawn_and_empty_ones_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "d.h5", Declared)
    files, _ = plot(path, tmp_path / "f.png", log="x")
    assert [f.name for f in files] == ["f-1.png", "f-2.png", "f-3.png"]
    assert all(f.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for f in files)


def test_a_plugin_that_declares_nothing_gets_figures_from_its_dimensions(probe: Path, tmp_path: Path) -> None:
    (pages,), notes = plot(probe, tmp_path / "f.pdf")
    assert pages.read_bytes().count(b"/Type /Page ") == 6
    assert notes == []


def test_one_checkpoint_is_drawn_over_layers(tmp_path: Path) -> None:
    path = written(tmp_path / "one.h5", steps=[7])
    made, _ = drawn([path], "probe.rank")
    (axes,) = made.axes
    assert axes.get_xlabel() == "layer"
    lines = {line.get_label(): line.get_ydata().tolist() for line in axes.lines}
    assert lines["attn.q"] == [8.0 * (LABELS.index(f"layers.{i}.attn.q") + 1) for i in range(4)]
    assert lines["embed"] == [8.0, 8.0]
    made, _ = drawn([path], "probe.few")
    assert curves(made.axes[0]) == [[0, 1, 2]]
    assert made.axes[0].lines[0].get_xdata().tolist() == [1.0, 2.0, 7.0]
    made, _ = drawn([path], "probe.spectrum")
    assert len([t for t in titles(made) if t]) == 4


def test_seeds_become_a_mean_with_a_band(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{i}.h5", scale=s, **run_facts(0.5, i)) for i, s in enumerate((1.0, 2.0, 6.0))]
    made, _ = drawn(paths, "probe.total")
    loss, axes = made.axes
    assert curves(axes) == [[3.0 * (1 + s) for s in STEPS]]
    deviation = np.std([1.0, 2.0, 6.0], ddof=1)
    box = axes.collections[0].get_paths()[0].vertices
    assert box[:, 1].max() == pytest.approx((3 + deviation) * 1001)
    assert axes.lines[0].get_label() == "mean ± sd of 3 runs"
    np.testing.assert_allclose(curves(loss)[0], [3.0 / (1 + s) for s in STEPS])


def test_a_swept_setting_is_a_colour_scale_over_means(tmp_path: Path) -> None:
    paths = [
        written(tmp_path / f"{gamma}-{seed}.h5", scale=gamma * (1 + seed), **run_facts(gamma, seed))
        for gamma in (0.8, 0.4, 0.6)
        for seed in (0, 1)
    ]
    made, _ = drawn(paths, "probe.total", loss=False)
    axes, bar = made.axes
    np.testing.assert_allclose([line[0] for line in curves(axes)], [0.6, 0.9, 1.2])  # gamma * 1.5, ascending
    assert bar.get_ylabel() == "gamma" and bar.get_ylim() == (0.4, 0.8)
    made, _ = drawn(paths, "probe.total", by="seed", loss=False)
    assert [line.get_label() for line in made.axes[0].lines] == [f"seed = {i} (mean ± sd of 3 runs)" for i in (0, 1)]
    with pytest.raises(ResultsError, match=r"named 'gama'\. Did you mean 'gamma'\?"):
        drawn(paths, "probe.total", by="gama")


def test_files_of_unknown_runs_are_told_apart_by_name(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{name}.h5", scale=i + 1.0) for i, name in enumerate(("base", "wide"))]
    made, _ = drawn(paths, "probe.few", loss=False)
    assert [t for t in titles(made) if t] == ["head 0", "head 1", "head 2"]
    assert [line.get_label() for line in made.axes[0].lines] == ["base", "wide"]


def test_means_are_taken_at_shared_steps_only(tmp_path: Path) -> None:
    a = written(tmp_path / "a.h5", steps=[0, 10, 20], **run_facts(0.5, 0))
    b = written(tmp_path / "b.h5", steps=[10, 20, 30], **run_facts(0.5, 1))
    made, _ = drawn([a, b], "probe.total", loss=False)
    assert made.axes[0].lines[0].get_xdata().tolist() == [10, 20]
    c = written(tmp_path / "c.h5", steps=[5], **run_facts(0.5, 2))
    with pytest.raises(ResultsError, match="share no step"):
        drawn([a, c], "probe.total", loss=False)


def test_curves_that_coincide_are_dashed(tmp_path: Path) -> None:
    made, _ = drawn([written(tmp_path / "a.h5", steps=[0, 1])], "probe.few", loss=False)
    # head 0 is 1, 1 and head 2 is 0, 1: apart; head 1 is 2.
    assert [line.get_linestyle() for line in made.axes[0].lines] == ["-", "-", "-"]
    twin = [written(tmp_path / f"{n}.h5") for n in "bc"]
    made, _ = drawn(twin, "probe.total", loss=False)
    assert [line.get_linestyle() for line in made.axes[0].lines] == ["-", "--"]


def test_more_panels_than_fit_are_said(probe: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "b.h5", scale=2.0)
    made, note = drawn([probe, other], "probe.spectrum", loss=False)
    assert len(titles(made)) == 12
    assert note == "38 more panel(s) did not fit; narrow the choice with --matrices"


def test_a_long_curve_keeps_its_extremes() -> None:
    x = np.arange(10000)
    y = np.sin(x / 700.0)
    y[[1234, 8765]] = [9.0, -9.0]
    few, kept, band = thinned(x, y, np.abs(y))
    assert len(few) <= 602 and {9.0, -9.0} <= set(kept)
    np.testing.assert_array_equal(kept, y[few])
    np.testing.assert_array_equal(band, np.abs(y)[few])


def test_the_same_figure_is_the_same_file(probe: Path, tmp_path: Path) -> None:
    for form in ("pdf", "png", "svg"):
        one, two = (plot(probe, tmp_path / f"{i}.{form}", what=["probe.total"])[0][0] for i in (1, 2))
        assert one.read_bytes() == two.read_bytes()


def test_settings_of_the_user_do_not_matter_and_come_back(probe: Path, tmp_path: Path) -> None:
    import matplotlib

    (before,), _ = plot(probe, tmp_path / "a.png", what=["probe.total"])
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        (after,), _ = plot(probe, tmp_path / "b.png", what=["probe.total"])
        assert matplotlib.rcParams["font.size"] == 30
    assert before.read_bytes() == after.read_bytes()


def test_labels_are_drawn_as_they_are(tmp_path: Path) -> None:
    """Dollar signs of a stranger's tensor names are no mathematics."""
    from ckpt_tools import Analyzer, Out
    from ckpt_tools.results import Group, check, write_results

    class Odd(Analyzer):
        """Odd names."""

        name = "odd"
        outputs = {"x": Out(("matrix",))}

    records = [check(Odd(), {"matrix": ["$\\frac", "b\x1b[2J"], "x": [1.0, s]}, "here", step=s) for s in (0, 1)]
    path = write_results(tmp_path / "odd.h5", [Group.of(Odd(), records)])
    made, _ = drawn([path], "odd.x")
    assert [text.get_text() for text in made.axes[0].get_legend().get_texts()] == ["$\\frac", "b\\x1b[2J"]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (20, "20"), (1e4, "10⁴"), (2e-5, "2×10⁻⁵"), (0.001, "0.001"), (-3e7, "-3×10⁷")]
)
def test_powers_of_ten_are_written_with_superscripts(value: float, text: str) -> None:
    assert plain(value) == text


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"output": "f.docx"}, "end the name with one of these"),
        ({"what": ["probe.rnk"]}, r"Did you mean 'probe\.rank'\?"),
        ({"what": ["probe.dtype"]}, "texts, which cannot be drawn"),
        ({"what": ["probe.never"]}, "no finite value"),
        ({"what": ["probe.total"], "kind": "heatmap"}, "has 0 dimension"),
        ({"what": ["probe.total"], "kind": "pie"}, "no kind of figure 'pie'"),
        ({"what": ["probe.rank"], "matrices": ["*.v"]}, "No label matches"),
        ({"what": ["probe.few"], "lines": "haed"}, r"Did you mean 'head'\?"),
    ],
)
def test_what_cannot_be_drawn_is_said(probe: Path, tmp_path: Path, how: dict[str, Any], expected: str) -> None:
    how = {"output": "f.png", **how}
    with pytest.raises((ResultsError, OptionError), match=expected):
        plot(probe, tmp_path / how.pop("output"), **how)


def test_the_command_names_what_it_wrote(probe: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "rank.svg"
    args = [str(probe), "--what", "probe.rank", "--log-x", "--no-loss", "-o", str(target)]
    done = CliRunner().invoke(command, args)
    assert done.exit_code == 0 and done.stdout == f"{target}\n"
    assert target.read_text("utf-8").startswith("<?xml")


def test_without_matplotlib_the_message_says_what_to_install(probe: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.argv = ['ckpt', 'plot', *sys.argv[1:]]\n"
        "from ckpt_tools.cli.main import main; main()"
    )
    args = [sys.executable, "-c", code, str(probe), "-o", str(tmp_path / "f.pdf")]
    done = subprocess.run(args, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == 'ckpt: Figures need matplotlib: pip install "ckpt-tools[report]"\n'


def test_figures_an_analyzer_cannot_have_are_faults() -> None:
    from ckpt_tools.analyzer import declaration_faults

    from .conftest import Probe

    bad = [
        ("rank", "not Figure"),
        (Figure("rnk"), "'rnk' is not an output"),
        (Figure("total", "heatmap"), "needs 1 dimension"),
        (Figure("rank", "pie"), "kind 'pie'"),  # type: ignore[arg-type]
        (Figure("rank", "scatter"), "go together"),
        (Figure("rank", "scatter", against="few"), "other dimensions"),
        (Figure("rank", lines="layer"), "'layer' is not one of its dimensions"),
        (Figure("rank", at={"side": "input"}), "'side' is not one of its dimensions"),
        (Figure("dtype"), "texts cannot be drawn"),
        (Figure("rank", log="z"), "log 'z'"),  # type: ignore[arg-type]
    ]
    for figure_, expected in bad:
        kind = type("Bad", (Probe,), {"figures": (figure_,), "analyze": lambda self, view: {}})
        (fault,) = declaration_faults(kind)
        assert expected in fault
