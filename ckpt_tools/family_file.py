"""Families from role tables in TOML: those shipped with the package, and a user's file."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

from .errors import PluginError
from .family import Family
from .hf import HFFamily
from .hookspecs import hookimpl
from .roles import shipped_tables, table_from
from .roles.toml import parsed


def load_family_file(path: str | Path) -> type[Family]:
    """Return the family of a TOML file: a role table with `model_types`, `loads`, and `name` (else the file's stem).

    Raises PluginError naming the file, and the key or line, when it cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PluginError(f"Family file {path} cannot be read: {error}") from None
    return family_from_toml(text, path.stem, str(path))


def family_from_toml(text: str, name: str, where: str) -> type[Family]:
    """Return a family from the text of a role table in TOML; `where` names it in errors.

    A table without `model_types` gives roles only; with them, the module is built by the class `loads` of transformers.
    """
    try:
        data = {**parsed(text)}
    except tomllib.TOMLDecodeError as error:
        raise PluginError(f"{where}: not TOML: {error}") from None
    model_types, loads = data.pop("model_types", []), data.pop("loads", HFFamily.loads)
    name = data.pop("name", name)
    if not (isinstance(model_types, list) and all(isinstance(t, str) for t in model_types)):
        raise PluginError(f"{where}: model_types must be a list of texts. Got {model_types!r} instead.")
    if not (isinstance(loads, str) and loads.startswith("AutoModel")):
        raise PluginError(f"{where}: loads must be an AutoModel class of transformers. Got {loads!r} instead.")
    if not (isinstance(name, str) and name):
        raise PluginError(f"{where}: name must be a text. Got {name!r} instead.")
    body = {
        "__doc__": _first_sentence(text),
        "__module__": __name__,
        "name": name,
        "table": table_from(data, where),
        "model_types": tuple(model_types),
    }
    if model_types:
        return type(_class_name(name), (HFFamily,), {**body, "loads": loads})
    return type(_class_name(name), (Family,), body)


def _first_sentence(text: str) -> str:
    """Return the first sentence of the comment that a file begins with."""
    comment = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return re.split(r"(?<=\.)\s", " ".join(line.lstrip("# ") for line in comment))[0]


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in re.split(r"\W|_", name))


@hookimpl
def ckpt_families() -> list[type[Family]]:
    """Return one family per role table shipped with the package."""
    return [family_from_toml(text, name, f"{name}.toml") for name, text in shipped_tables().items()]
