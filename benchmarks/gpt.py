"""Training speed of the family `gpt` against a small loop of its own, on the same model, text and machine.

    python benchmarks/gpt.py [TEXT] [--rounds 5] [--steps 20] [--json gpt.json]

nanoGPT is no package that could be installed, so its part is taken by a loop written for this purpose in nanoGPT's
manner: fused q, k, v, fused attention, tied embeddings, no bias, AdamW over decayed and undecayed weights, clipping,
the loss read at every step, and nothing saved. Both sides start from the same weights and see the same batches; blocks
of steps alternate, and the median ratio of paired blocks counts. `ours` is the loop of the package with all it does at
a step, numbers written; checkpoints and validation come at the ends only, as the stand-in has none. Without TEXT the
project's own pages are read.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckpt_trainers.gpt import GPT
from ckpt_trainers.settings import plan
from ckpt_trainers.training import Training

GOAL = 1.0
MODEL = {"layers": 4, "heads": 4, "d_model": 128, "length": 64, "batch": 12}


class Block(nn.Module):
    """A pre-norm block with one matrix for q, k and v."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.qkv(self.first(x)).split(d, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).contiguous().view(b, t, d)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.second(x))))


class Plain(nn.Module):
    """The same language model, written apart from the package."""

    def __init__(self, vocabulary: int, context: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.last = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.last(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def same_weights(plain: Plain, module: nn.Module) -> None:
    """Copy the package's weights into the stand-in."""
    w = module.state_dict()
    with torch.no_grad():
        plain.tokens.weight.copy_(w["embed.weight"])
        plain.places.weight.copy_(w["position.weight"])
        for i, block in enumerate(plain.blocks):
            qkv = torch.cat([w[f"layers.{i}.attn.{part}.weight"] for part in "qkv"])
            for layer, value in (
                (block.qkv, qkv),
                (block.out, w[f"layers.{i}.attn.o.weight"]),
                (block.up, w[f"layers.{i}.mlp.up.weight"]),
                (block.down, w[f"layers.{i}.mlp.down.weight"]),
            ):
                layer.weight.copy_(value)


def stand_in(training: Training) -> Iterator[float]:
    """Train the stand-in step by step on the batches of `training`, and yield the losses."""
    c, loop = training.config, training.plan.loop
    model = Plain(c["vocabulary"], c["context"], c["d_model"], c["heads"], c["layers"])
    same_weights(model, training.module)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": loop.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=loop.lr, betas=(loop.beta1, loop.beta2))
    for step in range(loop.steps + 1):
        batch = training.batch()
        loss = model(batch["tokens"], batch["targets"])
        yield loss.item()
        for group in optimizer.param_groups:
            group["lr"] = loop.rate(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), loop.clip)
        optimizer.step()


def main() -> None:
    """Print tokens per second of both sides, the ratio of paired blocks, and how far the losses are apart."""
    parser = harness.parser(__doc__, rounds=5, steps=20)
    parser.add_argument("text", nargs="?", type=Path)
    given = parser.parse_args()
    last = 2 + given.rounds * given.steps
    report = harness.Report("gpt", harness.machine())
    with tempfile.TemporaryDirectory(dir=given.dir, prefix="gpt-") as folder:
        text = given.text or own_pages(Path(folder) / "pages.txt")
        values = {**MODEL, "data": str(text), "steps": last, "save": f"at:0,{last}", "device": "cpu"}
        measure(report, values, given.steps, Path(folder) / "run")
    report.write(given.json)


def own_pages(file: Path) -> Path:
    """Write the project's pages into one file."""
    pages = sorted(Path(__file__).resolve().parents[1].glob("docs/*.md"))
    file.write_text("\n".join(page.read_text() for page in pages))
    return file


def measure(report: harness.Report, values: dict[str, Any], block: int, run: Path) -> None:
    """Train both sides, blocks of steps in turns."""
    other = stand_in(Training(GPT, "text", plan(GPT, "text", values)))
    torch.set_num_threads(1)
    for _ in range(2):
        next(other)  # warm
    ours: list[float] = []
    theirs: list[float] = []
    gaps: list[float] = []
    began = 0.0

    def on_step(step: int, end: int, metrics: Mapping[str, Any]) -> None:
        nonlocal began
        if step >= 2 and (step - 2) % block == 0:
            now = time.perf_counter()
            if step > 2:
                ours.append(now - began)
            if step < end:
                then = time.perf_counter()
                gaps.extend(next(other) for _ in range(block))
                theirs.append(time.perf_counter() - then)
            began = time.perf_counter()
        losses.append(metrics["loss"])

    losses: list[float] = []
    GPT.train("text", values, run, on_step=on_step)
    tokens = block * MODEL["batch"] * MODEL["length"]
    report.found |= {
        "tokens_per_second": tokens / statistics.median(ours),
        "stand_in_tokens_per_second": tokens / statistics.median(theirs),
        "losses_apart": max(abs(a - b) for a, b in zip(losses[2:], gaps, strict=False)),
        "last_loss": losses[-1],
    }
    print("\n".join(f"{key:28} {value:.5g}" for key, value in report.found.items()))
    speed = statistics.median(t / o for t, o in zip(theirs, ours, strict=True))
    report.goal("tokens per second against a small loop of its own", speed, GOAL, least=True)


if __name__ == "__main__":
    main()
