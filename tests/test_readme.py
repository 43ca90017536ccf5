"""README is true: its commands run in order, its Python runs after them, its plugin is the sample."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
# `make demo` and `make test` would install an environment and run this very file; CI runs both by themselves.
ELSEWHERE = ("make ",)


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(ELSEWHERE)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "samples", folder / "samples")
    return folder


def test_commands_and_code_run_in_order(workplace: Path) -> None:
    pytest.importorskip("transformers")
    assert len(commands()) >= 10
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands():
        done = subprocess.run(
            command, shell=True, cwd=workplace, capture_output=True, text=True, env={**os.environ, "PATH": path}
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), f"{command} printed nothing"
    script = next(block for block in blocks("python") if "open_results" in block)
    done = subprocess.run([sys.executable, "-c", script], cwd=workplace, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    value, unit = done.stdout.split()
    assert 1.0 <= float(value) <= 4.0 and unit == "1"


def test_the_plugin_shown_is_the_sample() -> None:
    shown = next(block for block in blocks("python") if "class Sparsity" in block)
    sample = (ROOT / "samples" / "sparsity.py").read_text("utf-8")
    assert shown.strip() in sample


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert link.startswith("https://") or (ROOT / link).exists()
