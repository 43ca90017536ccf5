"""All spectra of a checkpoint of GPT-2-small's size, beside WeightWatcher's and beside the arithmetic that it takes.

    python benchmarks/spectra.py --json spectra.json

transformers writes a model with random weights. Each side is a fresh process and reads the same file; imports do not
count for time, but for memory. WeightWatcher is called by what `get_ESD` consists of, once per layer, since `get_ESD`
itself reads the model twice for each layer; `analyze` adds its power-law fits. It leaves the vocabulary matrix out (a
side above 50,000), and takes the fused q, k, v for one matrix where we take it for three. So ours is measured twice: on
the very matrices that they take, written to a file without any configuration, and on all that we find in the model. The
bound is the Gram product and `eigvalsh` alone, in float64, of the latter.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

CPU, MEMORY, BOUND = 0.40, 0.6, 1.3
DROPPED = 50_000


def write(folder: Path, layers: int, width: int, vocabulary: int) -> None:
    """Write a random GPT-2."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=max(1, width // 64), vocab_size=vocabulary)
    GPT2LMHeadModel(config).save_pretrained(folder)


def write_same(model: Path, folder: Path) -> None:
    """Write the matrices of a model that WeightWatcher takes, as they are and under names that say nothing."""
    from safetensors.numpy import load_file, save_file

    folder.mkdir()
    stored = load_file(model / "model.safetensors").values()
    taken = [value for value in stored if value.ndim == 2 and max(value.shape) < DROPPED]
    save_file({f"matrix_{i}": value for i, value in enumerate(taken)}, folder / "model.safetensors")


def ours(folder: str, tiny: str, plugin: str) -> Callable[[], Any]:
    """Return work that analyzes and gives back the stable rank of every matrix."""
    import ckpt_tools

    output = Path(folder).parent / f"{plugin}.h5"
    # What ours imports on first use, WeightWatcher imports with itself.
    ckpt_tools.analyze(tiny, [plugin], output=output, force=True)

    def work() -> dict[str, float]:
        ckpt_tools.analyze(folder, [plugin], output=output, force=True)
        with ckpt_tools.read_results(output) as results:
            ranks = results[plugin]["stable_rank"]
            labels = results[plugin].labels[ranks.dims[1]]
            return dict(zip(map(str, labels), map(float, ranks.read()[0]), strict=True))

    return work


def watched(folder: str, fits: str) -> Callable[[], Any]:
    """Return work that takes WeightWatcher's spectra and gives back the stable rank of every layer."""
    import logging

    import weightwatcher
    from weightwatcher.constants import DEFAULT_PARAMS

    logging.getLogger("weightwatcher").setLevel(logging.ERROR)
    watcher = weightwatcher.WeightWatcher(model=folder)

    def fitted() -> dict[str, float]:
        table = watcher.analyze()
        return dict(zip(table["longname"], table["stable_rank"].astype(float), strict=True))

    def spectra() -> dict[str, float]:
        params, found = DEFAULT_PARAMS.copy(), {}
        for layer in watcher.make_layer_iterator(model=folder, params=params):
            if not layer.skipped and layer.has_weights:
                watcher.apply_esd(layer, params)
                found[layer.longname or layer.name] = float(layer.evals.sum() / layer.evals.max())
        return found

    return fitted if fits == "fits" else spectra


def arithmetic(folder: str) -> Callable[[], Any]:
    """Return work that costs what no route through the float64 Gram matrix can save."""
    import numpy as np
    from safetensors.numpy import load_file

    wide = [m for m in load_file(f"{folder}/model.safetensors").values() if m.ndim == 2]
    parts = [p for m in wide for p in (np.split(m, 3, axis=1) if m.shape[1] == 3 * m.shape[0] else [m])]
    tall = [np.ascontiguousarray(p if len(p) >= p.shape[1] else p.T, dtype="f8") for p in parts]
    return lambda: [float(np.linalg.eigvalsh(m.T @ m)[-1]) for m in tall] and len(tall)


