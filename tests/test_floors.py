"""The floors: a file imports its own or a lower one; libraries stay where they belong."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "errors": 0,
    "linalg": 0,
    "analysis": 1,
    "models": 2,
    "data": 2,
    "training": 3,
    "store": 4,
    "results": 5,
}
TOP = 6  # cli, assemble, config, console, … and the package's own face
# Library: where it may be imported.
ONLY_IN = {
    "hydra": {"top"},
    "omegaconf": {"top"},
    "rich": {"top", "results"},
    "h5py": {"store"},
    "matplotlib": {"results"},
}
FILES = sorted([*(ROOT / "condexp").rglob("*.py"), *(ROOT / "hydra_plugins").glob("*.py")])


def place(module: str) -> str:
    parts = module.split(".")
    name = parts[1] if parts[0] == "condexp" and len(parts) > 1 else "top"
    return name if name in FLOORS else "top"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_file_imports_its_own_floor_or_lower(path: Path) -> None:
    here = place(module_name(path))
    for imported in imports(path):
        if imported == "condexp" or imported.startswith(("condexp.", "hydra_plugins.")):
            there = place(imported)
            assert FLOORS.get(there, TOP) <= FLOORS.get(here, TOP), f"{here} imports {imported}"
        library = imported.split(".")[0]
        assert here in ONLY_IN.get(library, {here}), f"{library} does not belong in {here}"
        assert not (here == "results" and imported.startswith("torch.nn")), imported
        assert not (here == "models" and imported.startswith("condexp.analysis")), imported
        assert not (here == "data" and imported.startswith("condexp.models")), imported


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 250
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert length <= 60, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_only_the_console_prints(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
        assert called != "print" or path.name == "console.py"


def test_no_drawer_for_odds_and_ends() -> None:
    assert not [path for path in FILES if path.stem in {"utils", "helpers", "common", "misc"}]
