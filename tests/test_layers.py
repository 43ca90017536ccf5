"""The architecture holds: imports point downward, and light commands import nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ckpt_tools

pytestmark = pytest.mark.slow

CORE = Path(ckpt_tools.__file__).parent
LAYERS = [
    ["errors", "losses", "streams", "arrays", "blocked"],
    ["options", "hookspecs", "heads", "squares"],
    ["checkpoint"],
    ["roles", "results", "text"],
    ["spectra", "analyzer", "family", "run"],
    ["hf", "data", "callbacks"],
    ["family_file"],
    ["registry", "model"],
    ["layouts", "weights", "host"],
    ["view"],
    ["verify"],
    ["engine"],
    ["testing", "report", "figures", "export", "compare"],
    ["study"],
    ["cli"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FOLDERS = ("ckpt_plugins", "ckpt_trainers")


def imports(path: Path, package: str) -> set[str]:
    """Absolute module names imported at run time (not under TYPE_CHECKING) by a file."""
    found = set()
    tree = ast.parse(path.read_text("utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found |= {stem} if node.module else {f"{stem}.{alias.name}" for alias in node.names}
    return found


def core_files() -> list[tuple[str, Path, str]]:
    files = []
    for path in sorted(CORE.rglob("*.py")):
        relative = path.relative_to(CORE)
        package = ".".join(["ckpt_tools", *relative.parts[:-1]])
        unit = relative.parts[0].removesuffix(".py")
        if unit != "__init__":
            files.append((unit, path, package))
    return files


@pytest.mark.parametrize(("unit", "path", "package"), core_files(), ids=lambda v: getattr(v, "name", None))
def test_core_files_import_only_lower_layers(unit: str, path: Path, package: str) -> None:
    assert unit in LEVEL, f"{path} belongs to no layer: add {unit!r} to LAYERS and to docs/design.md"
    for module in imports(path, package):
        head, _, rest = module.partition(".")
        assert head not in FOLDERS, f"{path} imports {module}: the core knows neither plugins nor trainers"
        target = rest.partition(".")[0]
        if head == "ckpt_tools" and target and target != unit and target != "__version__":
            assert LEVEL[target] < LEVEL[unit], f"{path} ({unit}) imports {module} from the same or a higher layer"


@pytest.mark.parametrize("name", FOLDERS)
def test_plugins_and_trainers_use_only_public_names(name: str) -> None:
    module = __import__(name)
    folder = Path(next(iter(module.__path__)))
    public = set(ckpt_tools.__all__)
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("ckpt_"):
                assert node.module == "ckpt_tools", f"{path} imports from {node.module}; only `ckpt_tools` is public"
                assert {a.name for a in node.names} <= public, f"{path}: not public: {node.names}"
            if isinstance(node, ast.Import):
                assert not any(a.name.startswith("ckpt_") for a in node.names), f"{path}: use from ckpt_tools import"


HEAVY = ("torch", "sklearn", "transformers", "scipy", "h5py", "xarray", "matplotlib", "rich", "numpy", "dask")


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import ckpt_tools", HEAVY),
        (
            "import sys; sys.argv = ['ckpt', '--help']; from ckpt_tools.cli.main import cli\n"
            "try: cli()\nexcept SystemExit: pass",
            HEAVY,
        ),
        (
            "from ckpt_tools.registry import load_registry; load_registry().analyzer('rank')",
            ("torch", "sklearn", "transformers", "scipy", "h5py", "matplotlib"),
        ),
        ("import ckpt_tools.engine", ("torch", "sklearn", "transformers", "xarray", "matplotlib")),
    ],
    ids=["import", "help", "rank", "engine"],
)
def test_light_things_stay_light(code: str, forbidden: tuple[str, ...]) -> None:
    check = f"{code}\nimport sys; print('LOADED', *sorted({set(forbidden)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "LOADED"