def errors(folder: Path, mine: dict[str, float], theirs: dict[str, float]) -> tuple[float, float]:
    """Return the largest relative error of both sides' stable rank, from singular values in float64."""
    import numpy as np
    from safetensors.numpy import load_file

    worst = [0.0, 0.0]
    stored = load_file(folder / "model.safetensors")
    known = {name.removesuffix(".weight"): value for name, value in theirs.items()}
    for name in (n.removesuffix(".weight") for n in stored if n.endswith(("attn.c_proj.weight", "mlp.c_fc.weight"))):
        s = np.linalg.svd(stored[f"{name}.weight"].astype("f8"), compute_uv=False)
        exact = float((s**2).sum() / s[0] ** 2)
        layer, part = name.split("h.", 1)[1].split(".", 1)
        role = f"layers.{layer}.{'attn.o' if part.startswith('attn') else 'mlp.up'}"
        found = mine[role], next(value for key, value in known.items() if key.endswith(name))
        worst = [max(w, abs(value / exact - 1)) for w, value in zip(worst, found, strict=True)]
    return worst[0], worst[1]


CHILDREN: dict[str, Callable[..., Callable[[], Any]]] = {"ours": ours, "watched": watched, "arithmetic": arithmetic}


def measure(report: harness.Report, root: Path, rounds: int) -> None:
    """Let all sides take turns, and judge."""
    model, tiny, same, tiny_same = (root / name for name in ("model", "tiny", "same", "tiny-same"))
    sides = {
        "spectra": ("ours", same, tiny_same, "rank"),
        "all spectra": ("ours", model, tiny, "rank"),
        "fits": ("ours", same, tiny_same, "heavytail"),
        "weightwatcher": ("watched", model, "spectra"),
        "weightwatcher fits": ("watched", model, "fits"),
        "bound": ("arithmetic", model),
    }
    costs = harness.turns({k: harness.child(__file__, *map(str, v)) for k, v in sides.items()}, rounds)
    report.costs(costs)
    for mine, other in (("spectra", "weightwatcher"), ("fits", "weightwatcher fits")):
        what = f"{mine} against {other}"
        report.goal(f"{what}: processor time", harness.ratio(costs[mine], costs[other]), CPU)
        report.goal(f"{what}: peak memory", harness.ratio(costs[mine], costs[other], "peak"), MEMORY)
    every, theirs = costs["all spectra"], costs["weightwatcher"]
    report.goal("all spectra, with the vocabulary, against weightwatcher's", harness.ratio(every, theirs), CPU)
    report.goal("all spectra against GEMM and eigvalsh", harness.ratio(every, costs["bound"]), BOUND)
    accuracy = errors(model, every[0].value, theirs[0].value)
    counts = {name: len(rows[0].value) for name, rows in costs.items() if name != "bound"}
    report.found |= {"matrices": counts, "errors": dict(zip(("ours", "weightwatcher"), accuracy, strict=True))}
    report.found["gflops"] = harness.gemm_rate() / 1e9
    print(f"matrices {counts}; error of the stable rank: ours {accuracy[0]:.1e}, theirs {accuracy[1]:.1e}")
    print(f"matrix product {report.found['gflops']:.0f} GFLOP/s in float64")


def main() -> None:
    """Measure, print, write JSON."""
    given = harness.parser(__doc__, rounds=3, layers=12, width=768, vocabulary=50257).parse_args()
    if given.child:
        name, *arguments = given.child
        return harness.answer(CHILDREN[name](*arguments))
    report = harness.Report("spectra", harness.machine(("scipy", "transformers", "weightwatcher")))
    with tempfile.TemporaryDirectory(dir=given.dir, prefix="spectra-") as folder:
        root = Path(folder)
        write(root / "tiny", 1, 16, 16)
        write(root / "model", given.layers, given.width, given.vocabulary)
        for name, same in (("tiny", "tiny-same"), ("model", "same")):
            write_same(root / name, root / same)
        measure(report, root, given.rounds)
    report.write(given.json)


if __name__ == "__main__":
    sys.exit(main())
