"""Find plugins: entry points, single files; list what is broken; load only what is asked for.

Each entry point is loaded by itself and checked, so that one broken plugin is a line in `ckpt plugins`, not the end of
everybody else's work.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pluggy

from . import hookspecs
from .analyzer import Analyzer, declaration_faults
from .errors import PluginError, nearest
from .family import Family
from .hookspecs import PROJECT, hookimpl

C = TypeVar("C", Analyzer, Family)
DISTRIBUTION = "ckpt-tools"


@dataclass
class Plugin:
    """One provider: an entry point or a file, what it provides once loaded, or why it cannot.

    `cheap` marks what costs nothing more to load: the core's own tables, and files that a user named.
    """

    name: str
    origin: str
    version: str
    load: Callable[[], Any]
    distribution: str = ""
    cheap: bool = False
    analyzers: list[type[Analyzer]] = field(default_factory=list)
    families: list[type[Family]] = field(default_factory=list)
    broken: str = ""
    loaded: bool = False

    def ensure(self) -> Plugin:
        """Load once; a failure of whatever kind in the plugin's own code becomes `broken`."""
        if not self.loaded:
            self.loaded = True
            try:
                self._provide(self.load())
            except PluginError as error:
                self.broken = str(error)
            except Exception as error:  # a stranger's import may raise anything; it is reported, not lost
                self.broken = f"{type(error).__name__}: {error}"
        return self

    def _provide(self, module: Any) -> None:
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(module, name=self.name)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            known = [n for n in vars(hookspecs) if n.startswith("ckpt_")]
            raise PluginError(f"bad hook: {str(error).strip()}. Hooks are {', '.join(known)}.") from None
        analyzers = [a for group in manager.hook.ckpt_analyzers() for a in group]
        families = [f for group in manager.hook.ckpt_families() for f in group]
        faults = [f"{getattr(a, '__name__', a)}: {fault}" for a in analyzers for fault in declaration_faults(a)]
        faults += [f"{f!r} is not a named subclass of ckpt_tools.Family" for f in families if not _is_family(f)]
        if not analyzers and not families:
            faults.append("provides nothing: implement ckpt_analyzers() or ckpt_families() with @hookimpl")
        if faults:
            raise PluginError("; ".join(faults))
        self.analyzers, self.families = analyzers, families


def _is_family(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, Family) and bool(candidate.name)


