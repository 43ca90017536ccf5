"""Opening a sharded checkpoint of 400 tensors and reading one, beside transformers' `from_pretrained`.

    python benchmarks/opening.py --json opening.json

transformers writes a GPT-2 of 33 layers in shards. Both sides start from the folder's path, take turns in one process
after a round that does not count, and give the same tensor; the system has the files in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import harness

GOAL = 0.02


def write(folder: Path, layers: int, width: int, shards: int) -> None:
    """Write a random GPT-2, 12 tensors a layer and 4 more, in about so many shards."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=width, n_head=max(1, width // 64)))
    size = 4 * sum(p.numel() for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=size // shards)


def sides(folder: Path, name: str) -> dict[str, Callable[[], object]]:
    """Return work that ends with the tensor of that name as an array."""
    from transformers import GPT2LMHeadModel

    from ckpt_tools import open_checkpoint

    def ours() -> object:
        with open_checkpoint(folder) as checkpoint:
            return checkpoint.read(name)

    def theirs() -> object:
        return GPT2LMHeadModel.from_pretrained(folder).get_parameter(name).detach().numpy()

    return {"ours": ours, "from_pretrained": theirs}


def main() -> None:
    """Measure, print, write JSON."""
    given = harness.parser(__doc__, rounds=9, layers=33, width=512, shards=8).parse_args()
    import numpy as np

    from ckpt_tools import open_checkpoint

    report = harness.Report("opening", harness.machine(("transformers", "safetensors")))
    with tempfile.TemporaryDirectory(dir=given.dir, prefix="opening-") as name:
        folder = Path(name)
        write(folder, given.layers, given.width, given.shards)
        tensor = f"transformer.h.{given.layers // 2}.mlp.c_fc.weight"
        works = {side: harness.clocked(work) for side, work in sides(folder, tensor).items()}
        costs = harness.turns(works, given.rounds, warm=1)
        with open_checkpoint(folder) as checkpoint:
            report.found["tensors"] = len(checkpoint.tensors)
        report.found["shards"] = len(list(folder.glob("*.safetensors")))
    report.costs(costs)
    same = all(np.array_equal(a.value, b.value) for a, b in zip(costs["ours"], costs["from_pretrained"], strict=True))
    report.found["same"] = same
    print(f"{report.found['tensors']} tensors in {report.found['shards']} shards; same tensor: {same}")
    measured = harness.ratio(costs["ours"], costs["from_pretrained"], "seconds")
    report.goal("opening and one tensor against from_pretrained", measured, GOAL)
    report.write(given.json)


if __name__ == "__main__":
    main()
