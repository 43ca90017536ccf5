"""Where a report goes: written whole beside its target, put in place by one rename."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import ResultsError
from .build import MEGABYTES, build_report
from .page import SIGNATURE


def write_report(
    paths: Sequence[str | Path], target: str | Path, *, megabytes: float = MEGABYTES, force: bool = False
) -> Path:
    """Write the report of some results files and return its path; see `build_report`.

    An earlier report is replaced, any other file only with `force`. Raises ResultsError when it cannot be written.
    """
    path = Path(target)
    _require_replaceable(path, force)
    text = build_report(paths, megabytes=megabytes)
    temporary = path.with_name(f".{path.name[:64]}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    except OSError as error:
        raise ResultsError(f"Cannot write {path}: {error.strerror}. Choose a writable place with -o.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _require_replaceable(path: Path, force: bool) -> None:
    try:
        if path.is_dir() or not path.parent.is_dir():
            what = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
            raise ResultsError(f"Cannot write {path}: {what}. Name a file with -o.")
        if not force and path.exists():
            with path.open(encoding="utf-8", errors="replace") as file:
                if SIGNATURE not in file.read(len(SIGNATURE) + 200):
                    raise ResultsError(
                        f"{path} exists and is no report. Add --force to replace it, or name another file with -o."
                    )
    except OSError as error:
        raise ResultsError(f"Cannot write {path}: {error.strerror}. Choose a writable place with -o.") from error
