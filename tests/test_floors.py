"""The house: rooms on floors, a file imports its own floor or a lower one, no circle anywhere."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "condexp"
FLOORS = {
    "errors": 0,
    "analysis": 1,
    "models": 1,
    "data": 2,  # on models, whose user_code makes data sets of the user's own, too
    "training": 3,
    "store": 4,
    "config": 4,
    "results": 5,
    "runs": 6,
    "cli": 7,
    "integrations": 7,
}
FACE = 8  # the package's __init__ and __main__, and the plugins that Hydra finds outside of it
# Within a room, from the bottom up: whoever is named imports nobody named after it.
WITHIN = {
    "analysis": (
        "vocabulary",
        "linalg",
        "layers",
        "loss",
        "fisher",
        "curvature",
        "statistics",
        "measurement",
        "analyze",
    ),
    "training": ("choices", "distributed", "measured_step", "loop"),
    "store": ("schema", "hdf5", "run_folder", "reader", "export"),
    "config": ("by_name", "validation"),
    "results": ("tables", "claims", "figures", "report", "page", "loggers"),
    "runs": ("stop_signals", "prepare", "trainer", "workers", "attempt", "execute", "sweep"),
}
# Library: the rooms that may import it.
ONLY_IN = {
    "hydra": {"config", "runs", "cli", "face"},
    "omegaconf": {"config", "runs", "cli", "face"},
    "rich": {"results", "runs", "cli"},
    "h5py": {"store"},
    "matplotlib": {"results"},
    "jinja2": {"results"},
}
# What reading a configuration or a stored run costs: no torch.
WITHOUT_TORCH = ("condexp.config", "condexp.config.validation", "condexp.store.reader")
FILES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "hydra_plugins").glob("*.py")])


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def room(module: str) -> str:
    parts = module.split(".")
    inside = parts[0] == "condexp" and len(parts) > 1 and parts[1] != "__main__"
    return parts[1] if inside else "face"


def floor(module: str) -> int:
    where = room(module)
    return FACE if where == "face" else FLOORS[where]


@cache
def imported_names(path: Path) -> tuple[str, ...]:
    """All that a file imports, inside its functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{name.name}" for name in node.names]
    return tuple(found)


def imported_modules(module: str) -> set[str]:
    """The modules of this project that a module imports."""
    found = set()
    for name in imported_names(MODULES[module]):
        owner = name if name in MODULES else name.rpartition(".")[0]
        if owner in MODULES and owner != module:
            found.add(owner)
    return found


def circles(graph: Mapping[str, set[str]]) -> Iterator[str]:
    try:
        TopologicalSorter(graph).prepare()
    except ValueError as circle:
        yield " → ".join(circle.args[1])


def test_every_file_is_in_a_room() -> None:
    beside = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py"}
    assert beside == {"__init__.py", "__main__.py", "errors.py"}
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"errors"}
    assert rooms == set(FLOORS)
    assert {path.parent for path in FILES if path.is_relative_to(PACKAGE)} == {
        path.parent for path in PACKAGE.rglob("__init__.py")
    }


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_its_own_floor_or_lower(module: str) -> None:
    here = room(module)
    for imported in imported_modules(module):
        assert floor(imported) <= floor(module), f"{module} imports {imported}"
        if floor(imported) == floor(module):
            assert room(imported) == here, f"{module} imports {imported}, a room on its floor"
    for name in imported_names(MODULES[module]):
        library = name.split(".")[0]
        assert here in ONLY_IN.get(library, {here}), f"{library} does not belong in {here}"
        assert not (here == "results" and name.startswith("torch")), name
        opens = name.startswith("condexp.store.hdf5.open")
        assert not (opens and here != "store"), "store alone indexes an open HDF5 file"


def test_no_import_goes_in_a_circle() -> None:
    assert not list(circles({module: imported_modules(module) for module in MODULES}))
    packages: dict[str, set[str]] = {}
    for module in MODULES:
        for imported in imported_modules(module):
            mine, theirs = module.split("."), imported.split(".")
            shared = 0
            while shared < min(len(mine), len(theirs)) and mine[shared] == theirs[shared]:
                shared += 1
            if shared < min(len(mine), len(theirs)):  # siblings, of whatever depth
                packages.setdefault(".".join(mine[: shared + 1]), set()).add(
                    ".".join(theirs[: shared + 1])
                )
    assert not list(circles(packages))


@pytest.mark.parametrize("where", WITHIN)
def test_data_flow_one_way_inside_a_room(where: str) -> None:
    order = {f"condexp.{where}.{name}": level for level, name in enumerate(WITHIN[where])}

    def level(module: str) -> int | None:
        return order.get(".".join(module.split(".")[:3]))

    assert {".".join(module.split(".")[:3]) for module in MODULES} >= set(order)
    for module in MODULES:
        mine = level(module)
        for imported in imported_modules(module):
            theirs = level(imported)
            if mine is not None and theirs is not None:
                assert theirs <= mine, f"{module} imports {imported}"


def test_reading_needs_no_torch() -> None:
    reading = [module for module in MODULES if room(module) == "results"]
    code = f"""
import importlib, sys
for name in {[*WITHOUT_TORCH, *reading]}:
    importlib.import_module(name)
    assert "torch" not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_stay_small(module: str) -> None:
    text = MODULES[module].read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert length <= 60, f"{node.name} has {length} lines"


@pytest.mark.parametrize("module", MODULES)
def test_only_the_console_prints(module: str) -> None:
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
        assert called != "print" or module == "condexp.results.console"


def test_no_drawer_for_odds_and_ends() -> None:
    assert not [path for path in FILES if path.stem in {"utils", "helpers", "common", "misc"}]
