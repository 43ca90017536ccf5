import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner

from ckpt_tools import Analyzer, Out
from ckpt_tools.cli.report import report
from ckpt_tools.errors import ResultsError
from ckpt_tools.report import build_report, write_report
from ckpt_tools.results import Group, check, write_results


class Outline(HTMLParser):
    """Elements, attributes and texts of a page, and that elements are closed in order."""

    VOID = ("meta", "input", "br", "hr")

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def text(many):
    return build_report([many])


def test_texts_from_the_file_never_become_markup(text, evil):
    page = Outline(text)
    allowed = {"application/json", "text/plain", None}
    assert all(attrs.get("type") in allowed for tag, attrs in page.elements if tag == "script")
    assert sum(tag == "script" and not attrs for tag, attrs in page.elements) == 1
    assert not any(tag == "img" for tag, _ in page.elements)
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert "window.pwned = 1</script>" not in text
    assert "\x1b" not in text and "\u202e" not in text
    assert text.count(html.escape(evil)) > 8


def test_the_page_refers_to_nothing_outside(text):
    page = Outline(text)
    for tag, attrs in page.elements:
        assert not {"src", "srcset", "action", "data", "poster"} & set(attrs), tag
        assert attrs.get("href", "#").startswith("#")
    assert not re.search(r"@import|url\(|https?://|\bimport\(|fetch\(|XMLHttpRequest|WebSocket", text)


