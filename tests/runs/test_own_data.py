"""Other data are another run, and a stored result is held against the data before it is shown."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from condexp.errors import InputError
from condexp.runs.sweep.plan import JobAction, SweepPlanner
from condexp.store.run_folder.identity import run_folder
from tests import in_process
from tests.data.archives import write_arrays

BRIEF = ["model=mlp", "model.depth=2", "model.width=4", "trainer.steps=2", "trainer.batch_size=6",
         "analysis.schedule.log_spaced=null", "dataset.subset.train=null"]  # fmt: skip


@pytest.fixture
def npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("condexp.runs.build._loaded", {})
    write_arrays(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as stored:
        np.savez(tmp_path / "b.npz", **{name: stored[name][::-1] for name in stored.files})
    return tmp_path / "a.npz"


def test_other_arrays_are_another_run(npz: Path) -> None:
    given = ["dataset=arrays", *BRIEF]
    first = in_process.run(npz.parent, *given, f"dataset.root={npz}")
    other = in_process.run(npz.parent, *given, f"dataset.root={npz.with_name('b.npz')}")
    assert first.folder is not None
    assert first.folder != other.folder
    npz.rename(moved := npz.with_name("moved.npz"))
    again = in_process.run(npz.parent, *given, f"dataset.root={moved}")
    assert (again.folder, again.stored) == (first.folder, True)
    config = yaml.safe_load((first.folder / "config.yaml").read_text())
    told = json.loads((first.folder / "provenance.json").read_text())["data_sha256"]
    assert config["data_sha256"] == told
    assert run_folder(config) == first.folder

    planner = SweepPlanner()
    for root in (moved, npz.with_name("b.npz"), moved):
        planned = in_process.validated(*given, f"dataset.root={root}", root=npz.parent)
        planner.add([], planned)
    assert [job.todo for job in planner.jobs] == [
        JobAction.SHOW,
        JobAction.SHOW,
        JobAction.REPEATED,
    ]
    assert [job.folder for job in planner.jobs] == [first.folder, other.folder, first.folder]


@pytest.mark.usefixtures("npz")
def test_a_stored_result_of_other_data_is_not_shown(tmp_path: Path) -> None:
    result = in_process.run(tmp_path, *BRIEF)
    assert result.folder is not None
    path = result.folder / "provenance.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"data_sha256": "0" * 64}))
    message = r"holds the result of other data than dataset.root has now \(SHA-256 00000000…"
    with pytest.raises(InputError, match=message):
        in_process.run(tmp_path, *BRIEF)
    with pytest.raises(InputError, match=message):
        SweepPlanner().add([], in_process.validated(*BRIEF, root=tmp_path))
    anew = in_process.run(tmp_path, *BRIEF, "run.on_existing=restart")
    assert not anew.stored
    assert in_process.run(tmp_path, *BRIEF).stored
