"""docs/plugins.md is true: its files are written, its commands and scripts run, in order, in one folder.

What is installed goes into an environment of its own that shares the packages of this one.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ckpt_tools.cli.main import main
from ckpt_tools.testing import CHECKS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "plugins.md").read_text("utf-8")
PUBLISH = "## Publish it"
REFUSED = "  # exits with 2"


def blocks(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def lines(block: str) -> list[str]:
    return [line for line in block.splitlines() if line]


class Workplace:
    """A folder and a virtual environment with commands `ckpt`, `pip`, `pytest` and `python` of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "venv" / "bin"
        venv.create(folder / "venv", with_pip=False, symlinks=True)
        (site,) = (folder / "venv").glob("lib/python*/site-packages")
        shared = [p for p in sys.path if p.endswith("site-packages")]
        (site / "shared.pth").write_text("".join(f"import site; site.addsitedir({p!r})\n" for p in shared))
        self._command("ckpt", "from ckpt_tools.cli.main import main\nmain()")
        self._command("pytest", "import sys, pytest\nsys.exit(pytest.main(['-p', 'no:cacheprovider', *sys.argv[1:]]))")
        self._command("pip", "import sys, runpy\nsys.argv[0] = 'pip'\nrunpy.run_module('pip', run_name='__main__')")

    def _command(self, name: str, code: str) -> None:
        (self.bin / name).write_text(f"#!{self.bin / 'python'}\n{code}\n")
        (self.bin / name).chmod(0o755)

    def run(self, command: str | list[str]) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": "."}
        # What pip would fetch is here already, and there may be no network.
        environment |= {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "COLUMNS": "200"}
        environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
        return subprocess.run(
            command, shell=isinstance(command, str), cwd=self.folder, capture_output=True, text=True, env=environment
        )


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    pytest.importorskip("pip")
    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    return Workplace(tmp_path)


class Here:
    """Runs blocks in this process, which has imported torch already: two dozen commands would import it each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capfd = monkeypatch, capfd

    def command(self, line: str) -> subprocess.CompletedProcess[str]:
        words = shlex.split(line)
        assert words[0] == "ckpt"
        self.monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as left:
            main()
        out, err = self.capfd.readouterr()
        return subprocess.CompletedProcess(line, int(left.value.code or 0), out, err)


def checked(command: str, run: Callable[[str], subprocess.CompletedProcess[str]]) -> str:
    """Run a command, check its exit code, and return what it printed."""
    done = run(command.removesuffix(REFUSED))
    said = done.stdout + done.stderr
    assert done.returncode == (2 if command.endswith(REFUSED) else 0), f"{command}\n{said}"
    assert said.strip(), f"{command} printed nothing"
    return said


def test_the_page_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    here, said = Here(monkeypatch, capfd), ""
    with torch.random.fork_rng():
        for kind, block in blocks(PAGE[: PAGE.index(PUBLISH)]):
            name = re.match(r"# (\w+\.\w+)\n", block)
            if name:
                (tmp_path / name[1]).write_text(block)
            elif kind == "text":
                assert block.strip() in said
            elif kind == "python":
                exec(compile(block, "docs/plugins.md", "exec"), {"__name__": "__main__"})
            else:
                assert kind == "console"
                for command in lines(block):
                    said = checked(command, here.command)
    assert {p.stem for p in tmp_path.glob("*.py")} == {"peak", "power", "moved", "peaks", "bigram"}


def test_what_is_written_is_installed_checked_tested_and_uninstalled(workplace: Workplace) -> None:
    shown = dict(blocks(PAGE[PAGE.index(PUBLISH) :]))
    (workplace.folder / "runs" / "markov").mkdir(parents=True)
    save_file({"w": np.eye(3, dtype="f4")}, workplace.folder / "runs" / "markov" / "model.safetensors")
    said = {command: checked(command, workplace.run) for command in lines(shown["console"])}
    assert "ckpt-peak-size 0.1.0 (ckpt_peak_size)" in said["ckpt plugins"]
    assert "peak_size: conforms" in said["ckpt plugins check peak_size"]
    entry = tomllib.loads(shown["toml"])
    written = tomllib.loads((workplace.folder / "ckpt-peak-size" / "pyproject.toml").read_text())
    assert entry["project"]["entry-points"] == written["project"]["entry-points"]
    listed = workplace.run("ckpt plugins").stdout
    assert "rank" in listed and "peak_size" not in listed


def test_every_command_of_plugins_is_shown() -> None:
    shown = " ".join(block for kind, block in blocks(PAGE) if kind == "console")
    assert all(re.search(rf"ckpt plugins.* {word} ", shown) for word in ("new", "check", "show"))


def test_every_check_of_the_kit_is_listed_in_its_own_words() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|$", PAGE, re.MULTILINE))
    assert rows == {name: " ".join((check.__doc__ or "").split()) for name, check in CHECKS.items()}


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE))
def test_links_lead_somewhere(link: str) -> None:
    assert link.startswith("https://") or (ROOT / "docs" / link).exists()


def test_a_distribution_is_installed_seen_run_tested_and_uninstalled(workplace: Workplace) -> None:
    weights = np.random.default_rng(0).standard_normal((40, 30)).astype("f4")
    weights[3, 4] = 50.0
    save_file({"w": weights}, workplace.folder / "model.safetensors")
    installed = workplace.run("pip install ./samples/kurtosis")
    assert installed.returncode == 0, installed.stdout + installed.stderr
    assert re.search(r"kurtosis .*\[ckpt-kurtosis 0\.1\.0 \(ckpt_kurtosis\)\]", workplace.run("ckpt plugins").stdout)
    done = workplace.run("ckpt analyze model.safetensors --plugin kurtosis -o r.h5")
    assert done.returncode == 0, done.stderr
    script = "import ckpt_tools; g = ckpt_tools.open_results('r.h5')['kurtosis']; print(float(g['kurtosis'][0, 0]))"
    stats = pytest.importorskip("scipy.stats")
    found = float(workplace.run([str(workplace.bin / "python"), "-c", script]).stdout)
    assert found == pytest.approx(stats.kurtosis(weights.astype("f8"), axis=None), rel=1e-6)
    tested = workplace.run("pytest -q samples/kurtosis")
    assert tested.returncode == 0, tested.stdout
    removed = workplace.run("pip uninstall -y ckpt-kurtosis")
    assert removed.returncode == 0 and "kurtosis" not in workplace.run("ckpt plugins").stdout
