"""What docs/report.md says is true."""

import re
from pathlib import Path

import numpy as np

from ckpt_tools import Series
from ckpt_tools.cli.main import COMMANDS
from ckpt_tools.report import MEGABYTES, build_report
from ckpt_tools.results import Group, check, write_results

TEXT = (Path(__file__).parents[2] / "docs" / "report.md").read_text("utf-8")


class View:
    """What the example reads of a view: two matrices, of which the second never grows."""

    def __init__(self, step: int) -> None:
        self.step = step

    def matrices(self):
        return {"embed": np.full((2, 2), 0.01 * self.step), "unembed": np.zeros((2, 2))}


def test_the_example_tells_when_a_matrix_begins_to_learn(tmp_path):
    names: dict = {}
    exec(compile(re.search(r"```python\n(.*?)```", TEXT, re.S)[1], "docs/report.md", "exec"), names)
    waking = names["Waking"]()
    records = [check(waking, waking.analyze(View(step)), "here", step=step) for step in (0, 10, 20, 30)]
    series = Series(waking.outputs, records)
    group = Group.of(waking, series, summary=waking.summarize(series))
    text = build_report([write_results(tmp_path / "r.h5", [group])])
    assert "has learned nothing yet" in text
    (item,) = re.findall(r"<li>.*?embed begins to learn.*?</li>", text)
    assert "step 20" in item and "<strong>awake</strong>" in item


def test_the_default_size_and_the_command_are_named():
    assert f"`--size` megabytes ({MEGABYTES})" in TEXT and "report" in COMMANDS
