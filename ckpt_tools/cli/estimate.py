"""`ckpt analyze --dry-run`: what there is to do, as a table or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..engine.estimate import Estimate


def show_estimate(source: str, plugins: tuple[str, ...], *, as_json: bool, **how: Any) -> int:
    """Print what `ckpt analyze` would do and return its exit code."""
    from ..engine import preview

    for name in ("strict", "timeout", "watch"):  # they change no plan
        how.pop(name, None)
    found = preview(source, plugins, **how)
    if as_json:
        import json

        click.echo(json.dumps(found.as_dict()))
    else:
        for label, text in _rows(found):
            click.echo(f"{label:<12} {text}")
    return 0


def _rows(found: Estimate) -> list[tuple[str, str]]:
    from ..engine.memory import shown

    units = f"{found.units} to compute" + (f", {found.known} known already" if found.known else "")
    rows = [
        ("checkpoints", str(found.checkpoints)),
        ("analyzers", ", ".join(found.analyzers)),
        ("matrices", str(found.matrices)),
        ("units", f"{units} (one analyzer at one checkpoint each)"),
        ("to read", f"{shown(found.bytes_to_read)}, {shown(found.bytes_per_checkpoint)} a checkpoint"),
        ("device", found.device),
        ("memory", f"about {shown(found.peak)} of {shown(found.memory)}, {found.workers} worker(s)"),
        ("time", "not known" if found.seconds is None else f"about {duration(found.seconds)}"),
    ]
    rows += [("untimed", f"{name}: {reason}") for name, reason in found.untimed.items()]
    return rows + [("note", note) for note in found.notes]


def duration(seconds: float) -> str:
    """Return a time for reading: `45 s`, `12 min`, `3 h 20 min`, `5 d 3 h`."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
