"""Rank, condensation and drift over 1,000 small checkpoints, beside plain arithmetic and beside the usual script.

    python benchmarks/trajectory.py --json trajectory.json

A run of 25 tensors and 200,000 parameters with a checkpoint at every step. The bound reads each file with `load_file`
and takes the float64 Gram matrix and `eigvalsh` of each matrix. The script is what people write: `load_file`,
`svdvals` of each matrix for its effective rank, the cosine matrix of its rows (ours: of its columns, too) and the
distance to the first checkpoint; it clusters nothing and writes nothing. One thread each, in turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import harness

BOUND, SCRIPT = 1.6, 0.6


def write(folder: Path, steps: int, width: int) -> tuple[int, int]:
    """Write a run whose weights move a little at every step; return its numbers of tensors and parameters."""
    import numpy as np

    from ckpt_tools import RunWriter

    rng = np.random.default_rng(0)
    shapes = {"embed": (115, width), "position": (3, width), "unembed": (113, width)}
    for i in range(2):
        shapes |= {f"layers.{i}.attn.{part}": (width, width) for part in "qkvo"}
        shapes |= {f"layers.{i}.mlp.up": (4 * width, width), f"layers.{i}.mlp.down": (width, 4 * width)}
        shapes |= {f"layers.{i}.{part}.norm": (width,) for part in ("attn", "mlp")}
    shapes |= {"norm": (width,)}
    tensors = {f"{k}.weight": (rng.standard_normal(s) / np.sqrt(width)).astype("f4") for k, s in shapes.items()}
    tensors |= {k.replace("weight", "bias"): v.copy() for k, v in tensors.items() if v.ndim == 1}
    config = {"layers": 2, "heads": 4, "d_model": width}
    how = {"family": "transformer", "family_version": 1, "config": config, "schedule": "every:1", "mode": "folders"}
    with RunWriter(folder, **how) as run:
        for step in range(steps):
            for value in tensors.values():
                value += (rng.standard_normal(value.shape) * 1e-3).astype("f4")
            run.save(step, tensors)
    return len(tensors), sum(v.size for v in tensors.values())


def bound(files: Sequence[Path]) -> None:
    """Read each file and take the float64 Gram matrix and its eigenvalues of each matrix."""
    import numpy as np
    from safetensors.numpy import load_file

    for file in files:
        for stored in load_file(file).values():
            if stored.ndim == 2:
                m = stored.astype("f8")
                np.linalg.eigvalsh(m @ m.T if len(m) <= m.shape[1] else m.T @ m)


def script(files: Sequence[Path]) -> list[tuple[float, float, float]]:
    """Return effective rank, mean |cos| of rows and distance to the first checkpoint of every matrix."""
    import torch
    from safetensors.torch import load_file

    first, found = load_file(files[0]), []
    for file in files:
        for name, m in load_file(file).items():
            if m.ndim != 2:
                continue
            s = torch.linalg.svdvals(m)
            p = s / s.sum()
            rank = torch.exp(-(p * torch.log(p)).sum())
            unit = m / m.norm(dim=1, keepdim=True)
            cosines = (unit @ unit.T).abs()
            distance = (m - first[name]).norm() / first[name].norm()
            found.append((float(rank), float(cosines.mean()), float(distance)))
    return found


def ours(run: Path, output: Path) -> Callable[[], object]:
    """Return work of ours."""
    import ckpt_tools

    return lambda: ckpt_tools.analyze(run, ["rank", "condensation", "drift"], output=output, force=True)


def rank_error(run: Path, output: Path, script_found: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Return the largest relative error of the effective rank of q in the first layer at the first step."""
    import numpy as np
    from safetensors.numpy import load_file

    from ckpt_tools import read_results

    tensors = load_file(next(iter(sorted(run.glob("step-*")))) / "model.safetensors")
    s = np.linalg.svd(tensors["layers.0.attn.q.weight"].astype("f8"), compute_uv=False)
    p = s / s.sum()
    exact = float(np.exp(-(p * np.log(p)).sum()))
    order = [name for name, value in tensors.items() if value.ndim == 2]
    with read_results(output) as results:
        place = list(results["rank"].labels["matrix"]).index("layers.0.attn.q")
        mine = float(results["rank"]["effective_rank"].read()[0, place])
    theirs = script_found[order.index("layers.0.attn.q.weight")][0]
    return abs(mine / exact - 1), abs(theirs / exact - 1)


def main() -> None:
    """Measure, print, write JSON."""
    given = harness.parser(__doc__, rounds=3, steps=1000, width=88).parse_args()
    import torch

    torch.set_num_threads(1)
    report = harness.Report("trajectory", harness.machine(("scipy", "safetensors")))
    with tempfile.TemporaryDirectory(dir=given.dir, prefix="trajectory-") as name:
        run, output = Path(name) / "run", Path(name) / "results.h5"
        tensors, parameters = write(run, given.steps, given.width)
        files = sorted(run.glob("step-*/model.safetensors"))
        works = {"ours": ours(run, output), "bound": lambda: bound(files), "script": lambda: script(files)}
        costs = harness.turns({k: harness.clocked(work) for k, work in works.items()}, given.rounds, warm=1)
        accuracy = rank_error(run, output, costs["script"][0].value)
        report.found["read_gb_per_second"] = harness.read_rate(files[0]) / 1e9
    report.costs(costs)
    sizes = {"checkpoints": len(files), "tensors": tensors, "parameters": parameters}
    report.found |= sizes | {"errors": dict(zip(("ours", "script"), accuracy, strict=True))}
    report.found["gflops"] = harness.gemm_rate() / 1e9
    each = 1e3 * harness.median(costs["ours"]) / len(files)
    print(f"{sizes}, {each:.2f} ms each; error of the effective rank: {accuracy[0]:.1e}, script {accuracy[1]:.1e}")
    report.goal("trajectory against reading, Gram and eigvalsh", harness.ratio(costs["ours"], costs["bound"]), BOUND)
    report.goal("trajectory against the usual script", harness.ratio(costs["ours"], costs["script"]), SCRIPT)
    report.write(given.json)


if __name__ == "__main__":
    main()
