"""What notebooks show is well-formed, says the numbers, and lets nobody's tensor names through as markup."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from safetensors.numpy import save_file

from ckpt_tools import Analyzer, Out, analyze
from ckpt_tools.results.html import sparkline


class Peak(Analyzer):
    """Largest absolute entry of every weight matrix."""

    name = "peak"
    outputs = {"peak": Out(("matrix",), unit="nat", long_name="largest <entry>"), "other": Out(("matrix",))}

    def analyze(self, view):
        peaks = [float(abs(m).max()) for m in view.matrices().values()]
        return {"matrix": view.matrix_names(), "peak": peaks, "other": peaks}


def test_an_outcome_shows_its_main_outputs(tmp_path: Path) -> None:
    for step in (0, 5, 10):
        folder = tmp_path / "t" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file({"<b>evil</b>": np.full((2, 2), step, "f4")}, folder / "model.safetensors")
    outcome = analyze(tmp_path / "t", [Peak], output=tmp_path / "r.h5")
    text = outcome._repr_html_()
    assert "<b>evil" not in text and "&lt;b&gt;evil" in text and "largest &lt;entry&gt;" in text
    page = ElementTree.fromstring(re.sub(r"colspan=4", 'colspan="4"', text))
    cells = [cell.text for cell in page.iter("td")][:2]
    assert cells == ["0", "10"] and "peak.peak [nat]" in text and "Also in peak: other." in text
    points = page.find(".//polyline").get("points").split()
    assert points == ["0.0,17.0", "60.0,9.0", "120.0,1.0"]
    assert "3 checkpoint(s), 1 matrices, peak" in text
    assert outcome.open()["peak/peak"].values.ravel().tolist() == [0.0, 5.0, 10.0]


def test_a_curve_needs_two_points_and_survives_nan() -> None:
    steps = np.array([0, 1, 2])
    assert sparkline(steps, np.array([1.0, np.nan, np.nan])) == ""
    assert "0.0,9.0 120.0,9.0" in sparkline(steps, np.array([1.0, np.nan, 1.0]))
