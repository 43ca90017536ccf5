"""`ckpt plot`: figures of results files for papers."""

from __future__ import annotations

import click

from ..errors import OptionError


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path())
@click.option("--what", multiple=True, metavar="NAME", help="Analyzer or analyzer.output, as rank.effective_rank.")
@click.option("--matrices", multiple=True, metavar="GLOB", help="Only what has a matching label: 'layers.*.attn.q'.")
@click.option("--kind", default="", metavar="KIND", help="curves, heatmap, profile or map, instead of the default.")
@click.option("--lines", default="", metavar="DIM", help="The dimension that colours tell apart, as head.")
@click.option("--log-x", is_flag=True, help="Logarithmic steps.")
@click.option("--log-y", is_flag=True, help="Logarithmic values, where they are positive.")
@click.option("--at", "at", multiple=True, type=int, metavar="STEP", help="Steps that maps and scatter plots show.")
@click.option("--by", default="", metavar="SETTING", help="Of several runs, the setting to tell apart, as gamma.")
@click.option("--no-loss", is_flag=True, help="Leave out the loss above.")
@click.option("--dpi", type=click.IntRange(20, 2400), default=200, show_default=True, help="Pixels per inch.")
@click.option("--output", "-o", type=click.Path(), default="figures.pdf", show_default=True, help=".pdf, .png or .svg.")
def plot(
    results: tuple[str, ...],
    what: tuple[str, ...],
    matrices: tuple[str, ...],
    kind: str,
    lines: str,
    log_x: bool,
    log_y: bool,
    at: tuple[int, ...],
    by: str,
    no_loss: bool,
    dpi: int,
    output: str,
) -> None:
    """Draw figures of RESULTS, several overlaid: seeds as mean and band, a swept setting as a colour scale.

    Without --what, the figures that the analyzers declare are drawn: pages of a PDF, or numbered files.

    \b
    ckpt plot results.h5 --what rank.effective_rank --log-x -o rank.pdf
    ckpt plot runs/*.h5 --what rank.stable_rank --matrices '*.attn.q' -o sweep.png
    """
    from ..figures import plot as draw

    if lines and not what:
        raise OptionError("--lines goes with --what, as in --what attention.entropy --lines head.")
    log = "x" * log_x + "y" * log_y
    written, notes = draw(
        results,
        output,
        what=what,
        matrices=matrices,
        kind=kind,
        lines=lines,
        log=log,
        by=by,
        at=at,
        loss=not no_loss,
        dpi=dpi,
    )
    for note in notes:
        click.echo(f"note: {note}", err=True)
    for path in written:
        click.echo(str(path))
