"""What the benchmarks share: sides that take turns, costs of child processes, goals, facts about the machine, JSON.

A side is a function that returns what it cost. Sides take turns, in alternating order, so that what else the machine
does weighs on all of them; a ratio is the median over rounds of one side's cost by another's in the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Read when numpy and torch are imported, so they are imported by what is measured, after this.
os.environ.update(dict.fromkeys(THREADS, "1"))
# Modules are compiled once, as an installed package's are, and not by every process that is started.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
RESULT = "result: "


@dataclass(frozen=True)
class Cost:
    """Wall and processor seconds, peak resident bytes of a child process (0 in this one), and what came out."""

    seconds: float
    cpu: float
    peak: int = 0
    value: Any = None


Side = Callable[[], Cost]


def clocked(work: Callable[[], Any]) -> Side:
    """Return a side that does the work in this process."""

    def side() -> Cost:
        wall, cpu = time.perf_counter(), processor()
        value = work()
        return Cost(time.perf_counter() - wall, processor() - cpu, value=value)

    return side


def processor() -> float:
    """Return the processor seconds of this process and of the children it waited for."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def child(script: str, name: str, *arguments: object) -> Side:
    """Return a side that runs `script --child name arguments` in a fresh process, which ends with `answer`."""

    def side() -> Cost:
        command = [sys.executable, "-W", "ignore", script, "--child", name, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        return Cost(**json.loads(done.stdout.rsplit(RESULT, 1)[1]))

    return side


def answer(work: Callable[[], Any]) -> None:
    """Do the work and print its cost for the parent; what was imported before counts for memory, not for time."""
    cost = clocked(work)()
    print("\n" + RESULT + json.dumps(asdict(cost) | {"peak": peak()}))


def peak() -> int:
    """Return the most bytes that were resident since this process was started."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def turns(sides: Mapping[str, Side], rounds: int, *, warm: int = 0) -> dict[str, list[Cost]]:
    """Return the costs of each side in every round, after rounds that do not count."""
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    for number in range(-warm, rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            cost = sides[name]()
            if number >= 0:
                costs[name].append(cost)
    return costs


def median(costs: Sequence[Cost], what: str = "cpu") -> float:
    """Return the median of `seconds`, `cpu` or `peak`."""
    return statistics.median(float(getattr(cost, what)) for cost in costs)


def ratio(ours: Sequence[Cost], other: Sequence[Cost], what: str = "cpu") -> float:
    """Return the median of paired ratios of `seconds`, `cpu` or `peak`."""
    return statistics.median(getattr(a, what) / getattr(b, what) for a, b in zip(ours, other, strict=True))


def gemm_rate(size: int = 1024, dtype: str = "float64") -> float:
    """Return how many floating-point operations a second a matrix product takes, the best of five."""
    import numpy as np

    a = np.random.default_rng(0).standard_normal((size, size)).astype(dtype)
    best = min(clocked(lambda: a @ a)().seconds for _ in range(5))
    return float(2 * size**3 / best)


def read_rate(file: Path) -> float:
    """Return how many bytes a second are read from a file that the system has in memory, the best of three."""
    best = min(clocked(file.read_bytes)().seconds for _ in range(3))
    return file.stat().st_size / best


def machine(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a reader must know to compare the numbers with others."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    versions = {"python": platform.python_version(), **{p: metadata.version(p) for p in ("numpy", "torch", *packages)}}
    load = [round(x, 2) for x in os.getloadavg()]
    return {"cpu": cpu, "cores": os.cpu_count(), "kernel": platform.release(), "load": load, "versions": versions}


@dataclass
class Report:
    """What one benchmark found: goals that hold or miss, and any numbers beside them."""

    name: str
    machine: dict[str, Any]
    goals: list[dict[str, Any]] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)

    def goal(self, what: str, measured: float, goal: float, *, least: bool = False, unit: str = "") -> None:
        """Add a goal, at most or at least so much, and print whether it holds."""
        holds = bool(measured >= goal if least else measured <= goal)
        sign, verdict = ">=" if least else "<=", "holds" if holds else "misses"
        row = {"what": what, "sign": sign, "goal": goal, "measured": measured, "unit": unit, "holds": holds}
        self.goals.append(row)
        print(f"goal {sign} {goal:g}{unit}: {measured:.3g}{unit} {verdict:6}  {what}", flush=True)

    def costs(self, costs: Mapping[str, Sequence[Cost]]) -> None:
        """Keep and print the medians of sides."""
        for name, rows in costs.items():
            row = {what: median(rows, what) for what in ("seconds", "cpu", "peak")}
            self.found[name] = row | {"rounds": len(rows)}
            memory = f", {row['peak'] / 2**20:.0f} MiB" if row["peak"] else ""
            print(f"{name:24} {row['seconds']:9.4f} s, {row['cpu']:9.4f} s of processor{memory}", flush=True)

    def write(self, file: Path | None) -> None:
        """Write JSON where that was asked for."""
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(asdict(self), indent=1) + "\n")


def parser(text: str | None, rounds: int, **sizes: int) -> argparse.ArgumentParser:
    """Return a parser of --rounds, --json, the sizes given with their defaults, and what a child process is told."""
    found = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--rounds", type=int, default=rounds)
    found.add_argument("--json", type=Path, help="write the results here")
    found.add_argument("--dir", type=Path, help="where checkpoints are written, and deleted at the end")
    found.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    for name, size in sizes.items():
        found.add_argument(f"--{name}", type=int, default=size)
    return found
