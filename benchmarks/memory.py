"""Does the memory of an analysis grow with its trajectory? Peaks over 100 and over 10,000 checkpoints.

    python benchmarks/memory.py --json memory.json

Each length is analyzed by a fresh process (`rank`, all outputs), whose peak resident memory the system reports. All
checkpoints differ, and every process loads the same libraries; the shorter one goes first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np
from safetensors.numpy import save_file

GOAL = 1.05
CHILD = """
import json, resource, sys, time
import ckpt_tools
started = time.perf_counter()
found = ckpt_tools.analyze(sys.argv[1], ["rank"], output=sys.argv[2], workers=int(sys.argv[3]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([peak * 1024, time.perf_counter() - started, found.computed]))
"""


def write(folder: Path, count: int, width: int, layers: int) -> None:
    """Write so many checkpoints of a small model with known roles, each with other weights."""
    rng = np.random.default_rng(0)
    names = [f"model.layers.{i}.self_attn.{p}_proj.weight" for i in range(layers) for p in "qkvo"]
    config = {"model_type": "llama", "num_attention_heads": 1, "hidden_size": width, "head_dim": width}
    for step in range(count):
        at = folder / f"step-{step:06d}"
        at.mkdir(parents=True)
        save_file({n: rng.standard_normal((width, width)).astype("f4") for n in names}, at / "model.safetensors")
        (at / "config.json").write_text(json.dumps(config))


def measure(folder: Path, count: int, width: int, layers: int, workers: int) -> dict[str, float]:
    """Return peak bytes, seconds and units of a fresh process over so many checkpoints."""
    source = folder / f"t{count}"
    write(source, count, width, layers)
    command = [sys.executable, "-c", CHILD, str(source), str(folder / f"{count}.h5"), str(workers)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **threads})
    peak, seconds, units = json.loads(done.stdout)
    assert units == count
    return {"checkpoints": count, "peak_bytes": peak, "seconds": seconds}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="100,10000", help="numbers of checkpoints, joined by commas")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--dir", type=Path, help="where checkpoints are written, and deleted at the end")
    parser.add_argument("--json", type=Path, help="write the results here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.dir, prefix="memory-") as folder:
        rows = [
            measure(Path(folder), int(count), given.width, given.layers, given.workers)
            for count in given.lengths.split(",")
        ]
    for row in rows:
        print(f"{row['checkpoints']:6} checkpoints: {row['peak_bytes'] / 2**20:.1f} MiB, {row['seconds']:.1f} s")
    ratio = rows[-1]["peak_bytes"] / rows[0]["peak_bytes"]
    report = harness.Report("memory", harness.machine(), found={"rows": rows})
    report.goal(
        f"peak memory over {rows[-1]['checkpoints']:,} checkpoints against {rows[0]['checkpoints']:,}", ratio, GOAL
    )
    report.write(given.json)


if __name__ == "__main__":
    main()
