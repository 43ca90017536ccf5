"""What saving every step of a small model costs: the loop's time with saving over its time without.

    python benchmarks/saving.py --json saving.json

A two-layer transformer of 200,000 parameters learns addition modulo 113; a step takes about 6 ms on one core. Blocks
of steps with and without saving alternate in one process, and each block is compared with its neighbours, so that
what else the machine does weighs on both sides. The time inside the save call is printed too, but is not what counts:
a thread can make it nothing and slow the loop down by a third.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch
from torch import nn

from ckpt_tools import Recorder, open_trajectory

MODULUS, WIDTH, HEADS, LAYERS = 113, 88, 4, 2
GOAL = 1.05


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(attended.transpose(1, 2).flatten(-2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Adder(nn.Module):
    """Tokens a, b, "=" to logits of a + b modulo 113."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(MODULUS + 1, WIDTH), nn.Embedding(3, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.unembed = nn.Linear(WIDTH, MODULUS, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) + self.positions(torch.arange(3))
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.unembed(x[:, -1])
        return logits


class Training:
    """AdamW on random sums."""

    def __init__(self, batch: int) -> None:
        torch.manual_seed(0)
        self.model, self.batch = Adder(), batch
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.1)

    def step(self) -> None:
        """Do one update."""
        a, b = torch.randint(MODULUS, (2, self.batch))
        logits = self.model(torch.stack([a, b, torch.full_like(a, MODULUS)], dim=1))
        loss = nn.functional.cross_entropy(logits, (a + b) % MODULUS)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def timed(training: Training, steps: int, save: Callable[[], object] | None) -> tuple[float, float, float]:
    """Return seconds of the loop, of its processor time, and inside `save`, each per step."""
    inside = 0.0
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        training.step()
        if save is not None:
            before = time.perf_counter()
            save()
            inside += time.perf_counter() - before
    return (time.perf_counter() - start) / steps, (time.process_time() - cpu) / steps, inside / steps


def measure(folder: Path, modes: list[str], rounds: int, steps: int, batch: int) -> dict[str, Any]:
    """Return the medians of every mode over rounds of blocks: none, mode, none, next mode, none, ..."""
    training = Training(batch)
    timed(training, steps, None)
    rows: dict[str, list[tuple[float, ...]]] = {mode: [] for mode in modes}
    plain: list[float] = []
    recorders = {mode: Recorder(training.model, folder / mode, mode=mode) for mode in modes}
    for number in range(rounds):
        before = timed(training, steps, None)
        for mode in modes[number % len(modes) :] + modes[: number % len(modes)]:
            block, after = timed(training, steps, recorders[mode].step), timed(training, steps, None)
            pairs = zip(block[:2], before[:2], after[:2], strict=True)
            rows[mode].append((*(2 * b / (one + other) for b, one, other in pairs), block[2]))
            plain.append(before[0])
            before = after
    for mode, recorder in recorders.items():
        recorder.close()
        assert len(open_trajectory(folder / mode)) == rounds * steps + 1
    parameters = sum(p.numel() for p in training.model.parameters())
    return {
        "parameters": parameters,
        "step_ms": 1e3 * statistics.median(plain),
        "modes": {mode: summary(found) for mode, found in rows.items()},
    }


def summary(found: list[tuple[float, ...]]) -> dict[str, Any]:
    """Return medians, and the quartiles of the ratio."""
    ratios, cpu, inside = (list(column) for column in zip(*found, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": middle,
        "ratio_quartiles": [low, high],
        "cpu_ratio": statistics.median(cpu),
        "save_us": 1e6 * statistics.median(inside),
        "rounds": len(ratios),
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", default="log,folders", help="modes of saving, joined by commas")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=100, help="steps of a block")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dir", type=Path, default=Path(), help="where runs are written, and deleted at the end")
    parser.add_argument("--json", type=Path, help="write the results here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    report = harness.Report("saving", harness.machine())
    with tempfile.TemporaryDirectory(dir=given.dir, prefix="saving-") as folder:
        found = report.found = measure(Path(folder), given.modes.split(","), given.rounds, given.steps, given.batch)
    print(f"{found['parameters']:,} parameters, a step takes {found['step_ms']:.2f} ms without saving")
    for mode, row in found["modes"].items():
        low, high = row["ratio_quartiles"]
        print(
            f"{mode:8} loop {row['ratio']:.3f} of no saving (quartiles {low:.3f} to {high:.3f}), "
            f"processor {row['cpu_ratio']:.3f}, inside save {row['save_us']:.0f} us"
        )
    if "log" in found["modes"]:  # what a run of such steps is given when nothing is asked for
        report.goal("saving every step against not saving", found["modes"]["log"]["ratio"], GOAL)
    report.write(given.json)


if __name__ == "__main__":
    main()
