"""The example notebook runs over the grid that it names, and keeps the outputs it has there."""

import re
import shlex
from itertools import product
from pathlib import Path

import nbclient
import nbformat
import pytest

from condexp.store.run_folder.status import State
from tests.in_process import run
from tests.waiting import GUARD_SECONDS

NOTEBOOK = Path(__file__).parent.parent / "docs" / "example.ipynb"
NUMBER = re.compile(r"(?<![\w.])-?\d+\.?\d*(?:e[-+]?\d+)?(?![\w])")


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    read: nbformat.NotebookNode = nbformat.read(NOTEBOOK, as_version=4)
    return read


@pytest.fixture(scope="module")
def grid(notebook: nbformat.NotebookNode, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of the command in the notebook's first cell."""
    (command,) = re.findall(r"^ +condexp run -m (.*)$", notebook.cells[0]["source"], re.MULTILINE)
    keys, choices = zip(*(word.split("=", 1) for word in shlex.split(command)), strict=True)
    root = tmp_path_factory.mktemp("outputs")
    for values in product(*(choice.split(",") for choice in choices)):
        overrides = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
        assert run(root, *overrides).state is State.COMPLETE
    return root


def test_the_example_is_kept_with_the_outputs_it_has(
    notebook: nbformat.NotebookNode, grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [_shown(cell) for cell in notebook.cells]
    monkeypatch.setenv("CONDEXP_GRID", str(grid))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # it warns where this is not said
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    nbclient.NotebookClient(
        notebook, timeout=GUARD_SECONDS, startup_timeout=GUARD_SECONDS, kernel_name="python3"
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output["output_type"] in {"error", "stream"}]
    assert sum("image/png" in output["data"] for output in outputs) == 2
    for cell, before in zip(notebook.cells, kept, strict=True):
        words, numbers = _shown(cell)
        assert words == before[0]
        # Another processor rounds otherwise, and an error is a whole number of 360 images.
        assert numbers == pytest.approx(before[1], rel=0.5, abs=5.0)


def _shown(cell: nbformat.NotebookNode) -> tuple[list[str], list[float]]:
    """The words and the numbers of a cell's outputs as text."""
    text = "\n".join(output["data"]["text/plain"] for output in cell.get("outputs", ()))
    if "xarray.Dataset" in text:  # its numbers are cut as there is room
        return re.findall(r"^ {4}\w+", text, re.MULTILINE), []
    return NUMBER.sub("#", text).split(), [float(number) for number in NUMBER.findall(text)]
