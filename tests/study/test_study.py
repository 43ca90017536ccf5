"""`ckpt study` from the outside: what it trains, measures, writes and refuses."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_tools.cli.main import main
from ckpt_tools.errors import CkptError, PluginError, ResultsError
from ckpt_tools.run import read_metrics, read_run
from ckpt_tools.study import Claim, Found, Measures, load_study, verdicts
from ckpt_tools.study.declare import first
from ckpt_tools.study.load import check_settings

pytestmark = pytest.mark.slow

TINY = Path(__file__).with_name("tiny.py")
Ckpt = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ckpt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ckpt:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ckpt", "study", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "out"
    command = [sys.executable, "-m", "ckpt_tools.cli", "study", str(TINY), "--seeds", "2", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return out


def rows(out: Path) -> dict[tuple[str, int | None], dict[str, object]]:
    return {(row["claim"], row["seed"]): row for row in json.loads((out / "claims.json").read_text("utf-8"))}


def test_claims_are_what_training_logged(done: Path) -> None:
    found = rows(done)
    falls = []
    for seed in (0, 1):
        loss = read_metrics(done / "runs" / "learns" / f"seed-{seed}")["loss"]
        falls.append(loss[0] - loss[-1])
        row = found["the loss falls", seed]
        assert row["measured"] == pytest.approx(falls[-1], rel=1e-12) and row["holds"] is True
        assert (row["study"], row["direction"], row["threshold"]) == ("tiny", ">", 0.0)
    both = found["mean fall", None]
    assert both["measured"] == pytest.approx(sum(falls) / 2, rel=1e-12)
    # Of two values: their standard deviation is |a - b| / sqrt(2), that of the mean sqrt(2) times less.
    assert both["standard_error"] == pytest.approx(abs(falls[0] - falls[1]) / 2, rel=1e-12)
    assert ("mean fall", 0) not in found and "standard_error" not in found["the loss falls", 0]
    said = f"| {both['measured']:.4g} ± {both['standard_error']:.2g} | yes |"
    assert said in (done / "report.md").read_text("utf-8")


def test_what_fails_is_shown_as_failed(done: Path) -> None:
    found, report = rows(done), (done / "report.md").read_text("utf-8")
    grown = found["the embedding grows tenfold", 0]
    assert grown["holds"] is False and 1 < grown["measured"] < 10  # type: ignore[operator]
    never = found["never seen", 1]
    assert (never["measured"], never["holds"]) == (None, False)
    assert "| the embedding grows tenfold | >= 10 |" in report and f"{grown['measured']:.4g} ✗" in report
    assert "**7 of 11 checks hold, 2 not measured**" in report


def test_a_run_without_its_text_is_left_out_not_failed(done: Path) -> None:
    text = rows(done)["the text is learned", 0]
    assert (text["measured"], text["holds"]) == (None, None)
    assert "Run `text` was left out: it needs --data book=FILE." in (done / "report.md").read_text("utf-8")


def test_report_says_how_to_do_it_again_and_shows_the_figure(done: Path) -> None:
    report = (done / "report.md").read_text("utf-8")
    assert f"ckpt study {TINY} --preset mini --seeds 2 --out {done}" in report
    assert "`lr=0.0`" in report and "![loss](figures/loss.png)" in report
    assert (done / "figures" / "loss.png").read_bytes().startswith(b"\x89PNG")
    fall = rows(done)["the loss falls", 1]["measured"]
    assert f"| 1 | {fall:.4g} |" in report, "the measured table"


def test_the_same_command_computes_nothing_again(done: Path, ckpt: Ckpt) -> None:
    before = {path: path.stat().st_mtime_ns for path in (done / "runs").glob("*/seed-*/**/*")}
    claims = rows(done)
    assert len(before) > 10
    code, text, _ = ckpt(TINY, "--seeds", 2, "--out", done)
    assert code == 0 and "7 of 11 checks hold, 2 not measured; 0 run(s) trained, 4 finished before" in text
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert rows(done) == claims


def test_one_seed_alone_in_a_folder_that_was_moved(done: Path, tmp_path: Path, ckpt: Ckpt) -> None:
    out = tmp_path / "copy"
    shutil.copytree(done, out)
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/seed-1/**/*")}
    code, text, _ = ckpt(TINY, "--seed", 1, "--out", out)
    assert code == 0 and "seed 0" not in text
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert rows(out)["the loss falls", 1] == rows(done)["the loss falls", 1]


def test_json(done: Path, ckpt: Ckpt) -> None:
    code, text, _ = ckpt(TINY, "--seeds", 2, "--out", done, "--json")
    shown = json.loads(text)
    assert code == 0 and shown["claims"] == json.loads((done / "claims.json").read_text("utf-8"))
    assert shown["skipped"] == {"text": "needs --data book=FILE"} and shown["failed"] == {}


def test_text_is_read_where_it_is_given(done: Path, tmp_path: Path, ckpt: Ckpt) -> None:
    book, out = tmp_path / "book.txt", tmp_path / "out"
    book.write_text("a rose is a rose is a rose. " * 40, encoding="utf-8")
    code, _, _ = ckpt(TINY, "--seed", 3, "--out", out, "--data", f"book={book}")
    assert code == 0 and rows(out)["the text is learned", 3]["holds"] is False


def test_a_run_of_other_settings_is_kept_and_reported(done: Path, tmp_path: Path, ckpt: Ckpt) -> None:
    other, out = tmp_path / "tiny.py", tmp_path / "copy"
    shutil.copytree(done, out)
    other.write_text(TINY.read_text("utf-8").replace('{"std": 0.1, "lr": 0.0,', '{"std": 0.2, "lr": 0.0,'), "utf-8")
    code, text, errors = ckpt(other, "--seed", 0, "--out", out)
    assert code == 3 and "failed: still, seed 0:" in errors and "was trained with other settings" in errors
    assert read_run(out / "runs" / "still" / "seed-0").config["std"] == 0.1
    assert rows(out)["control: without a learning rate the loss stays", 0]["holds"] is None
    assert rows(out)["the loss falls", 0]["holds"] is True and "not measured" in text


def test_a_run_that_cannot_be_trained_does_not_stop_the_others(tmp_path: Path, ckpt: Ckpt) -> None:
    wild, out = tmp_path / "wild.py", tmp_path / "out"
    wild.write_text(TINY.read_text("utf-8").replace('"lr": 0.0', '"lr": 1e300'), "utf-8")
    code, _, errors = ckpt(wild, "--seed", 0, "--out", out)
    assert code == 3 and "lower lr" in errors
    assert rows(out)["the loss falls", 0]["holds"] is True


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    slow, out = tmp_path / "slow.py", tmp_path / "out"
    slow.write_text(TINY.read_text("utf-8").replace('"steps": 20', '"steps": 2000'), "utf-8")
    command = [sys.executable, "-m", "ckpt_tools.cli", "study", str(slow), "--seed", "0", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    run = out / "runs" / "learns" / "seed-0"
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and f"Go on with: ckpt study {slow}" in errors
    reached = len(read_metrics(run)["step"])
    assert 0 < reached < 2001 and read_run(run).status == "interrupted"
    subprocess.run(command, check=True, capture_output=True)
    assert read_run(run).status == "finished" and len(read_metrics(run)["step"]) == 2001


CHANGES = {
    "no runs": ("runs={", "runs={} and {", "it declares no runs"),
    "two thresholds": ("above=1.0", "above=1.0, below=2.0", "'rank at the start' needs one of at_least"),
    "same claim": ('"never seen"', '"the loss falls"', "claim 'the loss falls' is declared twice"),
    "unknown run": ('runs=("learns",), steps', 'runs=("lerns",), steps', "there is no run 'lerns'. Did you mean"),
    "folder": ('"still": Run', '"../still": Run', "run '../still' is no good as a folder's name"),
    "setting": ('"std": 0.1, "save"', '"stdd": 0.1, "save"', "has no setting 'stdd'. Did you mean 'std'?"),
    "family": ('Run("transformer"', 'Run("transfomer"', "No family is named 'transfomer'. Did you mean"),
    "task": (
        '"markov", {"std": 0.1, "save"',
        '"markow", {"std": 0.1, "save"',
        "No task is named 'markow'. Did you mean",
    ),
    "analyzer": ('Analysis("rank"', 'Analysis("rnak"', "No analyzer is named 'rnak'. Did you mean 'rank'?"),
    "option": ('{"run": "{run}"}', '{"rum": "{run}"}', "stages has no option 'rum'. Did you mean 'run'?"),
    "name": ("Table, first", "Table, fist", "cannot be read as a study"),
    "no study": ("study = Study(", "story = Study(", "declares no study"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_bad_studies_are_refused_before_anything_is_trained(change: str, tmp_path: Path) -> None:
    before, after, message = CHANGES[change]
    file, text = tmp_path / "bad.py", TINY.read_text("utf-8")
    assert before in text
    file.write_text(text.replace(before, after, 1), "utf-8")
    with pytest.raises(CkptError) as error:
        loaded = load_study(file)
        check_settings(loaded, "mini", loaded.registry())
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([TINY.with_name("tiney.py")], "no such study. Did you mean 'tiny'?"),
        ([TINY, "--seeds", 2, "--seed", 1], "--seeds counts seeds and --seed names one"),
        ([TINY, "--preset", "minni"], "No preset is named 'minni'. Did you mean 'mini'?"),
        ([TINY, "--preset", "paper"], "has no preset 'paper'"),
        ([TINY, "--data", "book"], "expected NAME=FILE"),
        ([TINY, "--data", "book=a", "--data", "book=b"], "--data book is given twice"),
        ([TINY, "--data", "book=nowhere.txt"], "no such file"),
        ([TINY, "--data", f"boook={TINY}"], "study tiny has no such data. It reads book."),
    ],
)
def test_bad_arguments(arguments: list[object], message: str, tmp_path: Path, ckpt: Ckpt) -> None:
    code, _, errors = ckpt(*arguments, "--out", tmp_path / "out")
    assert code == 2 and message in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_found_refuses_what_is_not_there(done: Path) -> None:
    measures = Measures(done / "results" / "learns" / "seed-0.h5", "largest")
    assert measures("largest").shape == (3, 3 + 1) or measures("largest").ndim == 2
    for call, message in (
        (lambda: measures("largst"), "no output 'largst'. Did you mean 'largest'?"),
        (lambda: measures("largest", matrx="embed"), "no dimension 'matrx'. Did you mean 'matrix'?"),
        (lambda: measures("largest", matrix="embd"), "no matrix 'embd'. Did you mean 'embed'?"),
        (lambda: Found(0, {}, {})["x"], "The study has no run 'x'"),
    ):
        with pytest.raises(ResultsError, match=message):
            call()


@pytest.mark.parametrize(
    ("limits", "passing", "failing"),
    [({"at_least": 1}, 1, 0.99), ({"at_most": 1}, 1, 1.01), ({"above": 1}, 1.01, 1), ({"below": 1}, 0.99, 1)],
)
def test_directions(limits: dict[str, float], passing: float, failing: float) -> None:
    nothing = [Found(0, {}, {})]
    for number, holds in ((passing, True), (failing, False), (float("nan"), False), (None, False)):
        (verdict,) = verdicts([Claim("c", lambda found, n=number: n, **limits)], nothing)  # type: ignore[misc, arg-type]
        assert verdict.holds is holds


def test_over_seeds_needs_every_seed() -> None:
    numbers = {0: 1.0, 1: None}
    claim = Claim("c", lambda found: numbers[found.seed], at_least=0.0, over=max)
    (verdict,) = verdicts([claim], [Found(0, {}, {}), Found(1, {}, {})])
    assert (verdict.seed, verdict.measured, verdict.holds) == (None, None, False)


def test_first() -> None:
    assert first([False, True, True]) == 1 and first([True, False, True], after=0) == 2 and first([False]) is None


def test_a_file_that_is_no_python(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("study = = 1", encoding="utf-8")
    with pytest.raises(PluginError, match="SyntaxError"):
        load_study(tmp_path / "x.py")
