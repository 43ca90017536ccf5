"""A trained run, read by somebody who has not read the paper: the page tells the stages in their order."""

import html
import re

from click.testing import CliRunner

from ckpt_tools import analyze
from ckpt_tools.cli.main import cli
from ckpt_tools.registry import load_registry
from ckpt_tools.report import build_report


def test_every_analyzer_here_explains_itself():
    ours = [cls for cls in load_registry().analyzers().values() if cls.__module__.startswith("ckpt_plugins")]
    assert len(ours) > 9
    assert [cls.name for cls in ours if len(cls.reading) < 100] == []


def test_the_report_tells_focus_and_dilution_in_their_order(tmp_path):
    run = tmp_path / "run"
    command = ["train", "transformer", "--task", "markov", "--preset", "stages", "--steps", "900", "--save", "every:20"]
    done = CliRunner().invoke(cli, [*command, "--out", str(run), "--quiet"])
    assert done.exit_code == 0, done.output
    names = ["rank", "condensation", "attention", "stages", "drift"]
    analyze(run, names, options={"stages": {"run": str(run)}}, output=tmp_path / "r.h5")
    text = build_report([tmp_path / "r.h5"])

    listed = re.search(r'<ol class="story">(.*?)</ol>', text, re.S)[1]
    told = [html.unescape(re.sub("<[^>]+>", "", item)) for item in re.findall(r"<li.*?</li>", listed, re.S)]

    def first(words):
        found = [i for i, item in enumerate(told) if words in item]
        assert found, f"{words!r} is not told in {told}"
        return found[0]

    order = [
        "neurons of embed gather on few directions",
        "Stage 2 of loss: plateau",
        "neurons of attn.q gather on few directions",
        "collapse layers.0.attn.q is down to its fewest directions",
        "focus of token 1 its attention gathers on token 0",
        "dilution of token 1 its attention has let go of token 0",
    ]
    assert [first(words) for words in order] == sorted(first(words) for words in order)
    assert first("start embed begins to move") < first("start attn.q begins to move")
    for word in ("singular values", "gather", "dilution is when", "still frozen", "plateau"):
        assert word in text, "explained in plain words"
    assert all(f'<h2 id="f0-g{i}">{name}</h2>' in text for i, name in enumerate(names))
