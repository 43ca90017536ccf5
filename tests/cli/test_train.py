"""`ckpt train` from the outside: what it prints, what it leaves, how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckpt_tools.cli.main import main
from ckpt_tools.cli.train import Watch, merged
from ckpt_tools.errors import OptionError
from ckpt_tools.run import read_run

pytestmark = pytest.mark.slow

MARKOV = ["transformer", "--task", "markov"]


class Ckpt:
    """Runs `ckpt train ...` in this process and returns exit code, stdout, stderr."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["ckpt", "train", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *self.capsys.readouterr()


@pytest.fixture
def ckpt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ckpt:
    return Ckpt(monkeypatch, capsys)


def test_trains_and_says_where(ckpt: Ckpt, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, stdout, stderr = ckpt(
        *MARKOV, "--steps", 30, "--set", "lam=0.2", "--lr", 0.5, "--save", "every:10", "-o", out
    )
    assert (code, stderr) == (0, "")
    assert stdout.startswith("30 steps in ")
    assert stdout.endswith(f"4 checkpoints -> {out}\n")
    info = read_run(out)
    assert (info.task_config["lam"], info.train["lr"], info.schedule, info.status) == (0.2, 0.5, "every:10", "finished")
    assert sorted(p.name for p in out.glob("step-*")) == [f"step-{s:06d}" for s in (0, 10, 20, 30)]


def test_json_and_quiet(ckpt: Ckpt, tmp_path: Path) -> None:
    code, stdout, _ = ckpt(*MARKOV, "--steps", 3, "--json", "--out", tmp_path / "a")
    outcome = json.loads(stdout)
    assert code == 0
    assert outcome["run"] == str(tmp_path / "a")
    assert {k: outcome[k] for k in ("status", "step", "checkpoints")} == {
        "status": "finished",
        "step": 3,
        "checkpoints": 2,
    }
    assert outcome["loss"] < 1.4
    assert ckpt(*MARKOV, "--steps", 3, "--quiet", "--out", tmp_path / "b") == (0, "", "")


def test_finished_run_resumes_to_nothing(ckpt: Ckpt, tmp_path: Path) -> None:
    ckpt(*MARKOV, "--steps", 3, "--out", tmp_path / "run")
    assert ckpt(*MARKOV, "--resume", "--out", tmp_path / "run") == (0, f"{tmp_path / 'run'} is already finished.\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transformr", "-t", "markov", "-o", "run"], "Did you mean 'transformer'?"),
        (["transformer", "-t", "markv", "-o", "run"], "No task is named 'markv'. Did you mean 'markov'?"),
        (["transformer", "-o", "run"], "Known: anchor, inverse, markov,"),
        ([*MARKOV], "--out is missing: name the run folder to create."),
        ([*MARKOV, "-o", "run", "--set", "lamda=1"], "has no setting 'lamda'. Did you mean 'lam'?"),
        ([*MARKOV, "-o", "run", "--set", "lam"], "--set 'lam': expected NAME=VALUE, as in d_model=32."),
        ([*MARKOV, "-o", "run", "--lr", "1", "--set", "lr=2"], "Setting 'lr' is given twice: 1 and 2."),
        ([*MARKOV, "-o", "run", "--lr", "-1"], "Option 'lr' of training must be float in [0.0, inf). Got -1.0"),
        ([*MARKOV, "-o", "run", "--save", "20"], "Schedule '20': '20' names no rule."),
        ([*MARKOV, "-o", "."], ". is not empty. Continue its run with --resume, or choose another --out."),
        ([*MARKOV, "-o", "file"], "Cannot create the run folder file"),
    ],
)
def test_bad_input_is_one_line(
    ckpt: Ckpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = ckpt(*arguments)
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert message in stderr
    assert not (tmp_path / "run").exists()


def test_settings_are_listed_with_the_tasks_defaults(ckpt: Ckpt) -> None:
    code, stdout, _ = ckpt(*MARKOV, "--help-settings")
    assert code == 0
    lines = {line.split()[0]: line for line in stdout.splitlines()}
    assert "[gd | sgd | adamw]" in lines["optimizer=gd"]
    assert "Stationary distribution. [tuple of float]" in lines["pi=0.75,0.19,0.05,0.01"]
    assert {"std=0.0001", "gamma_qk=none", "use_v=false", "steps=8000"} <= lines.keys()
    _, as_json, _ = ckpt(*MARKOV, "--help-settings", "--json")
    assert [row["name"] for row in json.loads(as_json)] == [left.partition("=")[0] for left in lines]


def test_settings_are_listed_as_a_preset_has_them(ckpt: Ckpt) -> None:
    listed = [
        ckpt("transformer", "--task", "anchor", *more, "--help-settings")[1] for more in ((), ("--preset", "mini"))
    ]
    found = [dict(line.split()[0].split("=") for line in text.splitlines()) for text in listed]
    assert found[0]["preset"] == "none" and found[1]["preset"] == "mini"
    assert found[0].keys() == found[1].keys() and found[0]["d_ff"] != found[1]["d_ff"] == "128"
    code, _, stderr = ckpt("transformer", "--task", "anchor", "--preset", "mimi", "--help-settings")
    assert code == 2 and "Did you mean 'mini'?" in stderr


@pytest.mark.parametrize(
    ("family", "task"), [("mamba", "inverse"), ("gpt", "text"), ("emb_mlp", "two_hop"), ("mlp", "matrix")]
)
def test_settings_of_other_families_are_listed(ckpt: Ckpt, family: str, task: str) -> None:
    code, stdout, stderr = ckpt(family, "--task", task, "--help-settings")
    assert (code, stderr) == (0, "") and "optimizer=" in stdout


def test_sigterm_leaves_a_run_that_resumes(ckpt: Ckpt, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-c",
        "from ckpt_tools.cli.main import main; main()",
        "train",
        *MARKOV,
        "--out",
        str(out),
    ]
    process = subprocess.Popen([*command, "--steps", "2000"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (out / "step-000020").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"Continue with: ckpt train transformer --task markov --out {out} --resume" in stderr
    assert read_run(out).status == "interrupted"
    code, stdout, _ = ckpt(*MARKOV, "--out", out, "--resume")
    assert (code, read_run(out).status) == (0, "finished")
    assert stdout.endswith(f"101 checkpoints -> {out}\n")


def test_merged_keeps_equals_signs_in_values() -> None:
    assert merged({"lr": None, "seed": "3"}, ["a = b=c"]) == {"seed": "3", "a": "b=c"}
    with pytest.raises(OptionError, match="expected NAME=VALUE"):
        merged({}, ["=3"])


def test_progress_is_told_ten_times_per_second() -> None:
    now = 0.0
    shown: list[tuple[int, int, str]] = []
    watch = Watch(lambda done, total, detail: shown.append((done, total, detail)), clock=lambda: now)
    for step in range(501):
        watch(step, 500, {"loss": 2.0})
        now += 0.002
    assert shown[0] == (50, 500, "loss 2  500 steps/s")
    assert [done for done, _, _ in shown] == pytest.approx(list(range(50, 501, 50)), abs=10)
    assert shown[-1][0] == 500
    assert watch.outcome(Path("nowhere"), "finished")["step"] == 500


def test_importing_the_command_loads_neither_torch_nor_rich() -> None:
    code = "import sys, ckpt_tools.cli.train; print(sorted({'torch', 'rich', 'numpy'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
