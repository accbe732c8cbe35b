"""The example notebook runs, from its first cell to its last, over a grid as it says."""

from pathlib import Path

import nbclient
import nbformat
import pytest

from condexp.store.run_folder.status import State
from tests.in_process import run
from tests.waiting import GUARD_SECONDS

NOTEBOOK = Path(__file__).parent.parent / "docs" / "example.ipynb"
TINY = ["dataset.subset.train=40", "dataset.subset.test=20", "trainer.batch_size=10"]
RESNET = ["model=resnet", "model.depth=8", "analysis=last_layer"]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("outputs")
    for last_bn in ("false", "true"):
        changes = [*TINY, *RESNET, "trainer.steps=4", f"model.last_bn={last_bn}"]
        assert run(root, *changes).state is State.COMPLETE
    return root


def test_the_example_runs_over_a_grid(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDEXP_GRID", str(grid))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # it warns where this is not said
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=GUARD_SECONDS, startup_timeout=GUARD_SECONDS, kernel_name="python3"
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output["output_type"] in {"error", "stream"}]
    tables = [output["data"] for output in outputs if "text/html" in output.get("data", {})]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert "last_linear.input_kappa_0.5" in tables[0]["text/plain"]
    assert "xarray.Dataset" in tables[-1]["text/plain"]


def test_the_example_is_kept_without_outputs() -> None:
    # They would hold one machine's numbers, and change with every run.
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
