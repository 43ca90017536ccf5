"""`ckpt compare`: two results files cell by cell, or two sets of runs with statistics."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from ..errors import OptionError

if TYPE_CHECKING:
    from ..compare import Comparison, Effects

_MOST_ROWS = 200


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path())
@click.option("--what", multiple=True, metavar="NAME", help="Analyzer or analyzer.output, as rank.effective_rank.")
@click.option("--matrices", multiple=True, metavar="GLOB", help="Only what has a matching label: 'layers.*.attn.q'.")
@click.option("--rtol", type=float, default=1e-6, show_default=True, help="Relative tolerance.")
@click.option("--atol", type=float, default=0.0, show_default=True, help="Absolute tolerance.")
@click.option("--at", type=int, metavar="STEP", help="Of sets of runs, the step to compare (default: the last).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare(
    results: tuple[str, ...],
    what: tuple[str, ...],
    matrices: tuple[str, ...],
    rtol: float,
    atol: float,
    at: int | None,
    as_json: bool,
) -> int:
    """Compare two RESULTS cell by cell, or two sets of runs, with the word `vs` between them.

    Exits with 1 when two files differ beyond the tolerance. Runs of two sets are paired by seed where both sides have
    the same ones; differences are of means, b - a, with 95 % intervals and p-values adjusted for all cells.

    \b
    ckpt compare a.h5 b.h5 --rtol 1e-5
    ckpt compare small_*.h5 vs large_*.h5 --what rank.effective_rank
    """
    from ..compare import compare as compare_two
    from ..compare import effects

    if "vs" in results:
        middle = results.index("vs")
        found = effects(results[:middle], results[middle + 1 :], what=what, matrices=matrices, at=at)
        click.echo(json.dumps(found.as_dict(), allow_nan=False)) if as_json else _effects(found)
        return 0
    if len(results) != 2:
        raise OptionError(f"{len(results)} files: give two, or two sets with `vs` between, as in a_*.h5 vs b_*.h5.")
    both = compare_two(results[0], results[1], what=what, matrices=matrices, rtol=rtol, atol=atol)
    click.echo(json.dumps(both.as_dict(), allow_nan=False)) if as_json else _comparison(both)
    return 0 if both.same else 1


def _comparison(found: Comparison) -> None:
    rows = [
        [
            one.output,
            f"{one.differing} of {one.cells}",
            f"{one.largest:.3g}",
            f"{one.largest_relative:.3g}",
            "" if one.beyond_errors is None else str(one.beyond_errors),
            one.where,
        ]
        for one in sorted(found.outputs, key=lambda one: -one.largest_relative)
        if one.differing
    ]
    if rows:
        _table(["output", "cells that differ", "largest", "relative", "beyond errors", "most at"], rows)
    same = sum(not one.differing for one in found.outputs)
    click.echo(f"{same} of {len(found.outputs)} outputs are the same within the tolerance.")
    for note in found.notes:
        click.echo(f"note: {note}")


def _effects(found: Effects) -> None:
    how = "paired by seed" if found.paired else "not paired: seeds differ or are unknown"
    click.echo(f"step {found.step}, {found.count[0]} and {found.count[1]} runs, {how}; b - a with its 95 % interval")
    rows = [
        [
            f"{one.output} {one.cell}".strip(),
            f"{one.mean_a:.4g}",
            f"{one.mean_b:.4g}",
            f"{one.difference:+.3g} [{one.low:.3g}, {one.high:.3g}]",
            f"{one.p:.2g}",
            f"{one.p_adjusted:.2g}",
        ]
        for one in found.cells[:_MOST_ROWS]
    ]
    _table(["", "mean a", "mean b", "difference", "p", "adjusted"], rows)
    if len(found.cells) > _MOST_ROWS:
        click.echo(f"{len(found.cells) - _MOST_ROWS} more; --what and --matrices narrow the choice, --json prints all.")


def _table(heads: list[str], rows: list[list[str]]) -> None:
    from ..results.names import printable

    cells = [heads, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        first, *rest = zip(row, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
        click.echo("  ".join(padded).rstrip())
