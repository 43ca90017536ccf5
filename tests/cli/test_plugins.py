"""`ckpt plugins new` writes a distribution that installs, passes its own test and the kit, and goes away again."""

import subprocess
import sys
from pathlib import Path

import pytest

from ckpt_tools.errors import PluginError


def run(cwd: Path, *args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True)


def test_a_new_plugin_is_installed_checked_tested_and_uninstalled(tmp_path: Path) -> None:
    ckpt = ("-m", "ckpt_tools.cli")
    made = run(tmp_path, *ckpt, "plugins", "new", "peak_size")
    assert made.returncode == 0 and "pip install -e ckpt-peak-size" in made.stdout
    # A folder of its own on the path, with metadata: installing needs neither the network nor the environment.
    site = tmp_path / "site"
    built = run(tmp_path, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", "site",
                "./ckpt-peak-size")  # fmt: skip
    if "No module named pip" in built.stderr:
        pytest.skip("this environment has no pip")
    assert built.returncode == 0, built.stderr
    code = f"import sys; sys.path.insert(0, {str(site)!r}); from ckpt_tools.cli.main import main; main()"
    listed = run(tmp_path, "-c", code, "plugins")
    assert "peak_size" in listed.stdout and "ckpt-peak-size 0.1.0" in listed.stdout
    checked = run(tmp_path, "-c", code, "plugins", "check", "peak_size")
    assert checked.returncode == 0 and "peak_size: conforms" in checked.stdout, checked.stdout + checked.stderr
    start = f"import sys; sys.path.insert(0, {str(site)!r})"
    tested = run(tmp_path / "ckpt-peak-size", "-c", f"{start}; import pytest; sys.exit(pytest.main(['-q']))")
    assert tested.returncode == 0, tested.stdout
    assert "peak_size" not in run(tmp_path, *ckpt, "plugins").stdout


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
