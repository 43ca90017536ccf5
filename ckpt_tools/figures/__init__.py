"""Figures of results files for papers: `plot` draws what analyzers declare, or what is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..analyzer import Figure
from ..errors import OptionError, ResultsError
from ..results import Results, read_results
from ..results.choose import Chosen, select
from ..results.reader import Variable

if TYPE_CHECKING:
    from .data import Data

__all__ = ["FORMATS", "plot"]

FORMATS = ("pdf", "png", "svg")


def plot(
    results: str | Path | Sequence[str | Path],
    output: str | Path = "figures.pdf",
    *,
    what: Sequence[str] = (),
    matrices: Sequence[str] = (),
    kind: str = "",
    lines: str = "",
    log: str = "",
    by: str = "",
    at: Sequence[int] = (),
    loss: bool = True,
    dpi: int = 200,
) -> tuple[list[Path], list[str]]:
    """Draw figures of one or several results files; return the files written and notes on what was left out.

    `what` and `matrices` choose as in `ckpt show`; without `what`, the analyzers' own figures are drawn. `kind`,
    `lines` and `log` are those of `ckpt_tools.Figure`; `at` are steps of maps, `dpi` pixels per inch. Several files
    share axes: runs that differ in their seed become a mean with a band of one standard deviation, a setting of numbers
    a colour scale; `by` names the setting to tell apart. Several figures are pages of a PDF, else files `NAME-1.png`.
    Raises ResultsError when there is nothing to draw and when matplotlib is missing.
    """
    target = Path(output)
    form = target.suffix.lower().lstrip(".")
    if form not in FORMATS:
        raise OptionError(f"{target}: figures are written as .{', .'.join(FORMATS)}; end the name with one of these.")
    paths = [results] if isinstance(results, str | Path) else list(results)
    from .draw import Options
    from .style import style

    options = Options(log, by, tuple(at), loss)
    with ExitStack() as stack:
        files = [stack.enter_context(read_results(path)) for path in paths]
        stack.enter_context(style())
        return _written(target, form, dpi, _figures(files, what, matrices, kind, lines, options))


def _figures(
    files: Sequence[Results], what: Sequence[str], matrices: Sequence[str], kind: str, lines: str, options: Any
) -> list[tuple[str, Any, str]]:
    from .data import load
    from .draw import figure
    from .requests import requests

    drawn = []
    for chosen, variable, declared, own in requests(files[0], what, matrices, kind, lines):
        data = [load(chosen, variable), *_others(files[1:], chosen, variable, matrices)]
        against = load(chosen, chosen.group.variables[declared.against]) if declared.against else None
        data = [_kept(one, declared) for one in data]
        if any(one.empty for one in data):
            if what and len(what) == 1 and chosen.group.name not in what:
                raise ResultsError(f"{data[0].name} holds no finite value, so there is nothing to draw.")
            continue
        drawn.append((data[0].name, *figure(files, data, declared, against, options, chosen=own)))
    if not drawn:
        raise ResultsError(f"{files[0].path}: there is nothing to draw. `ckpt show` lists the outputs.")
    return drawn


def _kept(data: Data, declared: Figure) -> Data:
    for dim, label in declared.at.items():
        data = data.at(dim, label)
    return data


def _others(files: Sequence[Results], chosen: Chosen, variable: Variable, matrices: Sequence[str]) -> Iterator[Data]:
    from .data import load

    for found in files:
        (one,) = select(found, [f"{chosen.group.name}.{variable.name}"], matrices if chosen.keep else ())
        yield load(one, one.variables[0])


def _written(target: Path, form: str, dpi: int, drawn: Sequence[tuple[str, Any, str]]) -> tuple[list[Path], list[str]]:
    """Write figures, byte for byte the same when drawn again."""
    notes = [f"{name}: {note}" for name, _, note in drawn if note]
    target.parent.mkdir(parents=True, exist_ok=True)
    if form == "pdf":
        from matplotlib.backends.backend_pdf import PdfPages

        with PdfPages(target, metadata={"CreationDate": None}) as pages:
            for _, figure, _ in drawn:
                pages.savefig(figure, dpi=dpi)
        return [target], notes
    numbered = [target.with_stem(f"{target.stem}-{i}") for i in range(1, len(drawn) + 1)]
    paths = numbered if len(drawn) > 1 else [target]
    for path, (_, figure, _) in zip(paths, drawn, strict=True):
        figure.savefig(path, format=form, dpi=dpi, metadata={"Date": None} if form == "svg" else {"Software": None})
    return paths, notes
