"""The suite itself: its tests have names of their own, and the clock decides none of them."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CLOCKS = {"resource", "time", "timeit"}


def collected(hash_seed: int) -> list[str]:
    """The tests' names, as a process that begins now finds them."""
    command = (sys.executable, "-m", "pytest", "--collect-only", "-q", "--assert=plain")
    done = subprocess.run(
        (*command, "-p", "no:cacheprovider"),
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_every_process_collects_the_same_names(request: pytest.FixtureRequest) -> None:
    """xdist's processes collect each for itself, at other times, and run nothing if they differ."""
    # This process has collected long ago, and has another seed for the order of its sets.
    names = [item.nodeid for item in request.session.items]
    again = collected(hash_seed=1)
    if len(names) != len(again):  # it was asked for a part of the suite
        names = collected(hash_seed=2)
    assert names == again


def test_no_test_looks_at_the_clock() -> None:
    """How long something takes is for ``benchmarks``; what another process does is waited for."""
    looking = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and CLOCKS & {*(name.name for name in node.names), getattr(node, "module", None)}
    }
    assert looking == {"tests/waiting.py", "tests/memory.py"}
