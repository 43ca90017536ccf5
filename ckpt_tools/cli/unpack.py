"""`ckpt unpack`: checkpoints of a run as step folders."""

from __future__ import annotations

import click


@click.command()
@click.argument("run", type=click.Path())
@click.option("--steps", default="all", metavar="STEPS", help="Which steps: 0:1000:10, log:50, at:0,1, last, ...")
@click.option("--out", "-o", type=click.Path(), help="Write them into this new run and leave RUN as it is.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def unpack(run: str, steps: str, out: str | None, quiet: bool, as_json: bool) -> None:
    """Write checkpoints of RUN as folders with model.safetensors, byte for byte.

    Without --out, a log is deleted once all its checkpoints are in folders that have been compared with it.

    \b
    ckpt unpack runs/markov
    ckpt unpack runs/markov --steps last -o last
    """
    from ..run import unpack as unpack_run
    from .pack import report
    from .progress import reporter

    with reporter(quiet=quiet or as_json, label="unpack") as progress:
        done = unpack_run(run, steps=steps, out=out, on_progress=progress)
    report(done, out or run, "in folders", quiet=quiet, as_json=as_json)
