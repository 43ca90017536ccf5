"""Spectra and Hessian-vector products on a GPU, beside one core of the CPU.

    python benchmarks/device.py --json device.json
    python benchmarks/device.py --device cpu --layers 1 --width 64 --inner 172 --vocabulary 512    # to try the script

A LLaMA of 7B parameters with random weights in bfloat16 (13 GB) is written in shards; smaller sizes are options. Both
sides analyze the matrices of its first layer, and the device then those of all layers by itself. Seconds are those of
the clock, reading and hashing included, as a user waits for them; the device was tested and used before. Values must
agree within the errors that both sides state. Products are those of `hessian.py`, compared with float64 on the CPU.

Without a GPU there is nothing to measure, and the script says so and writes nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np

FIRST = "layers.0.*"
SPEED, AGREE, PRODUCT = 0.5, 1.0, 1e-4


def matrices(layers: int, width: int, inner: int, vocabulary: int) -> Iterator[dict[str, tuple[int, int]]]:
    """Yield the shapes of each shard by name: one shard a layer, and one for the vocabulary."""
    yield {"model.embed_tokens.weight": (vocabulary, width), "lm_head.weight": (vocabulary, width)}
    for layer in range(layers):
        shapes = {f"self_attn.{part}_proj": (width, width) for part in "qkvo"}
        shapes |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
        yield {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}


def write(folder: Path, layers: int, width: int, inner: int, vocabulary: int) -> int:
    """Write the checkpoint and return how many matrices it has."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    generator, places = torch.Generator().manual_seed(0), {}
    for number, shapes in enumerate(matrices(layers, width, inner, vocabulary)):
        shard = {n: torch.randn(s, generator=generator).mul_(0.02).bfloat16() for n, s in shapes.items()}
        save_file(shard, folder / f"model-{number:05d}.safetensors")
        places |= dict.fromkeys(shapes, f"model-{number:05d}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": layers}))
    return len(places)


def spectra(folder: Path, device: str, *chosen: str) -> dict[str, Any]:
    """Return the leading singular values of the chosen matrices and their errors."""
    import ckpt_tools

    output, options = folder.parent / "r.h5", {"rank": {"products": False}}
    how: dict[str, Any] = {"output": output, "options": options, "matrices": chosen, "force": True, "device": device}
    ckpt_tools.analyze(folder, ["rank"], **how)
    with ckpt_tools.read_results(output) as found:
        return {name: found["rank"][name].read()[0] for name in ("singular_values", "singular_values_error")}


def compare_spectra(report: harness.Report, folder: Path, device: str, rounds: int) -> None:
    """Let both sides take turns at one layer, then time the device over all."""
    where = {"cpu": "cpu", "device": device}
    sides = {name: harness.clocked(lambda on=on: spectra(folder, on, FIRST)) for name, on in where.items()}
    costs = harness.turns(sides, rounds, warm=1)
    report.costs({f"one layer, {name}": rows for name, rows in costs.items()})
    here, there = costs.values()
    report.goal("spectra of a layer, seconds", harness.ratio(there, here, "seconds"), SPEED)
    apart = np.abs(here[0].value["singular_values"] - there[0].value["singular_values"])
    allowed = here[0].value["singular_values_error"] + there[0].value["singular_values_error"]
    report.goal("singular values apart, over both errors", float(np.nanmax(apart / allowed)), AGREE)
    report.costs({"all layers, device": [harness.clocked(lambda: len(spectra(folder, device)))()]})


def compare_products(report: harness.Report, device: str, sizes: tuple[int, int, int], rounds: int) -> None:
    """Let both sides take turns at a product in float32, and compare with float64."""
    import torch
    from hessian import trained
    from hessian_peers import ours

    model, data = trained(*sizes)
    exact = ours(model.double(), data)
    v = np.random.default_rng(0).standard_normal(exact.size)
    true = exact.product(v)
    made = {}
    for name, on in {"cpu": "cpu", "device": device}.items():
        moved, _ = trained(*sizes)
        made[name] = ours(moved.to(on), tuple(t.to(on) for t in data))
    narrow = v.astype(np.float32)
    costs = harness.turns({n: harness.clocked(lambda o=o: o.product(narrow)) for n, o in made.items()}, rounds, warm=2)
    report.costs({f"product, {name}": rows for name, rows in costs.items()})
    here, there = costs.values()
    report.goal("Hessian-vector product, seconds", harness.ratio(there, here, "seconds"), SPEED)
    error = float(np.linalg.norm(there[0].value - true) / np.linalg.norm(true))
    report.goal("Hessian-vector product, error", error, PRODUCT)
    report.found |= {"parameters": exact.size, "torch": torch.__version__}


def main() -> None:
    """Measure, print, write JSON."""
    parser = harness.parser(__doc__, rounds=3, layers=32, width=4096, inner=11008, vocabulary=32000)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    for name, size in {"hessian-width": 768, "hessian-layers": 12, "batch": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    given = parser.parse_args()
    from ckpt_tools.engine.device import described, exactly, resolve

    device = resolve(given.device)
    if given.device == "auto" and device == "cpu":
        print("No GPU here, so there is nothing to measure; --device cpu tries the script at a small size.")
        return
    report = harness.Report("device", {**harness.machine(), "device": described(device)})
    with tempfile.TemporaryDirectory(dir=given.dir, prefix="device-") as folder:
        sizes = given.layers, given.width, given.inner, given.vocabulary
        report.found["matrices"] = write(Path(folder) / "model", *sizes)
        compare_spectra(report, Path(folder) / "model", device, given.rounds)
    with exactly():
        compare_products(report, device, (given.hessian_width, given.hessian_layers, given.batch), given.rounds)
    report.write(given.json)


if __name__ == "__main__":
    main()
