"""`ckpt plugins`: failing checks and refusals; what it writes is installed and tested in test_plugins_page.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from ckpt_tools.errors import PluginError

pytestmark = pytest.mark.slow


def run(cwd: Path, *args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True)


def test_a_failing_check_is_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "mute.py").write_text(
        "from ckpt_tools import Analyzer, Out, hookimpl\n"
        "class Mute(Analyzer):\n"
        "    name = 'mute'\n"
        "    outputs = {'x': Out(unit='1')}\n"
        "    def analyze(self, view):\n"
        "        return {'x': 1.0}\n"
        "@hookimpl\n"
        "def ckpt_analyzers():\n"
        "    return [Mute]\n"
    )
    done = run(tmp_path, "-m", "ckpt_tools.cli", "plugins", "--plugin-file", "mute.py", "check", "mute")
    assert done.returncode == 1
    assert "FAILED  the class has no docstring" in done.stdout and "mute: 1 check(s) failed" in done.stdout


def test_bad_names_and_existing_folders_are_refused(tmp_path: Path) -> None:
    from ckpt_tools.cli.scaffold import write_plugin

    with pytest.raises(PluginError, match="lower-case"):
        write_plugin("My-Plugin", str(tmp_path / "x"))
    with pytest.raises(PluginError, match="exists already"):
        write_plugin("fine", str(tmp_path))
