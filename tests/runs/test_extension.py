"""A run that goes on where a complete one ended has the numbers of one that was long at once."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from condexp.errors import InputError
from condexp.runs.stop_signals import Stopped
from condexp.runs.sweep.plan import SweepPlanner
from condexp.store.hdf5.validate import validate_results
from condexp.store.reader import open_run
from condexp.store.run_folder.status import State, read_status
from tests.in_process import contents, run, validated
from tests.runs.test_resume import MLP, PROBE, RESNET, Signals, stop

BRIEF = [
    "dataset.subset.train=40",  # an epoch is four steps
    "dataset.subset.test=20",
    "trainer.batch_size=10",
    "analysis.schedule.every_steps=3",
]
SHORT, LONG = "trainer.epochs=2", "trainer.epochs=4"


def made(root: Path, *overrides: str) -> Path:
    result = run(root, *BRIEF, *overrides)
    assert result.folder is not None
    assert result.state is State.COMPLETE
    return result.folder


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("short"), *MLP, SHORT)


@pytest.mark.parametrize(
    "way",
    [
        [*MLP, "scheduler=multistep", "scheduler.milestones=[2,3]", "optimizer=adamw"],
        [*RESNET, "dataset.augment=crop_flip", "scheduler.warmup_steps=10"],
        [*MLP, *PROBE, "analysis.schedule.at_end=true", "scheduler=multistep",
         "scheduler.milestones=[2]"],
        ["model=resnet_imagenet", "model.depth=18", "model.dropout=0.3", "analysis=last_layer"],
    ],
    ids=["multistep", "augment", "probe", "dropout"],
)  # fmt: skip
def test_an_extended_run_is_the_long_one(tmp_path: Path, way: list[str]) -> None:
    short = made(tmp_path, *way, SHORT)
    before = contents(short)
    extended = made(tmp_path, *way, LONG, f"run.extend_from={short}")
    long = made(tmp_path, *way, LONG)
    assert len({short, extended, long}) == 3
    assert contents(short) == before
    assert validate_results(extended / "results.h5") == []

    mine, other = open_run(extended), open_run(long)
    assert mine.metrics.equals(other.metrics)
    weights = [torch.load(f / "checkpoint.pt", weights_only=True) for f in (extended, long)]
    for name, value in weights[1]["model"].items():
        assert torch.equal(weights[0]["model"][name], value), name
    # The snapshots of both plans: to the step the short one's, then those of the long one.
    assert {s for s in mine.steps if s < 8} == {s for s in open_run(short).steps if s < 8}
    assert {s for s in mine.steps if s > 8} == {s for s in other.steps if s > 8}
    both = sorted({*mine.steps} & {*other.steps})
    assert min(both) < 8 < max(both)
    assert mine.measures().sel(step=both).equals(other.measures().sel(step=both))
    layer = mine.layers[-1]
    spectra = [each.spectrum("input", layer).sel(step=both) for each in (mine, other)]
    np.testing.assert_array_equal(spectra[0], spectra[1])

    said = json.loads((extended / "provenance.json").read_text())["extended_from"]
    assert said["folder"] == str(short)
    assert said["step"] == 8
    assert short.name.endswith(said["config_sha256"][:8])
    assert len(said["checkpoint_sha256"]) == 64


def test_a_stopped_extension_resumes(tmp_path: Path, short: Path) -> None:
    options = [*BRIEF, *MLP, LONG, f"run.extend_from={short}"]
    whole = run(tmp_path / "whole", *options).folder
    assert whole is not None
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", *options, observer=Signals(10, signal.SIGTERM))
    observer = Signals(99)
    folder = run(tmp_path / "stopped", *options, observer=observer).folder
    assert folder is not None
    assert len(observer.losses) == 5  # steps 11 to 15
    assert contents(folder) == contents(whole)
    assert read_status(folder).best_test_error == read_status(whole).best_test_error
    assert run(tmp_path / "stopped", *options).stored
    planner = SweepPlanner()
    planner.add([], validated(*options, root=tmp_path / "planned"))
    assert planner.jobs[0].cost is not None
    assert (planner.jobs[0].cost.num_steps, planner.jobs[0].cost.steps_left) == (16, 8)
    # And it can be extended itself.
    longer = made(tmp_path, *MLP, "trainer.epochs=5", f"run.extend_from={folder}")
    assert open_run(longer).steps[: len(open_run(folder).steps)] == open_run(folder).steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["seed=2"], "another experiment: seed is 1 there and 2 here. Only trainer.epochs"),
        (["model.width=9"], "model.width is 8 there and 9 here"),
        (["optimizer.lr=0.3"], "optimizer.lr is 0.1 there and 0.3 here"),
        (["optimizer=adam"], r"optimizer.betas is .*; and \d+ more|optimizer\.\w+ is"),
        (["dataset.subset.train=50"], "dataset.subset.train is 40 there and 50 here"),
        (["analysis.kappa_p=[0.5]"], "analysis.kappa_p"),
        ([SHORT], "has 8 steps already, and this run would have 8: give a larger trainer.epochs"),
        (["trainer.steps=5"], "has 8 steps already, and this run would have 5"),
        (["run.extend_from=nowhere"], "run.extend_from=nowhere is no folder of a run"),
    ],
)
def test_what_cannot_be_extended(
    tmp_path: Path, short: Path, options: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(tmp_path, *BRIEF, *MLP, LONG, f"run.extend_from={short}", *options)
    assert not [*tmp_path.iterdir()]


def test_a_schedule_of_the_whole_length_and_a_run_that_goes_on(tmp_path: Path) -> None:
    cosine = made(tmp_path, *MLP, SHORT, "scheduler=cosine")
    with pytest.raises(InputError, match=r"learning rate of step 1 was .* depends on the length"):
        run(tmp_path, *BRIEF, *MLP, LONG, "scheduler=cosine", f"run.extend_from={cosine}")
    stopped = stop(tmp_path / "stopped", *BRIEF, *MLP, SHORT, at=3)
    with pytest.raises(InputError, match="that run is interrupted, and only a complete one"):
        run(tmp_path, *BRIEF, *MLP, LONG, f"run.extend_from={stopped}")
    assert [path.name for path in (tmp_path / "default").iterdir()] == [cosine.name]


def test_other_data_cannot_extend(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        x, y = rng.normal(size=(20, 6)), np.arange(20) % 3
        np.savez(tmp_path / f"{name}.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    own = ["dataset=arrays", "model.depth=2", "model.width=8", "trainer.batch_size=10"]
    result = run(tmp_path, *own, f"dataset.root={tmp_path / 'a.npz'}", "trainer.steps=2")
    again = [*own, f"dataset.root={tmp_path / 'b.npz'}", "trainer.steps=4"]
    with pytest.raises(InputError, match="data_sha256 is"):
        run(tmp_path, *again, f"run.extend_from={result.folder}")