def test_only_the_script_and_the_style_of_the_page_may_run(text):
    (policy,) = (a["content"] for t, a in Outline(text).elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    for name, source in (
        ("script", re.findall(r"<script>(.*?)</script>", text, re.S)),
        ("style", re.findall(r"<style>(.*?)</style>", text, re.S)),
    ):
        assert len(source) == 1
        digest = base64.b64encode(hashlib.sha256(source[0].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy


def test_the_same_file_gives_the_same_page(many, text):
    assert build_report([many]) == text


@pytest.mark.parametrize(
    "fact",
    [
        "ckpt analyze runs/a --plugin kinds",
        "a gap",
        "ran out of memory",
        "step_50</td><td>truncated",
        "Read it &lt;i&gt;so&lt;/i&gt;.",
        "<code>code</code>",
        "No value at any step: never.",
        "hash3",
        "runs/a/30",
        "float32 (10 times)",
        "<strong>focus of 1</strong> on 0.",
        "<strong>Stage 2 of loss: descent</strong>",
        'pip install "ckpt-tools=='.replace('"', "&quot;"),
    ],
)
def test_the_page_tells(text, fact):
    assert fact in text


def test_the_fingerprint_is_that_of_the_file(many, text):
    assert hashlib.sha256(many.read_bytes()).hexdigest() in text


def test_events_are_told_in_the_order_of_steps(text):
    list_ = re.search(r'<ol class="story">.*?</ol>', text, re.S)[0]
    steps = [int(s) for s in re.findall(r"<span>steps? (\d+)", list_)]
    assert steps == sorted(steps) and len(steps) == 6


def test_json_inside_the_page_is_whole(text, evil):
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert [f["steps"] for f in data["files"]] == [5]
    labels = next(chart["labels"] for chart in data["charts"] if chart.get("output") == "rising")
    assert labels == [["layers.0.attn.q", "layers.1.attn.q", evil]]


def test_several_files_stand_side_by_side(many, write, tmp_path):
    other = write(tmp_path / "other.h5", source="runs/b", created="2026-01-01T00:00:00+00:00")
    text = build_report([many, other])
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    beside = [chart["beside"] for chart in data["charts"] if "beside" in chart]
    assert [(b[0]["group"], b[0]["output"], len(b)) for b in beside] == [
        ("trajectory", "loss", 2),
        ("trajectory", "eval_loss", 2),
        ("kinds", "total", 2),
    ]
    assert beside[0][1]["label"] == "2 b (other.h5)"
    ids = [attrs["id"] for _, attrs in Outline(text).elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_long_series_stay_within_the_size_asked_for(tmp_path):
    class Wide(Analyzer):
        """Many."""

        name = "wide"
        outputs = {f"x{i}": Out(("matrix",)) for i in range(4)} | {"deep": Out(("matrix", "k"))}

    rng = np.random.default_rng(0)
    labels = [f"m{i}" for i in range(50)]
    records = [
        check(
            Wide(),
            {"matrix": labels, "deep": rng.normal(size=(50, 8)), **{f"x{i}": rng.normal(size=50) for i in range(4)}},
            "here",
            step=s,
        )
        for s in range(600)
    ]
    path = write_results(tmp_path / "wide.h5", [Group.of(Wide(), records)])
    small, large = (len(build_report([path], megabytes=m)) / 1e6 for m in (0.5, 24))
    assert small < 0.6 and large > 1.5


def test_a_file_without_steps_or_analyzers_still_makes_a_page(tmp_path):
    empty = write_results(tmp_path / "empty.h5", [])
    assert "Nothing was left out." in build_report([empty])

    class One(Analyzer):
        """One."""

        name = "one"
        outputs = {"x": Out(("matrix",))}

    nothing = write_results(tmp_path / "nothing.h5", [Group.of(One(), [])])
    assert "No value at any step: x." in build_report([nothing])


@pytest.mark.parametrize(
    ("attr", "value"),
    [
        ("summary", "[1, [2, [3, [4, [5, [6]]]]]]"),
        ("summary", '{"a": ' * 300 + "1" + "}" * 300),
        ("figures", '{"output": 5}'),
        ("failures", '["x"]'),
        ("skipped", '["x", {"name": 5}]'),
        ("events", '{"onset_step": 5, "a..b..c": "{x}"}'),
        ("options", "3"),
    ],
)
def test_a_strangers_attributes_of_another_form_do_no_harm(many, tmp_path, attr, value):
    import h5py

    path = tmp_path / "odd.h5"
    path.write_bytes(many.read_bytes())
    with h5py.File(path, "r+") as file:
        file["kinds"].attrs[attr] = value
    Outline(build_report([path]))


@pytest.mark.parametrize(
    ("name", "value"),
    [("run", '"x"'), ("findings", '{"a": 1}'), ("notes", "5"), ("libraries", "[]"), ("storage_dtypes", "3")],
)
def test_facts_of_another_form_do_no_harm(many, tmp_path, name, value):
    import h5py

    path = tmp_path / "odd.h5"
    path.write_bytes(many.read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value
        file.attrs["json_attributes"] = json.dumps([name])
    Outline(build_report([path]))


def test_the_command_writes_a_page_and_replaces_only_pages(many, tmp_path):
    target = tmp_path / "report.html"
    for _ in range(2):
        done = CliRunner().invoke(report, [str(many), "-o", str(target)])
        assert done.exit_code == 0 and "1 results file(s)" in done.output and target.read_text().startswith("<!doctype")
    target.write_text("mine")
    with pytest.raises(ResultsError, match=r"is no report\. Add --force"):
        write_report([many], target)
    assert target.read_text() == "mine"
    write_report([many], target, force=True)
    assert target.read_text().endswith("</html>\n")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("paths", "target", "message"),
    [
        ([], "r.html", "No results file is named"),
        (["many", "many"], "r.html", "named twice"),
        (["nowhere.h5"], "r.html", "does not exist"),
        (["many"], "no/such/r.html", "there is no folder"),
        (["many"], ".", "it is a folder"),
    ],
)
def test_what_cannot_be_done_is_said(many, tmp_path, paths, target, message):
    named = [many if path == "many" else tmp_path / path for path in paths]
    with pytest.raises(ResultsError, match=message):
        write_report(named, tmp_path / target)
    assert not list(tmp_path.iterdir())
