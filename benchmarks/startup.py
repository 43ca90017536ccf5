"""Seconds from `ckpt --help` to its end, beyond those of an interpreter that does nothing.

    python benchmarks/startup.py --json startup.json

Both are fresh processes of this interpreter and take turns, with files that the system has in memory.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

import harness

GOAL = 0.2


def main() -> None:
    """Measure, print, write JSON."""
    given = harness.parser(__doc__, rounds=21).parse_args()
    report = harness.Report("startup", harness.machine())

    def run(*arguments: str) -> harness.Side:
        return harness.clocked(lambda: subprocess.run([sys.executable, *arguments], capture_output=True, check=True))

    sides = {"ckpt --help": run("-m", "ckpt_tools.cli", "--help"), "python -c pass": run("-c", "pass")}
    costs = harness.turns(sides, given.rounds, warm=2)
    report.costs(costs)
    ours, bare = costs.values()
    beyond = statistics.median(a.seconds - b.seconds for a, b in zip(ours, bare, strict=True))
    report.goal("`ckpt --help` beyond `python -c pass`", beyond, GOAL, unit=" s")
    report.write(given.json)


if __name__ == "__main__":
    main()
