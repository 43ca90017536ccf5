"""`ckpt inspect`: what a source holds, before anything is computed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint, Trajectory
    from ..layouts import Resolved


@click.command()
@click.argument("source", type=click.Path())
@click.option("--step", type=int, help="Which checkpoint of a trajectory to list (default: the last).")
@click.option("--part", default="", help="Which of several sets of weights in a checkpoint, as in ema.")
@click.option(
    "--plugin-file", "plugin_files", multiple=True, type=click.Path(), help="Plugin in Python, or role table in TOML."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(source: str, step: int | None, part: str, plugin_files: tuple[str, ...], as_json: bool) -> None:
    """List tensors, roles, shapes, dtypes and steps of SOURCE, and what is skipped and why. Reads headers only."""
    from ..checkpoint import open_trajectory
    from ..layouts import Layouts
    from ..registry import load_registry

    trajectory = open_trajectory(source, part=part)
    layouts = Layouts(load_registry(plugin_files), trajectory.run)
    with trajectory.checkpoint(trajectory.steps[-1] if step is None else step) as checkpoint:
        facts = _facts(trajectory, checkpoint, layouts.of(checkpoint))
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    else:
        _print(facts)


def _facts(trajectory: Trajectory, checkpoint: Checkpoint, resolved: Resolved) -> dict[str, Any]:
    layout = resolved.layout
    weights = [*layout.matrices.values(), *layout.vectors.values()]
    return {
        "source": str(trajectory.path),
        "format": checkpoint.format,
        "family": resolved.family.name if resolved.family else None,
        "steps": list(trajectory.steps),
        "step": checkpoint.step,
        "tensors": len(checkpoint.tensors),
        "parameters": sum(checkpoint.tensors[t].size for t in {w.tensor for w in weights}),
        "bytes": sum(info.nbytes for info in checkpoint.tensors.values()),
        "weights": [
            {"name": w.name, "role": w.role, "tensor": w.tensor, "shape": list(w.shape), "dtype": w.dtype}
            for w in weights
        ],
        "tied": dict(layout.aliases),
        "notes": list(layout.notes),
        "skipped": [
            {"name": s.name, "reason": s.reason} for s in [*trajectory.skipped, *checkpoint.skipped, *layout.skipped]
        ],
    }


def _print(facts: dict[str, Any]) -> None:
    steps = facts["steps"]
    click.echo(f"{facts['source']}: {facts['format']}, family {facts['family'] or 'unknown (roles stay empty)'}")
    if len(steps) > 1:
        click.echo(f"{len(steps)} checkpoints, steps {steps[0]} to {steps[-1]}; listed here: step {facts['step']}")
    click.echo(f"{facts['tensors']} tensors, {facts['parameters']:,} parameters, {facts['bytes']:,} bytes\n")
    rows = [[w["name"], "x".join(map(str, w["shape"])), w["dtype"], w["tensor"]] for w in facts["weights"]]
    _columns(["weight", "shape", "stored", "tensor"], rows)
    for alias, target in facts["tied"].items():
        click.echo(f"tied: {alias} is {target}, counted once")
    for note in facts["notes"]:
        click.echo(f"note: {_printable(note)}")
    for skip in facts["skipped"]:
        click.echo(f"skipped: {_printable(skip['name'])}: {skip['reason']}")


def _columns(head: list[str], rows: list[list[str]]) -> None:
    table = [head, *([_printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    for row in table:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _printable(text: str) -> str:
    """Escape control characters: tensor names are a stranger's text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
