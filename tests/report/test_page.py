"""The page in a real browser: what is drawn, what reacts, and that nothing leaves the page."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from typing import ClassVar

import numpy as np
import pytest

from ckpt_tools import Analyzer, Figure, Out
from ckpt_tools.report import write_report
from ckpt_tools.results import Group, check, write_results

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SEEN = """async (figures) => {
  for (const f of document.querySelectorAll('figure[data-chart]')) {
    f.scrollIntoView();
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  }
}"""
# How many pixels of each colour a canvas has, transparent ones left out.
COLOURS = """(canvas) => {
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height), found = {};
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] === 255) {
      const key = `${data[i]},${data[i + 1]},${data[i + 2]}`;
      found[key] = (found[key] || 0) + 1;
    }
  }
  return found;
}"""
AT = """(canvas, [x, y]) => Array.from(canvas.getContext('2d').getImageData(
  Math.round(x * canvas.width), Math.round(y * canvas.height), 1, 1).data).slice(0, 3)"""
LOW, HIGH = [68, 1, 84], [253, 231, 37]
BLUE, VERMILION, DARK_BLUE = "0,114,178", "213,94,0", "92,179,238"


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium without network."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


class Visit:
    """An open page, and everything that it asked for or complained about."""

    def __init__(self, browser, path, width=1200, scheme="light", seen=True):
        self.context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True, reduced_motion="reduce"
        )
        self.context.set_default_timeout(5000)
        self.page = self.context.new_page()
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complain(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())
        if seen:
            self.page.evaluate(SEEN)

    def complain(self, text):
        # That is about the tests, which read pixels.
        if not text.startswith("Canvas2D: Multiple readback"):
            self.complaints.append(text)

    def figure(self, output):
        """The chart of an output, unfolded."""
        figure = self.page.locator("figure.chart", has=self.page.locator("code").get_by_text(output, exact=True)).first
        figure.scroll_into_view_if_needed()
        return figure

    def colours(self, output):
        return Counter(self.figure(output).locator("canvas").first.evaluate(COLOURS))

    def at(self, output, x, y):
        return self.figure(output).locator("canvas").first.evaluate(AT, [x, y])


@pytest.fixture(scope="module")
def report(many, tmp_path_factory):
    return write_report([many], tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def shared(chromium, report):
    visit = Visit(chromium, report)
    yield visit
    visit.context.close()


@pytest.fixture
def visit(shared):
    """The page as it was when it was opened."""
    shared.page.reload()
    shared.page.evaluate(SEEN)
    return shared


def test_every_chart_is_drawn(visit):
    canvases = visit.page.locator("figure[data-chart] .plot:visible canvas:first-child")
    assert canvases.count() == 5
    for i in range(canvases.count()):
        colours = Counter(canvases.nth(i).evaluate(COLOURS))
        assert len(colours) > 3 and sum(colours.values()) > 300, i


def test_no_request_leaves_the_page_and_nothing_complains(visit):
    page = visit.page
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    page.evaluate(SEEN)
    assert page.locator("figure[data-chart] canvas").count() == 2 * 6 + 1
    assert visit.complaints == []
    assert {url.partition(":")[0] for url in visit.requests} == {"file"} and len(set(visit.requests)) == 1


def test_texts_of_a_stranger_stay_texts(visit, evil):
    page = visit.page
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    page.evaluate(SEEN)
    assert page.evaluate("window.pwned") is None
    assert page.locator("img").count() == 0
    assert page.get_by_text(evil).count() > 5
    assert visit.figure("rising").locator("label", has_text=evil).count() == 1


def test_a_script_that_gets_in_does_not_run(visit):
    """The policy holds by itself: markup put into the page by force starts nothing."""
    visit.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.pwned = 3\">')")
    visit.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.pwned = 4'}))"
    )
    visit.page.wait_for_timeout(100)
    assert visit.page.evaluate("window.pwned") is None
    assert any("Content Security Policy" in text for text in visit.complaints)
    visit.complaints.clear()
    visit.requests[:] = [url for url in visit.requests if url.endswith(".html")]


def test_a_map_shows_its_numbers_and_the_slider_moves_it(visit):
    figure = visit.figure("map")
    figure.get_by_label("View").select_option("map")
    slider = figure.get_by_role("slider")
    corners = {"first": (0.45, 0.2), "second": (0.75, 0.2)}
    assert visit.at("map", *corners["first"]) == HIGH and visit.at("map", *corners["second"]) == LOW
    slider.focus()
    visit.page.keyboard.press("ArrowLeft")
    assert figure.locator(".slide output").inner_text() == "step 30"
    assert visit.at("map", *corners["first"]) == LOW
    assert visit.at("map", 0.75, 0.6) == HIGH


def test_curves_are_switched_by_keyboard(visit):
    before = visit.colours("rising")
    assert before[BLUE] > 100 and before[VERMILION] > 50
    box = visit.figure("rising").get_by_role("checkbox", name="layers.0.attn.q")
    box.focus()
    visit.page.keyboard.press("Space")
    after = visit.colours("rising")
    assert after[BLUE] == 0 and after[VERMILION] > 50
    visit.page.keyboard.press("Space")
    assert visit.colours("rising") == before


def test_a_falling_curve_falls(visit):
    rows = (
        visit.figure("total")
        .locator("canvas")
        .first.evaluate(
            """(canvas) => {
          const { width, height } = canvas, g = canvas.getContext('2d');
          const blue = (x, y) => { const [r, , b] = g.getImageData(x, y, 1, 1).data; return r < 60 && b > 120; };
          const top = (x) => Array.from({ length: height }, (_, y) => y).find((y) => blue(x, y)) / height;
          return [0.15, 0.5, 0.9].map((x) => top(Math.round(x * width)));
        }"""
        )
    )
    assert rows[0] < rows[1] < rows[2], "total falls from 10 to 6"
    assert rows[1] == pytest.approx((rows[0] + (rows[2] - rows[0]) * (0.5 - 0.15) / 0.75), abs=0.03), (
        "in a straight line"
    )


def test_the_pointer_reads_values(visit):
    plot = visit.figure("rising").locator(".plot")
    box = plot.bounding_box()
    left, right = box["x"] + 58, box["x"] + box["width"] - 14
    visit.page.mouse.move(left + (right - left) * 0.76, box["y"] + 20)
    tip = plot.locator(".tip")
    assert tip.is_visible()
    assert tip.inner_text().split("\n") == ["3 ± 0.25 bit", "layers.0.attn.q", "step 30"]
    visit.page.mouse.move(left, box["y"] - 60)
    assert not tip.is_visible()


def test_the_keyboard_reads_values_and_zooms(visit):
    figure, keys = visit.figure("rising"), visit.page.keyboard
    figure.locator(".plot").focus()
    for key in ("ArrowLeft", "ArrowLeft", "ArrowLeft"):
        keys.press(key)
    assert figure.locator(".readout").inner_text() == "layers.0.attn.q, step 20: 2 ± 0.25 bit"
    keys.press("ArrowDown")
    assert "layers.1.attn.q, step 20: 2 ± 0.25 bit" in figure.locator(".readout").inner_text()
    keys.press("Escape")
    whole = visit.colours("rising")
    keys.press("+")
    assert visit.colours("rising") != whole
    keys.press("0")
    assert visit.colours("rising") == whole


def test_a_row_that_is_switched_off_under_the_cursor_is_no_longer_told(visit):
    figure = visit.figure("rising")
    figure.get_by_label("View").select_option("stepmap")
    figure.locator(".plot").focus()
    for key in ("ArrowDown", *["ArrowDown"] * 4):
        visit.page.keyboard.press(key)
    assert figure.locator(".tip").is_visible()
    figure.get_by_role("checkbox", name="layers.0.attn.q").uncheck()
    assert not figure.locator(".tip").is_visible() and visit.complaints == []


def test_dragging_zooms_and_the_button_shows_all_again(visit):
    figure = visit.figure("rising")
    whole, box = visit.colours("rising"), figure.locator(".plot").bounding_box()
    visit.page.mouse.move(box["x"] + 150, box["y"] + 100)
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + 260, box["y"] + 120, steps=3)
    visit.page.mouse.up()
    assert visit.colours("rising") != whole
    figure.get_by_role("button", name="Show all steps").click()
    assert visit.colours("rising") == whole


def test_the_timeline_tells_its_events_in_order(visit):
    figure = visit.page.locator("figure.timeline")
    figure.locator(".plot").focus()
    said = []
    for _ in range(6):
        visit.page.keyboard.press("ArrowRight")
        said.append(figure.locator(".readout").inner_text())
    assert said[0].startswith("steps 0 to 20, 1 plateau")
    assert any(text.startswith("step 10, onset, layers.0.attn.q moves.") for text in said)
    assert "steps 10 to 30, focus of 1, on 0." in said


def test_everything_that_can_be_used_is_reached_by_the_tab_key(visit):
    page = visit.page
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    reached = set()
    for _ in range(400):
        page.keyboard.press("Tab")
        name = page.evaluate("(() => { const a = document.activeElement; a.dataset.reached = 1; return a.tagName; })()")
        reached.add(name)
        if name == "BODY":
            break
    missed = page.evaluate(
        "[...document.querySelectorAll('button, select, input, summary, a[href], .plot')]"
        ".filter((e) => e.checkVisibility() && !e.dataset.reached).map((e) => e.outerHTML.slice(0, 90))"
    )
    assert missed == [] and {"BUTTON", "SELECT", "INPUT", "SUMMARY", "DIV"} <= reached


def test_a_filter_narrows_many_curves(visit):
    visit.page.get_by_text("more outputs").click()
    visit.page.evaluate(SEEN)
    figure = visit.figure("five")
    figure.get_by_label("View").select_option("lines")
    for dim in ("query", "key"):
        figure.get_by_label(dim, exact=True).select_option("-1")
    figure.get_by_text("16 curves").click()
    figure.get_by_role("searchbox").fill("*key 3")
    assert figure.locator(".boxes label:visible").count() == 4
    figure.get_by_role("button", name="Show only the curves listed").click()
    figure.get_by_role("searchbox").fill("")
    boxes = figure.locator(".boxes input")
    assert [boxes.nth(i).is_checked() for i in range(16)] == [i % 4 == 3 for i in range(16)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_does_not_scroll_sideways(chromium, report, scheme):
    visit = Visit(chromium, report, width=390, scheme=scheme)
    visit.page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    visit.page.evaluate(SEEN)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    ink, paper = visit.page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert (luminance(ink) > luminance(paper)) == (scheme == "dark")
    assert contrast(ink, paper) > 7
    assert visit.complaints == []
    visit.context.close()


def luminance(colour):
    """The relative luminance of WCAG 2.1 of a CSS colour."""
    parts = [int(v) / 255 for v in colour[4:-1].split(",")]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_paper_is_white_and_has_all_that_is_unfolded(chromium, report):
    visit = Visit(chromium, report, scheme="dark")
    dark = visit.colours("rising")
    visit.page.emulate_media(media="print")
    visit.page.wait_for_timeout(200)
    assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert visit.colours("rising")[BLUE] > 100 and dark[BLUE] == 0
    assert visit.page.locator(".controls:visible, .tools:visible").count() == 0
    assert len(visit.page.pdf()) > 20_000
    visit.page.emulate_media(media="screen")
    visit.page.wait_for_timeout(200)
    assert visit.colours("rising")[BLUE] == 0 and visit.colours("rising")[DARK_BLUE] > 100
    visit.context.close()


def test_charts_nobody_has_scrolled_to_are_drawn_before_printing(chromium, report):
    visit = Visit(chromium, report, width=500, scheme="dark", seen=False)
    visit.page.wait_for_timeout(200)
    drawn = visit.page.locator("figure[data-chart] canvas:first-child")
    few = drawn.count()
    visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert few < drawn.count() == 5
    assert Counter(drawn.nth(4).evaluate(COLOURS))[BLUE] > 100
    visit.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert Counter(drawn.nth(4).evaluate(COLOURS))[BLUE] == 0
    visit.context.close()


def test_a_single_checkpoint_has_bars_as_long_as_its_values(chromium, single, tmp_path):
    visit = Visit(chromium, write_report([single], tmp_path / "one.html"))
    bars = visit.figure("rising").locator(".bar")
    widths = [bars.nth(i).bounding_box()["width"] for i in range(3)]
    assert widths[2] / widths[1] == pytest.approx(2 / 4, abs=0.01) and widths[0] < 3
    visit.figure("rising").get_by_label("sorted").check()
    assert visit.figure("rising").locator("td.number").all_inner_texts() == [
        "4 ± 0.25 bit",
        "2 ± 0.25 bit",
        "0 ± 0.25 bit",
    ]
    assert visit.complaints == [] and visit.page.locator("figure.timeline").count() == 0
    visit.context.close()


def test_files_side_by_side_have_a_curve_each(chromium, many, write, tmp_path):
    other = write(tmp_path / "other.h5", count=3)
    visit = Visit(chromium, write_report([many, other], tmp_path / "two.html"))
    figure = visit.page.locator("figure.chart", has_text="kinds: total").first
    assert figure.get_by_role("checkbox").count() == 4
    figure.locator(".plot").focus()
    visit.page.keyboard.press("ArrowLeft")
    assert "step 40: 6" in figure.locator(".readout").inner_text()
    visit.page.keyboard.press("ArrowDown")
    assert "(other.h5), step 20: 8" in figure.locator(".readout").inner_text()
    assert visit.complaints == []
    visit.context.close()


class Shapes(Analyzer):
    """A scatter chart, and a map that grows."""

    name = "shapes"
    figures = (Figure("size", "scatter", against="angle"), Figure("cosine", "map"))
    outputs: ClassVar = {
        "size": Out(("unit",)),
        "angle": Out(("unit",), unit="rad"),
        "cosine": Out(("place", "other")),
    }


@pytest.fixture
def shapes(chromium, tmp_path):
    """A page of two checkpoints: at the second, the map has two places more."""
    raws = [
        {"size": [1.0, 2.0], "angle": [0.5, -0.5], "cosine": np.eye(2)},
        {"size": [3.0, 4.0], "angle": [0.25, -1.0], "cosine": np.eye(4)},
    ]
    records = [check(Shapes(), raw, "here", step=step) for step, raw in enumerate(raws)]
    path = write_results(tmp_path / "shapes.h5", [Group.of(Shapes(), records)])
    visit = Visit(chromium, write_report([path], tmp_path / "shapes.html"))
    yield visit
    assert visit.complaints == []
    visit.context.close()


def test_a_scatter_chart_sets_one_output_against_another(shapes):
    figure, keys = shapes.figure("size"), shapes.page.keyboard
    figure.locator(".plot").focus()
    said = []
    for _ in range(2):
        keys.press("ArrowRight")
        said.append(figure.locator(".readout").inner_text())
    assert said == ["unit 1, step 1: 4 at -1 rad", "unit 0, step 1: 3 at 0.25 rad"]
    figure.get_by_role("slider").focus()
    keys.press("ArrowLeft")
    figure.locator(".plot").focus()
    keys.press("ArrowLeft")
    assert figure.locator(".readout").inner_text() == "unit 1, step 0: 2 at -0.5 rad"


def test_a_map_shows_only_what_its_step_fills(shapes):
    figure, keys = shapes.figure("cosine"), shapes.page.keyboard

    def last():
        figure.locator(".plot").focus()
        for key in ("Escape", *["ArrowDown"] * 6, *["ArrowRight"] * 6):
            keys.press(key)
        return figure.locator(".readout").inner_text()

    assert last() == "place 3, other 3, step 1: 1"
    figure.get_by_role("slider").focus()
    keys.press("ArrowLeft")
    assert last() == "place 1, other 1, step 0: 1"
