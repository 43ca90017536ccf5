"""Selective scans forward and backward, beside those of mamba.py (`mambapy` on PyPI), on one core.

    python benchmarks/scan.py --json scan.json
    pip install --no-deps --target /tmp/peer mambapy && python benchmarks/scan.py --peer /tmp/peer

Two comparisons, on the same numbers in float32: the recurrence h_t = a_t h_{t-1} + b_t alone (their parallel scan), and
the whole state space from x, dt, A, B, C, D to y (their `MambaBlock.selective_scan`). Both sides take turns in one
process, and each turn is compared with its neighbour, so that what else the machine does weighs on both. Errors are the
largest differences from the recurrence in float64, relative to the largest value, over values and gradients.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor

from ckpt_trainers.scan import scan, selective_scan

GOAL = 0.5
Scan = Callable[..., Tensor]


def recurrence_inputs(batch: int, length: int, width: int, states: int) -> list[Tensor]:
    """Return a and b, both [batch, length, width, states], with rates as Mamba starts with."""
    shape = (batch, length, width, states)
    dt = torch.exp(-2.3 - 4.6 * torch.rand(batch, length, width, 1))  # 0.001 to 0.1
    a = torch.exp(-dt * torch.arange(1.0, states + 1))
    return [a.requires_grad_(), torch.randn(shape).requires_grad_()]


def selective_inputs(batch: int, length: int, width: int, states: int) -> list[Tensor]:
    """Return x, dt, A, B, C, D as Mamba starts with."""
    dt = torch.exp(-2.3 - 4.6 * torch.rand(batch, length, width))
    rates = -torch.arange(1.0, states + 1).repeat(width, 1)
    shapes = ((batch, length, width), (batch, length, states), (batch, length, states))
    x, b, c = (torch.randn(shape) for shape in shapes)
    return [v.requires_grad_() for v in (x, dt, rates, b, c, torch.ones(width))]


def written_out(a: Tensor, b: Tensor) -> Tensor:
    """Return all states, one step after the other."""
    h = [b[:, 0]]
    for t in range(1, b.shape[1]):
        h.append(a[:, t] * h[-1] + b[:, t])
    return torch.stack(h, dim=1)


def selective_written_out(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Return y from states written out."""
    h = written_out(torch.exp(dt[..., None] * A), (dt * x)[..., None] * B[:, :, None])
    return (h * C[:, :, None]).sum(-1) + D * x


CASES: dict[str, tuple[Callable[..., list[Tensor]], Scan, Scan]] = {
    "recurrence": (recurrence_inputs, scan, written_out),
    "state space": (selective_inputs, selective_scan, selective_written_out),
}


def peers(folder: Path | None) -> dict[str, Scan]:
    """Return mamba.py's counterpart of each case, {} with a message where it is not installed."""
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        parallel, blocks = importlib.import_module("mambapy.pscan"), importlib.import_module("mambapy.mamba")
    except ImportError as error:
        print(f"mamba.py is not there ({error}), so only our own times follow: pip install mambapy, or --peer FOLDER")
        return {}
    # The method uses nothing of its block.
    return {"recurrence": parallel.pscan, "state space": partial(blocks.MambaBlock.selective_scan, None)}


def derived(f: Scan, inputs: list[Tensor], weight: Tensor) -> list[Tensor]:
    """Return the result and its gradients."""
    y = f(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, weight)]


def timed(f: Scan, inputs: list[Tensor], weight: Tensor) -> tuple[float, float]:
    """Return seconds and processor seconds of one pass forward and backward."""
    start, cpu = time.perf_counter(), time.process_time()
    derived(f, inputs, weight)
    return time.perf_counter() - start, time.process_time() - cpu


def error(f: Scan, exact: Scan, inputs: list[Tensor]) -> float:
    """Return the largest relative error of values and gradients."""
    wide = [v.detach().double().requires_grad_() for v in inputs]
    weight = torch.randn(exact(*wide).shape)
    pairs = zip(derived(f, inputs, weight), derived(exact, wide, weight.double()), strict=True)
    return max(((one - other).abs().max() / other.abs().max()).item() for one, other in pairs)


def measure(name: str, peer: Scan | None, sizes: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Return medians over alternating rounds, their ratio, and errors on a batch of two."""
    make, ours, exact = CASES[name]
    torch.manual_seed(0)
    inputs, few = make(*sizes), make(2, *sizes[1:])
    weight = torch.randn_like(ours(*inputs))
    sides = {"ours": ours} | ({"peer": peer} if peer else {})
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side in list(sides)[:: 1 if number % 2 else -1]:
            found = timed(sides[side], inputs, weight)
            if number:  # the first round warms up
                times[side].append(found)
    report: dict[str, Any] = {
        side: {
            "ms": 1e3 * statistics.median(wall for wall, _ in rows),
            "cpu_ms": 1e3 * statistics.median(cpu for _, cpu in rows),
            "error": error(sides[side], exact, few),
        }
        for side, rows in times.items()
    }
    if peer:
        for key, column in (("ratio", 0), ("cpu_ratio", 1)):
            pairs = zip(times["ours"], times["peer"], strict=True)
            report[key] = statistics.median(mine[column] / theirs[column] for mine, theirs in pairs)
    return report


def second_order(peer: Scan, sizes: tuple[int, ...]) -> str:
    """Return what happens when a gradient of the peer's recurrence is differentiated."""
    inputs = recurrence_inputs(1, 4, *sizes[2:])
    slope = torch.autograd.grad((peer(*inputs) ** 2).sum(), inputs, create_graph=True)
    exact = torch.autograd.grad((written_out(*inputs) ** 2).sum(), inputs, create_graph=True)
    try:
        found = torch.autograd.grad(slope[0].sum(), inputs)
    except RuntimeError as refusal:
        return f"refused: {str(refusal)[:100]}"
    expected = torch.autograd.grad(exact[0].sum(), inputs)
    right = all(torch.allclose(f, e, rtol=1e-4, atol=1e-5) for f, e in zip(found, expected, strict=True))
    return "right" if right else "wrong"


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="folder that holds mambapy, where it is not installed")
    parser.add_argument("--rounds", type=int, default=9)
    for name, size in (("batch", 32), ("length", 256), ("width", 128), ("states", 16)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--json", type=Path, help="write the results here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sizes = (given.batch, given.length, given.width, given.states)
    others = peers(given.peer)
    report = harness.Report("scan", harness.machine(("mambapy",) if others and given.peer is None else ()))
    report.found = {"sizes": sizes, "cases": {}}
    for name in CASES:
        report.found["cases"][name] = row = measure(name, others.get(name), sizes, given.rounds)
        for side in [s for s in ("ours", "peer") if s in row]:
            print(
                f"{name:12} {side} {row[side]['ms']:7.0f} ms ({row[side]['cpu_ms']:.0f} ms of processor), "
                f"error {row[side]['error']:.1e}"
            )
        if "ratio" in row:
            report.goal(f"{name}, forward and backward, against mamba.py's parallel scan", row["ratio"], GOAL)
    both: dict[str, Scan] = {"ours": scan, **({"peer": others["recurrence"]} if others else {})}
    for owner, f in both.items():
        report.found[f"second_order_{owner}"] = second_order(f, sizes)
        print(f"second derivatives, {owner}: {report.found[f'second_order_{owner}']}")
    report.write(given.json)


if __name__ == "__main__":
    main()
