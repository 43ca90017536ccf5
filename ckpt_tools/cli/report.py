"""`ckpt report`: results files as one HTML page."""

from __future__ import annotations

import click


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path())
@click.option("--output", "-o", type=click.Path(), default="report.html", show_default=True, help="The page to write.")
@click.option(
    "--size", type=click.FloatRange(0.1, 500), metavar="MB", help="Thin long series until the page is about this large."
)
@click.option("--force", is_flag=True, help="Replace a file that is no report.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
def report(results: tuple[str, ...], output: str, size: float | None, force: bool, quiet: bool) -> None:
    """Write RESULTS as one HTML page with interactive charts; it opens offline and asks nothing of the network.

    \b
    ckpt report results.h5
    ckpt report seed0.h5 seed1.h5 -o seeds.html
    """
    from ..report import MEGABYTES, write_report

    path = write_report(results, output, megabytes=size or MEGABYTES, force=force)
    if not quiet:
        click.echo(f"{len(results)} results file(s), {path.stat().st_size / 1e6:.1f} MB -> {path}")
