"""Runs killed with SIGKILL at random moments, then resumed: nothing acknowledged is lost, redone or changed.

    python benchmarks/kills.py --rounds 100 --json kills.json

For each run a process analyzes a trajectory and is killed a random moment after it said that a random number of
checkpoints was done. What its journal holds then is what was acknowledged. The analysis is run again to its end, and
must compute exactly the rest. All datasets and attributes of its results must equal those of an uninterrupted run, bit
for bit (but for the time and the command line). Throughout, a reader opens the results file over and over and reads all
of it. Here the file is replaced every 50 ms instead of every two minutes, and the journal commits every 10 ms instead
of four times a second, so that most kills come in the middle of either.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import harness
import numpy as np
from safetensors.numpy import save_file

from ckpt_tools import analyze

PLUGINS = ["rank", "drift"]
CHILD = f"""
import sys, ckpt_tools, ckpt_tools.engine.journal as journal, ckpt_tools.engine.session as session
session.REFRESH_SECONDS, journal.GROUP_SECONDS = 0.05, 0.01
say = lambda done, total, detail: print(done, flush=True)
ckpt_tools.analyze(sys.argv[1], {PLUGINS!r}, output=sys.argv[2], workers=int(sys.argv[3]), on_progress=say)
"""
DELAY = 0.02  # seconds at most
VARYING = ("created", "history")


def write(folder: Path, count: int) -> None:
    """Write so many checkpoints of a small model with known roles."""
    rng = np.random.default_rng(0)
    config = {"model_type": "llama", "num_attention_heads": 2, "hidden_size": 16, "head_dim": 8}
    for step in range(count):
        at = folder / f"step-{step:06d}"
        at.mkdir(parents=True)
        names = [f"model.layers.0.self_attn.{p}_proj.weight" for p in "qkvo"]
        save_file({n: rng.standard_normal((16, 16)).astype("f4") for n in names}, at / "model.safetensors")
        (at / "config.json").write_text(json.dumps(config))


def contents(path: Path) -> dict[str, Any]:
    """Return every dataset and attribute of a results file as bytes or text, by name."""
    found: dict[str, Any] = {}

    def see(name: str, item: Any) -> None:
        found.update({f"{name}@{key}": str(value) for key, value in item.attrs.items() if key not in VARYING})
        if isinstance(item, h5py.Dataset):
            values = item[...]
            found[name] = values.tolist() if values.dtype.kind == "O" else values.tobytes()

    with h5py.File(path) as file:
        see("/", file)
        file.visititems(see)
    return {name: value for name, value in found.items() if "REFERENCE" not in name and "DIMENSION" not in name}


class Reader(threading.Thread):
    """Reads a results file over and over from its first appearance on."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.reads, self.faults = path, 0, list[str]()
        self.over = threading.Event()

    def run(self) -> None:
        """Read until told to stop; a file that cannot be read is a fault."""
        while not self.over.wait(0.01):
            self.read()
        self.read()

    def read(self) -> None:
        """Read once, when there is a file."""
        if self.path.exists():
            try:
                contents(self.path)
                self.reads += 1
            except Exception as error:  # whatever it is, it is what this looks for
                self.faults.append(repr(error))


def acknowledged(journal: Path) -> int:
    """Return how many units a journal holds; 0 when there is none yet."""
    if not journal.exists():
        return 0
    with sqlite3.connect(journal) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        count = db.execute("SELECT count(*) FROM unit").fetchone()[0] if "unit" in tables else 0
    db.close()
    return int(count)


def killed(source: Path, target: Path, workers: int, count: int, delay: float) -> None:
    """Analyze in a process of its own, and kill it `delay` seconds after it has done so many checkpoints."""
    command = [sys.executable, "-c", CHILD, str(source), str(target), str(workers)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    while (line := child.stdout.readline()) and int(line) < count:
        pass
    time.sleep(delay)
    child.send_signal(signal.SIGKILL)
    child.communicate()


def one_run(
    source: Path, target: Path, moment: tuple[int, float], workers: int, expected: dict[str, Any]
) -> dict[str, Any]:
    """Kill an analysis at a moment, resume it, and return what was found."""
    reader = Reader(target)
    reader.start()
    killed(source, target, workers, *moment)
    known = acknowledged(target.with_name(f"{target.name}.journal"))
    outcome = analyze(source, PLUGINS, output=target)
    reader.over.set()
    reader.join()
    return {
        "checkpoints": moment[0],
        "delay": moment[1],
        "acknowledged": known,
        "redone": known - outcome.reused,
        "identical": contents(target) == expected,
        "reads": reader.reads,
        "unreadable": reader.faults,
    }


def main() -> None:
    """Measure, print a summary, write JSON; exit with 1 when anything was lost."""
    given = harness.parser(__doc__, rounds=100, checkpoints=150, workers=1, seed=0).parse_args()
    rng = np.random.default_rng(given.seed)
    units = given.checkpoints * len(PLUGINS)
    with tempfile.TemporaryDirectory(dir=given.dir, prefix="kills-") as name:
        folder = Path(name)
        write(folder / "t", given.checkpoints)
        analyze(folder / "t", PLUGINS, output=folder / "whole.h5", workers=given.workers)
        expected = contents(folder / "whole.h5")
        moments = [(int(rng.integers(given.checkpoints)), float(rng.uniform(0, DELAY))) for _ in range(given.rounds)]
        rows = [
            one_run(folder / "t", folder / f"{run}.h5", moment, given.workers, expected)
            for run, moment in enumerate(moments)
        ]
    found = {
        "runs": len(rows),
        "units": units,
        "killed_in_the_middle": sum(0 < row["acknowledged"] < units for row in rows),
        "acknowledged": sum(row["acknowledged"] for row in rows),
        "lost_or_computed_twice": sum(abs(row["redone"]) for row in rows),
        "different": sum(not row["identical"] for row in rows),
        "reads": sum(row["reads"] for row in rows),
        "unreadable": [fault for row in rows for fault in row["unreadable"]],
    }
    for key, value in found.items():
        print(f"{key.replace('_', ' '):<24} {value if value != [] else 0}")
    harness.Report("kills", harness.machine(), found={**found, "rows": rows}).write(given.json)
    sys.exit(bool(found["lost_or_computed_twice"] or found["different"] or found["unreadable"]))


if __name__ == "__main__":
    main()
