"""The dry run: what it counts is what the run then does, and it writes nothing."""

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from ckpt_tools import Analyzer, Out, analyze
from ckpt_tools.cli.estimate import duration
from ckpt_tools.cli.main import cli
from ckpt_tools.engine import preview
from ckpt_tools.engine.memory import BASE_BYTES, free_memory, shown, workers_that_fit
from ckpt_tools.errors import OptionError

STORED = 3 * 48 * 32 * 4 + 24 * 24 * 4


@pytest.fixture
def trajectory(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for step in range(5):
        folder = tmp_path / "t" / f"step-{step}"
        folder.mkdir(parents=True)
        tensors = {f"w{i}": rng.standard_normal((48, 32)).astype("f4") for i in range(3)}
        save_file({**tensors, "square": np.eye(24, dtype="f4")}, folder / "model.safetensors")
    return tmp_path / "t"


class Picky(Analyzer):
    """Wants all matrices at once."""

    name = "picky"
    outputs = {"count": Out(unit="1", dtype="i8")}

    def analyze(self, view: Any) -> dict[str, Any]:
        if len(view.matrix_names()) < 4:
            raise ValueError("not all are here")
        return {"count": len(view.matrix_names())}


def test_it_counts_what_a_run_would_do_and_writes_nothing(trajectory: Path, tmp_path: Path) -> None:
    found = preview(trajectory, ["rank", "drift"], output=tmp_path / "r.h5")
    assert (found.checkpoints, found.matrices, found.units, found.known) == (5, 4, 10, 0)
    assert (found.bytes_per_checkpoint, found.bytes_to_read) == (STORED, 5 * STORED)
    assert found.analyzers == ["rank", "drift"] and found.untimed == {}
    assert found.seconds is not None and found.seconds > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t"]


def test_what_is_known_is_left_out(trajectory: Path, tmp_path: Path) -> None:
    analyze(trajectory, ["rank"], output=tmp_path / "r.h5", steps="at:0,1")
    found = preview(trajectory, ["rank"], output=tmp_path / "r.h5")
    assert (found.units, found.known, found.bytes_to_read) == (3, 2, 3 * STORED)
    assert analyze(trajectory, ["rank"], output=tmp_path / "r.h5").computed == 3
    again = preview(trajectory, ["rank"], output=tmp_path / "r.h5")
    assert (again.units, again.seconds) == (0, 0.0)
    assert preview(trajectory, ["rank"], output=tmp_path / "r.h5", force=True).units == 5


def test_large_checkpoints_are_timed_by_one_matrix_of_each_shape(
    trajectory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckpt_tools.engine.estimate.WHOLE_COST", 0)
    seen = []
    original = Picky.analyze

    def counted(self: Picky, view: Any) -> dict[str, Any]:
        seen.append(view.matrix_names())
        return original(self, view)

    monkeypatch.setattr(Picky, "analyze", counted)
    found = preview(trajectory, ["rank", Picky], output=tmp_path / "r.h5")
    assert seen == [["square"], ["w0"]]
    assert found.seconds is not None and found.seconds > 0
    assert found.untimed == {"picky": "ValueError: not all are here"}


def test_as_many_workers_as_fit_into_the_memory(trajectory: Path, tmp_path: Path) -> None:
    found = preview(trajectory, ["rank"], output=tmp_path / "r.h5", workers=8, memory=4 * BASE_BYTES)
    assert found.workers == 2 and "only 2 of 8 workers" in found.notes[0]
    assert BASE_BYTES < found.peak <= found.memory <= 4 * BASE_BYTES
    with pytest.raises(OptionError, match=r"--memory 1 MiB is too little: the largest matrix .* needs"):
        analyze(trajectory, ["rank"], output=tmp_path / "r.h5", memory=1 << 20)
    assert not (tmp_path / "r.h5").exists()


def test_half_of_what_is_free_is_the_default() -> None:
    fitting, share = workers_that_fit(None, 1, 0)
    assert fitting == 1 and 0.3 * free_memory() < share < 0.7 * free_memory()
    assert workers_that_fit(None, 4, 10**15)[0] == 1, "memory nobody gave is no reason to refuse"


FAULTS = """
import resource
import numpy as np
from ckpt_tools.engine.memory import keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        [np.ones(1 << 19) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
keep_freed()
faults()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what glibc does with freed memory")
def test_arrays_of_one_size_after_the_other_are_given_the_same_pages() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 20 * 1024 and after < 20, "fresh pages for most of 16 MiB at a time, then none"


def test_results_do_not_depend_on_the_memory(trajectory: Path, tmp_path: Path) -> None:
    import h5py

    found = []
    for name, memory in (("a.h5", 8 * BASE_BYTES), ("b.h5", BASE_BYTES + (1 << 20))):
        analyze(trajectory, ["rank"], output=tmp_path / name, memory=memory)
        with h5py.File(tmp_path / name) as file:
            found.append(file["rank/singular_values"][...])
    assert np.array_equal(found[0], found[1], equal_nan=True)


def test_on_the_command_line(trajectory: Path, tmp_path: Path) -> None:
    command = ["analyze", str(trajectory), "-p", "rank", "--dry-run", "-o", str(tmp_path / "r.h5")]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    rows = dict(line.split(maxsplit=1) for line in done.output.splitlines())
    assert rows["checkpoints"] == "5" and rows["to"] == "read      101 KiB, 20.2 KiB a checkpoint"
    as_json = CliRunner().invoke(cli, [*command, "--json", "--memory", "2GiB", "--workers", "2"])
    assert json.loads(as_json.output)["units"] == 5 and json.loads(as_json.output)["workers"] == 2


def test_sizes_and_times_are_readable() -> None:
    assert [shown(n) for n in (12, 1500, 3 << 20, 5 << 40)] == ["12 B", "1.46 KiB", "3 MiB", "5.12e+03 GiB"]
    assert [duration(s) for s in (2.345, 45, 720, 12000, 442800)] == [
        "2.3 s",
        "45 s",
        "12 min",
        "3 h 20 min",
        "5 d 3 h",
    ]
