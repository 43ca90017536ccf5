"""Read a study file and say everything that is wrong with it before any work begins."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ..errors import OptionError, PluginError, nearest
from ..registry import Registry, load_registry
from .declare import DIRECTIONS, PRESETS, Study

_NAME = re.compile(r"[A-Za-z0-9][\w.+=-]*")
HOOKS = ("ckpt_analyzers", "ckpt_families")


@dataclass(frozen=True)
class Loaded:
    """A study with its name, the file's stem, and the plugins that the file provides itself."""

    name: str
    path: Path
    study: Study
    plugin_files: tuple[Path, ...]

    def registry(self) -> Registry:
        """Return all plugins there are, those of the study file among them."""
        return load_registry(self.plugin_files)


def load_study(path: str | Path) -> Loaded:
    """Return the study that a Python file declares as `study`; PluginError names all faults of a bad one at once."""
    file = Path(path)
    if not file.is_file():
        here = [p.stem for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise PluginError(f"{file}: no such study.{nearest(file.stem, here) if here else ''}")
    module = _imported(file)
    study = getattr(module, "study", None)
    if not isinstance(study, Study):
        raise PluginError(f"{file} declares no study: it must hold `study = Study(...)` of ckpt_tools.study.")
    found = list(faults(study))
    if found:
        raise PluginError(f"{file}: {'; '.join(found)}.")
    provides = any(hasattr(module, hook) for hook in HOOKS)
    return Loaded(file.stem, file, study, (file,) if provides else ())


def _imported(file: Path) -> ModuleType:
    name = f"ckpt_study_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise PluginError(f"{file} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and get_type_hints look their module up by name
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError, NameError, TypeError) as error:
        raise PluginError(f"{file} cannot be read as a study: {type(error).__name__}: {error}") from error
    return module


def faults(study: Study) -> Iterator[str]:
    """Yield everything wrong with a declaration."""
    yield from (f"run {name!r} is no good as a folder's name" for name in study.runs if not _NAME.fullmatch(name))
    if not study.runs:
        yield "it declares no runs"
    yield from _claim_faults(study)
    for analysis in study.analyses:
        yield from _unknown(f"analysis {analysis.key!r}", analysis.runs, study.runs)
    for figure in study.figures:
        yield from _unknown(f"figure {figure.name!r}", figure.needs, study.runs)
    for table in study.tables:
        yield from _unknown(f"table {table.title!r}", table.needs, study.runs)
    yield from _repeated("figure", (figure.name for figure in study.figures))
    for run in study.runs:
        yield from _repeated(f"analysis of run {run!r}", (a.key for a in study.analyses if run in (a.runs or {run})))


def _claim_faults(study: Study) -> Iterator[str]:
    yield from _repeated("claim", (claim.name for claim in study.claims))
    for claim in study.claims:
        if len(claim.limits()) != 1:
            yield f"claim {claim.name!r} needs one of {', '.join(DIRECTIONS)}, and one only"


def _repeated(what: str, names: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield f"{what} {name!r} is declared twice"
        seen.add(name)


def _unknown(where: str, names: Iterable[str], runs: Mapping[str, object]) -> Iterator[str]:
    for name in names:
        if name not in runs:
            yield f"{where}: there is no run {name!r}.{nearest(name, runs).rstrip('.')}"


def check_settings(loaded: Loaded, preset: str, registry: Registry) -> None:
    """Raise a CkptError for an unknown preset, family, task, setting or analyzer before anything is trained."""
    if preset not in PRESETS:
        raise OptionError(f"No preset is named {preset!r}.{nearest(preset, PRESETS)}")
    chosen = {name: run.chosen(preset) for name, run in loaded.study.runs.items()}
    if all(values is None for values in chosen.values()):
        raise OptionError(f"Study {loaded.name} has no preset {preset!r}. Leave --preset out.")
    for name, values in chosen.items():
        run = loaded.study.runs[name]
        known = registry.family(run.family).settings(run.task)
        unknown = sorted((values or {}).keys() - known.keys())
        if unknown:
            raise OptionError(
                f"Run {name!r}: training {run.family} on {run.task} has no setting {unknown[0]!r}."
                f"{nearest(unknown[0], known)}"
            )
    for analysis in loaded.study.analyses:
        registry.analyzer(analysis.analyzer).parse(analysis.options)
