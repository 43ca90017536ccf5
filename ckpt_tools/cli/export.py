"""`ckpt export`: a results file in other tools' formats."""

from __future__ import annotations

import click


@click.command()
@click.argument("results", type=click.Path())
@click.option("--to", required=True, metavar="FORMAT", help="csv, parquet, netcdf or tensorboard.")
@click.option("--what", multiple=True, metavar="NAME", help="Analyzer or analyzer.output, as rank.effective_rank.")
@click.option("--matrices", multiple=True, metavar="GLOB", help="Only what has a matching label: 'layers.*.attn.q'.")
@click.option("--output", "-o", type=click.Path(), help="File or folder to write (default: beside RESULTS).")
@click.option("--force", is_flag=True, help="Write over what is there.")
def export(
    results: str, to: str, what: tuple[str, ...], matrices: tuple[str, ...], output: str | None, force: bool
) -> None:
    """Write RESULTS as tables (csv, parquet), as netCDF, or as events that TensorBoard shows.

    \b
    ckpt export results.h5 --to csv -o tables
    ckpt export results.h5 --to parquet --what rank.effective_rank -o rank.parquet
    ckpt export results.h5 --to tensorboard -o logs
    """
    from ..export import export as write

    written, notes = write(results, to, output, what=what, matrices=matrices, force=force)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    for path in written:
        click.echo(str(path))