class Registry:
    """All plugins of this call; lookups load what they need."""

    def __init__(self, plugins: Iterable[Plugin]) -> None:
        self.plugins = list(plugins)
        by_name: dict[str, Plugin] = {}
        for plugin in self.plugins:
            if plugin.name in by_name:
                raise PluginError(
                    f"Two plugins are named {plugin.name!r}: {by_name[plugin.name].origin} and {plugin.origin}. "
                    "Uninstall or rename one."
                )
            by_name[plugin.name] = plugin

    def analyzer(self, name: str) -> type[Analyzer]:
        """Return the analyzer class of that name; raises PluginError with the nearest name or the reason it broke."""
        return self._find(name, lambda p: p.analyzers, "analyzer")

    def family(self, name: str) -> type[Family]:
        """Return the family of that name; raises PluginError with the nearest name or the reason it broke."""
        return self._find(name, lambda p: p.families, "family")

    def _find(self, name: str, of: Callable[[Plugin], list[type[C]]], kind: str) -> type[C]:
        # The entry point of the same name first, so that asking for one analyzer imports one module.
        for plugin in self.plugins:
            if plugin.name == name:
                found = next((c for c in of(plugin.ensure()) if c.name == name), None)
                if found is not None:
                    return found
                if plugin.broken:
                    raise PluginError(f"Plugin {name!r} ({plugin.origin}) is BROKEN: {plugin.broken}")
        known = self._all(of, kind)
        if name in known:
            return known[name]
        broken = [f"{p.name} ({p.broken})" for p in self.plugins if p.broken]
        hint = f" Broken plugins: {'; '.join(broken)}." if broken else ""
        raise PluginError(f"No {kind} is named {name!r}.{nearest(name, known)}{hint} See `ckpt plugins`.")

    def analyzers(self) -> dict[str, type[Analyzer]]:
        """Return every working analyzer by name; two of one name are an error that names both."""
        return self._all(lambda p: p.analyzers, "analyzer")

    def families(self) -> dict[str, type[Family]]:
        """Return every working family by name; two of one name are an error that names both."""
        return self._all(lambda p: p.families, "family")

    def _all(self, of: Callable[[Plugin], list[type[C]]], kind: str) -> dict[str, type[C]]:
        found: dict[str, tuple[type[C], Plugin]] = {}
        for plugin in self.plugins:
            for item in of(plugin.ensure()):
                if item.name in found and found[item.name][0] is not item:
                    other = found[item.name][1]
                    raise PluginError(
                        f"Two plugins provide {kind} {item.name!r}: {other.origin} and {plugin.origin}. Rename one."
                    )
                found[item.name] = (item, plugin)
        return {name: item for name, (item, _) in found.items()}

    def provider(self, cls: type) -> Plugin:
        """Return the plugin that provides an analyzer or family class."""
        for plugin in self.plugins:
            if cls in plugin.analyzers or cls in plugin.families:
                return plugin
        raise PluginError(f"{cls!r} comes from no registered plugin.")

    def recognise(self, config: Mapping[str, Any], names: Iterable[str]) -> type[Family] | None:
        """Return the family of a checkpoint: by name (our runs), by `model_type`, else by tensor names; or None."""
        declared = config.get("ckpt_family")
        if isinstance(declared, str) and declared:  # "" in the runs of a Recorder: nobody said
            return self.family(declared)
        known, model_type = set(names), config.get("model_type")
        return self._first(lambda f: model_type in f.model_types) or self._first(
            lambda f: f.table.signature_matches(known)
        )

    def _first(self, fits: Callable[[type[Family]], bool]) -> type[Family] | None:
        """Return the first family that fits; plugins load only until one does."""
        # The trainers of this distribution import torch, and their runs say which family they are of.
        asked = [p for p in self.plugins if p.cheap or p.distribution != DISTRIBUTION]
        for plugin in sorted(asked, key=lambda p: not p.cheap):
            for family in plugin.ensure().families:
                if fits(family):
                    return family
        return None


def load_registry(files: Iterable[str | Path] = ()) -> Registry:
    """Return the registry of installed entry points plus single files: plugins in Python, role tables in TOML.

    Families of files are asked before all others whose checkpoint it is.
    """
    return Registry([*(_from_file(Path(f)) for f in files), *(_from_entry_point(e) for e in _installed())])


def _installed() -> list[EntryPoint]:
    return sorted(entry_points(group=PROJECT), key=lambda e: e.name)


def _from_entry_point(entry: EntryPoint) -> Plugin:
    dist = entry.dist
    name, version = (dist.name, dist.version) if dist else ("unknown", "")
    cheap = entry.value.startswith(f"{PROJECT}.")
    return Plugin(entry.name, f"{name} {version} ({entry.value})", version, entry.load, name, cheap)


def _from_file(path: Path) -> Plugin:
    if not path.is_file():
        raise PluginError(f"--plugin-file {path}: no such file.")
    load = _FamilyFile if path.suffix.lower() == ".toml" else _import_file
    plugin = Plugin(path.stem, str(path), "", lambda: load(path), distribution=str(path), cheap=True).ensure()
    if plugin.broken:
        raise PluginError(f"--plugin-file {path}: {plugin.broken}")
    return plugin


class _FamilyFile:
    """A role table in TOML as a plugin."""

    def __init__(self, path: Path) -> None:
        from .family_file import load_family_file

        self.family = load_family_file(path)

    @hookimpl
    def ckpt_families(self) -> list[type[Family]]:
        return [self.family]


def _import_file(path: Path) -> ModuleType:
    name = f"ckpt_plugin_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    # Registered so that pickling and get_type_hints find the module by name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
