"""What the wheel must hold: a subpackage missing from the list works editable and is absent for everybody else."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"]


def packages() -> dict[str, Path]:
    found = {}
    for name, folder in FOLDERS.items():
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.parent.relative_to(ROOT / folder).parts
            found[".".join([name, *parts])] = file.parent
    return found


def test_every_folder_with_code_is_a_listed_package() -> None:
    assert sorted(packages()) == sorted(PROJECT["tool"]["setuptools"]["packages"])


def test_every_data_file_is_listed() -> None:
    listed = PROJECT["tool"]["setuptools"]["package-data"]
    for name, folder in packages().items():
        for file in folder.glob("*"):
            if file.is_file() and file.suffix not in (".py", ".pyc"):
                assert any(file.match(pattern) for pattern in listed.get(name, [])), f"{file} is not in package-data"


def test_every_entry_point_names_a_module_that_is_there() -> None:
    for name, module in PROJECT["project"]["entry-points"]["ckpt_tools"].items():
        head, _, rest = module.partition(".")
        assert (ROOT / FOLDERS[head] / (rest.replace(".", "/") + ".py")).is_file(), f"{name} = {module}"
