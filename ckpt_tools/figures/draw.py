"""From the data of one output to its figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..analyzer import FIGURES
from ..analyzer import Figure as Declared
from ..errors import OptionError, nearest
from ..results import Results
from .canvas import Line, Logs, Panel
from .curves import curves, draw_curves, overlaid, profiles
from .data import Data
from .images import heatmaps, maps
from .landscape import landscape
from .overlay import Set, common, mean, sets
from .points import scatter, single
from .requests import kind_of
from .style import Scale, categorical

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Options:
    """What holds for all figures of a call."""

    log: str = ""
    by: str = ""
    at: tuple[int, ...] = ()
    loss: bool = True


def figure(
    files: Sequence[Results],
    of_files: Sequence[Data],
    declared: Declared,
    against: Data | None,
    options: Options,
    *,
    chosen: bool,
) -> tuple[Figure, str]:
    """Return the figure of one output of one or several files, and a note on what did not fit.

    `chosen` says that an analyzer's author chose linear axes where nothing says otherwise.
    """
    over_steps = declared.kind in ("", "curves", "heatmap")
    log = Logs(
        "x" in options.log or ("x" in declared.log and over_steps),
        "x" in declared.log and not over_steps,
        True if "y" in declared.log + options.log else False if chosen else None,
    )
    if len(files) > 1:
        drawn, left = _several(files, of_files, log, options)
    else:
        drawn, left = _one(files[0], of_files[0], declared, against, log, options)
    return drawn, f"{left} more panel(s) did not fit; narrow the choice with --matrices" if left else ""


def _one(
    found: Results, data: Data, declared: Declared, against: Data | None, log: Logs, options: Options
) -> tuple[Figure, int]:
    keep = FIGURES[declared.kind]
    if keep > len(data.dims):
        raise OptionError(
            f"{data.name} has {len(data.dims)} dimension(s) besides step; a {declared.kind} needs {keep}."
        )
    if declared.lines and declared.lines not in data.dims:
        raise OptionError(f"{data.name} has no dimension {declared.lines!r}.{nearest(declared.lines, data.dims)}")
    kind = declared.kind or ("curves" if declared.lines else kind_of(data))
    data = data.single({"map": 2, "heatmap": 1, "profile": 1, "scatter": 1, "landscape": 2}.get(kind, 0))
    loss = losses([found], [Set("", (0,))], "") if options.loss and len(data.steps) > 1 else None
    if kind == "scatter" and against is not None:
        return scatter(data, against.single(1), at=options.at, log=log)
    if kind == "landscape" and against is not None:
        return landscape(data, against.single(1), log=log)
    if kind == "map":
        return maps(data, at=options.at, log=log)
    if kind == "profile":
        x = data.dims[-1].replace("_", " ")
        return draw_curves(profiles(data, log.steps), data.axis_label, loss=None, log=log, x=x)
    if len(data.steps) == 1:
        return single(data, log=log)
    if kind == "heatmap":
        return heatmaps(data, loss=loss, log=log)
    return draw_curves(curves(data, declared.lines), data.axis_label, loss=loss, log=log)


def _several(files: Sequence[Results], of_files: Sequence[Data], log: Logs, options: Options) -> tuple[Figure, int]:
    varied, groups = sets(files, options.by)
    shared = common(of_files)
    merged = [mean([shared[i] for i in group.members]).single() for group in groups]
    sheet = overlaid(merged, [_label(group) for group in groups], [group.number for group in groups], varied)
    loss = losses(files, groups, varied) if options.loss else None
    return draw_curves(sheet, merged[0].axis_label, loss=loss, log=log)


def _label(group: Set) -> str:
    count = len(group.members)
    seeds = f"mean ± sd of {count} runs" if count > 1 else ""
    return f"{group.label} ({seeds})" if group.label and seeds else group.label or seeds


def losses(files: Sequence[Results], groups: Sequence[Set], varied: str) -> Panel | None:
    """Return the loss that training logged, one curve for each set of files; None when no file has one."""
    found = [_loss(file) for file in files]
    lines: list[Line] = []
    scale = Scale([g.number for g in groups if g.number is not None], varied) if varied else None
    looks = categorical(len(groups))
    for group, look in zip(groups, looks, strict=True):
        members = [one for i in group.members if (one := found[i]) is not None]
        if not members:
            continue
        colour = scale(group.number) if scale and group.number is not None else look[0]
        merged = mean(members)
        lone = len(groups) == 1 and len(members) == 1
        lines.append(Line("", merged.steps, merged.values, "black" if lone else colour, look[1], merged.errors))
    return Panel("", lines) if lines else None


def _loss(found: Results) -> Data | None:
    """Return the first logged metric that is a loss, at the steps where it was logged."""
    if found.trajectory is None:
        return None
    metrics = {str(v.attrs["metric"]): v for v in found.trajectory.variables.values() if "metric" in v.attrs}
    name = "loss" if "loss" in metrics else next((n for n in metrics if "loss" in n), None)
    if name is None:
        return None
    values = np.asarray(metrics[name].read(), dtype=np.float64)
    known = np.isfinite(values)
    if known.sum() < 2:
        return None
    return Data("trajectory.loss", name, "1", found.trajectory.steps[known], (), (), values[known])
