"""Nothing is computed twice, nothing is lost, nothing stale is kept."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from ckpt_tools import Analyzer, Out, Outcome, analyze, option
from ckpt_tools.engine.plan import Job
from ckpt_tools.engine.pool import Task, _with_pool, tasks_of
from ckpt_tools.errors import CkptError, FormatError, ResultsError

pytestmark = pytest.mark.slow

Analyze = Callable[..., Outcome]
RNG = np.random.default_rng(0)


def save(trajectory: Path, step: int) -> None:
    folder = trajectory / f"step-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"w{i}": RNG.standard_normal((12, 8)).astype("f4") for i in range(3)}
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def trajectory(tmp_path: Path) -> Path:
    for step in range(6):
        save(tmp_path / "t", step)
    return tmp_path / "t"


@pytest.fixture
def run(trajectory: Path, tmp_path: Path) -> Analyze:
    def call(*plugins: Any, output: str = "r.h5", **how: Any) -> Outcome:
        return analyze(trajectory, plugins or ["rank"], output=tmp_path / output, **how)

    return call


def contents(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[...]}) if isinstance(item, h5py.Dataset) else None)
    return found


def same(one: Path, other: Path) -> bool:
    a, b = contents(one), contents(other)
    return a.keys() == b.keys() and all(
        np.array_equal(a[n], b[n], equal_nan=a[n].dtype.kind == "f") for n in a if not n.endswith("path")
    )


class Explode(Analyzer):
    """Raises at step 3."""

    name = "explode"
    outputs = {"x": Out(unit="1", long_name="step")}

    def analyze(self, view: Any) -> dict[str, Any]:
        if view.step == 3:
            raise ZeroDivisionError("on purpose")
        return {"x": float(view.step)}


class Sleepy(Explode):
    """Never ends at step 2."""

    name = "sleepy"

    def analyze(self, view: Any) -> dict[str, Any]:
        while view.step == 2:
            time.sleep(0.01)
        return {"x": float(view.step)}


def counts(outcome: Outcome) -> tuple[int, int]:
    return outcome.computed, outcome.reused


def test_a_second_call_computes_nothing_and_changes_nothing(run: Analyze, tmp_path: Path) -> None:
    assert counts(run()) == (6, 0)
    before = contents(tmp_path / "r.h5")
    assert counts(run()) == (0, 6)
    after = contents(tmp_path / "r.h5")
    assert before.keys() == after.keys()
    assert np.array_equal(before["rank/effective_rank"], after["rank/effective_rank"])


def test_more_steps_and_more_analyzers_compute_only_the_new_part(
    run: Analyze, trajectory: Path, tmp_path: Path
) -> None:
    assert counts(run(steps="at:0,1")) == (2, 0)
    assert counts(run()) == (4, 2)
    save(trajectory, 6)
    assert counts(run()) == (1, 6)
    assert counts(run("rank", Explode)) == (6, 7)
    assert set(contents(tmp_path / "r.h5")["rank/step"]) == set(range(7))
    # What an earlier call measured stays, though this call does not name it.
    run(Explode, steps="at:0")
    assert set(contents(tmp_path / "r.h5")["rank/step"]) == set(range(7))


def test_changed_options_and_weights_invalidate_what_they_touch(run: Analyze, trajectory: Path, tmp_path: Path) -> None:
    run("rank", Explode)
    assert counts(run("rank", Explode, options={"rank": {"tau": 0.5}})) == (6, 5)
    save(trajectory, 4)
    assert counts(run("rank", options={"rank": {"tau": 0.5}})) == (1, 5)
    assert counts(run("rank", matrices=["w0"], options={"rank": {"tau": 0.5}})) == (6, 0)
    fresh = run("rank", matrices=["w0"], options={"rank": {"tau": 0.5}}, output="fresh.h5")
    assert counts(fresh) == (6, 0)
    a, b = contents(tmp_path / "r.h5"), contents(tmp_path / "fresh.h5")
    assert np.array_equal(a["rank/effective_rank"], b["rank/effective_rank"])


def test_touching_a_file_without_changing_it_keeps_its_results(run: Analyze, trajectory: Path) -> None:
    run()
    os.utime(trajectory / "step-2" / "model.safetensors", (1, 1))
    assert counts(run()) == (0, 6)


def test_failures_are_recorded_and_tried_again(run: Analyze, tmp_path: Path) -> None:
    outcome = run("rank", Explode)
    assert outcome.failures == [(3, "explode", "ZeroDivisionError: on purpose")]
    stored = contents(tmp_path / "r.h5")
    assert list(stored["explode/step"]) == [0, 1, 2, 4, 5] and len(stored["rank/step"]) == 6
    with h5py.File(tmp_path / "r.h5") as file:
        assert file["explode"].attrs["failures"] == '{"3": "ZeroDivisionError: on purpose"}'
    assert counts(run("rank", Explode)) == (0, 11)
    with pytest.raises(CkptError, match=r"explode at step 3 failed \(--strict\)"):
        run(Explode, strict=True)


def test_an_unreadable_checkpoint_in_the_middle(run: Analyze, trajectory: Path, tmp_path: Path) -> None:
    file = trajectory / "step-2" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    outcome = run()
    assert [(step, name) for step, name, _ in outcome.failures] == [(2, "rank")]
    assert "step-2" in outcome.failures[0][2] and outcome.steps == [0, 1, 3, 4, 5]
    file.write_bytes(whole)
    assert counts(run()) == (1, 5)
    for step in range(6):
        (trajectory / f"step-{step}" / "model.safetensors").write_bytes(b"")
    with pytest.raises(FormatError):
        run(output="nothing.h5")
    assert not (tmp_path / "nothing.h5").exists()


def test_a_unit_that_takes_too_long_is_given_up(run: Analyze) -> None:
    outcome = run(Sleepy, timeout=0.3)
    assert outcome.failures == [(2, "sleepy", "UnitTimeout: took longer than 0.3 s (--timeout)")]
    assert outcome.steps == [0, 1, 3, 4, 5]


def test_results_of_another_trajectory_are_not_mixed(run: Analyze, trajectory: Path, tmp_path: Path) -> None:
    run()
    other = tmp_path / "other"
    trajectory.rename(other)
    with pytest.raises(ResultsError, match="holds results of"):
        analyze(other, ["rank"], output=tmp_path / "r.h5")
    assert analyze(other, ["rank"], output=tmp_path / "r.h5", force=True).computed == 6


def test_results_without_their_journal_are_not_extended(run: Analyze, tmp_path: Path) -> None:
    run()
    (tmp_path / "r.h5.journal").unlink()
    with pytest.raises(ResultsError, match=r"its journal \(r\.h5\.journal\) does not"):
        run()
    assert counts(run(force=True)) == (6, 0)


def test_workers_give_the_same_bits(run: Analyze, tmp_path: Path) -> None:
    run("rank", "drift", output="one.h5")
    outcome = run("rank", "drift", output="two.h5", workers=2)
    assert counts(outcome) == (12, 0) and same(tmp_path / "one.h5", tmp_path / "two.h5")


POISON = '''
import os
from ckpt_tools import Analyzer, Out, hookimpl

class Poison(Analyzer):
    """Kills its process at step 3."""
    name = "poison"
    outputs = {"x": Out(unit="1", long_name="step")}

    def analyze(self, view):
        if view.step == 3:
            os.kill(os.getpid(), 9)
        return {"x": float(view.step)}

@hookimpl
def ckpt_analyzers():
    return [Poison]
'''


def test_a_checkpoint_that_kills_its_worker_is_given_up_and_the_rest_is_done(run: Analyze, tmp_path: Path) -> None:
    (tmp_path / "poison.py").write_text(POISON)
    outcome = run("poison", "rank", plugin_files=[tmp_path / "poison.py"], workers=2)
    assert outcome.failures == [
        (3, "poison", "its worker process died 3 times"),
        (3, "rank", "its worker process died 3 times"),
    ]
    stored = contents(tmp_path / "r.h5")
    assert list(stored["poison/x"]) == [0.0, 1.0, 2.0, 4.0, 5.0]


def test_a_death_is_blamed_on_what_was_at_work_and_not_on_what_waited(trajectory: Path, tmp_path: Path) -> None:
    (tmp_path / "poison.py").write_text(POISON)
    plan = Job(str(trajectory), ("poison",), plugin_files=(str(tmp_path / "poison.py"),)).plan()
    alive, deadly, waiting = (Task(dict.fromkeys(part, ("poison",))) for part in ([0, 1], [2, 3], [4, 5]))
    queue, suspects = deque([alive, deadly, waiting]), deque[Task]()
    done = list(_with_pool(plan, queue, suspects, 1))
    assert [result.step for result in done] == [0, 1] and list(queue) == [waiting] and waiting.deaths == 0
    assert [(list(task.wanted), task.deaths) for task in suspects] == [([2], 1), ([3], 1)]


def test_tasks_end_with_single_checkpoints() -> None:
    tasks = tasks_of({position: ("a",) for position in range(0, 200, 2)}, 2)
    sizes = [len(task.wanted) for task in tasks]
    assert [position for task in tasks for position in task.wanted] == list(range(0, 200, 2))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 16 and sizes[-4:] == [1, 1, 1, 1]
    assert [len(task.wanted) for task in tasks_of({5: (), 9: ()}, 8)] == [1, 1]


KILLED = """
import sys, ckpt_tools
say = lambda done, total, detail: print(done, flush=True)
ckpt_tools.analyze(sys.argv[1], ["rank", "drift"], output=sys.argv[2], on_progress=say)
"""


def test_kill_9_and_again_equals_an_uninterrupted_run(trajectory: Path, tmp_path: Path) -> None:
    for step in range(6, 120):
        save(trajectory, step)
    analyze(trajectory, ["rank", "drift"], output=tmp_path / "whole.h5")
    target = tmp_path / "killed.h5"
    rng = np.random.default_rng(1)
    kills = int(os.environ.get("CKPT_KILLS", "5"))
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(trajectory), str(target)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(float(rng.uniform(0, 0.3)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if target.exists():
            contents(target)
    outcome = analyze(trajectory, ["rank", "drift"], output=target)
    assert outcome.computed + outcome.reused == 240
    assert same(target, tmp_path / "whole.h5")


class Reads(Analyzer):
    """Length of a file that an option names."""

    name = "reads"
    outputs = {"length": Out(unit="byte", long_name="length of the file")}
    path: str = option("", help="The file.")

    def files(self) -> tuple[str, ...]:
        return (self.path,)

    def analyze(self, view: Any) -> dict[str, Any]:
        return {"length": Path(self.path).stat().st_size}


def test_files_an_analyzer_reads_itself_count(run: Analyze, tmp_path: Path) -> None:
    path = tmp_path / "extra.txt"
    path.write_text("four")
    assert run(Reads(path=str(path))).reused == 0
    assert run(Reads(path=str(path))).reused == 6
    path.write_text("and more")
    assert run(Reads(path=str(path))).reused == 0
    assert contents(tmp_path / "r.h5")["reads/length"].tolist() == [8.0] * 6
    path.unlink()
    with pytest.raises(CkptError, match=r"extra\.txt"):
        run(Reads(path=str(path)))
