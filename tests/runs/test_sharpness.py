"""Sharpness of a run: in its file, between its snapshots, read back, drawn, stopped and resumed."""

import signal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

import condexp
from condexp.cli.main import main
from condexp.errors import InputError
from condexp.results.sharpness import Edge, sharpness_table
from condexp.runs.stop_signals import Stopped
from condexp.store.hdf5.validate import validate_results
from tests.in_process import contents, run
from tests.observer import Silent
from tests.runs.test_resume import Signals

TINY = [
    "trainer.steps=8",
    "dataset.subset.train=40",
    "dataset.subset.test=20",
    "trainer.batch_size=10",
    "model.depth=3",
    "model.width=8",
    "trainer.checkpoint.every_steps=3",
]
NONE, SHARP = "analysis=none", "analysis.sharpness.every_steps=2"
HESSIAN = ["analysis.matrices=[hessian]", "analysis.layer_blocks=false", "analysis.top_k=1"]
EVERY = ["analysis.schedule.every_steps=2", "analysis.schedule.log_spaced=null"]
PROBE = ["analysis.source=probe", "analysis.probe.size=20", "analysis.probe.batch_size=10"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = run(tmp_path_factory.mktemp("runs"), *TINY, NONE, SHARP).folder
    assert folder is not None
    return folder


@pytest.mark.parametrize("way", [[], PROBE, [*PROBE, "analysis.probe.mode=eval"]])
def test_it_is_that_of_the_hessian_of_the_same_step(tmp_path: Path, way: list[str]) -> None:
    folder = run(tmp_path, *TINY, *way, *HESSIAN, *EVERY, SHARP).folder
    assert folder is not None
    found = condexp.open_run(folder)
    network, metrics = found.network(), found.metrics
    steps = [0, 2, 4, 6]
    largest = network["hessian_lambda_max"].sel(step=steps).to_numpy()
    errors = network["hessian_lambda_max_error"].sel(step=steps).to_numpy()
    measured = metrics.loc[steps]
    off = np.abs(measured["sharpness"].to_numpy() - largest)
    assert (off <= measured["sharpness_error"].to_numpy() + errors).all()
    assert metrics["sharpness"].dropna().index.tolist() == steps


def test_the_file(stored: Path, tmp_path: Path) -> None:
    assert validate_results(stored / "results.h5") == []
    with h5py.File(stored / "results.h5") as file:
        assert file.attrs["condexp_format_version"] == 4
        assert "network" not in file
        assert file["train/sharpness_error"].dims[0].keys() == ["train_step"]
        assert file["train/sharpness"].attrs["long_name"].startswith("largest eigenvalue")
    plain = run(tmp_path, *TINY, NONE).folder
    assert plain is not None
    assert "sharpness" not in condexp.open_run(plain).metrics
    names = [path.name.rpartition("-")[2] for path in (stored, plain)]
    assert names[0] != names[1]  # what is measured decides the folder


def test_commands(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (
        ["show", str(stored)],
        ["export", str(stored / "results.h5")],
        ["figure", "sharpness", str(stored), "--output", str(tmp_path)],
        ["figure", "sharpness", str(stored), "--output", str(tmp_path), "--size", "column"],
        ["figure", "overview", str(stored), "--output", str(tmp_path)],
        ["table", str(stored), "--rows", "model.name", "--value", "sharpness"],
    ):
        assert main(verb) == 0, verb
    said = capsys.readouterr().out
    metrics = condexp.open_run(stored).metrics["sharpness"].dropna()
    assert f"sharpness at step 6: λ_max = {metrics[6]:.4g} ± " in said
    assert "of the edge of stability 2/lr = 20" in said
    assert said.count(",sharpness,") == said.count(",sharpness_error,") == 4
    table = pd.read_csv(tmp_path / "sharpness.csv")
    assert table["edge"].tolist() == [20.0] * 4
    np.testing.assert_array_equal(table["lambda_max"], metrics)
    panels = pd.read_csv(tmp_path / "overview.csv")["panel"]
    assert (panels == "sharpness").sum() == 4
    assert condexp.collect(stored)["sharpness"].item() == metrics[6]


def test_a_panel_for_what_differs_in_more_than_the_rate(tmp_path: Path) -> None:
    for norm in ("none", "batch"):
        for rate in ("0.05", "0.1"):
            way = [f"model.norm={norm}", f"optimizer.lr={rate}", "trainer.steps=3"]
            run(tmp_path, *TINY, NONE, SHARP, *way)
    run(tmp_path, *TINY, NONE, "trainer.steps=3")  # has none: left out
    assert main(["figure", "sharpness", str(tmp_path), "--output", str(tmp_path / "drawn")]) == 0
    table = pd.read_csv(tmp_path / "drawn" / "sharpness.csv")
    assert set(table["panel"]) == {"model.norm=none", "model.norm=batch"}
    assert table.groupby("lr")["edge"].first().to_dict() == {0.05: 40.0, 0.1: 20.0}


@pytest.mark.parametrize(
    ("optimizer", "edge"),
    [
        ({"name": "sgd"}, Edge(2.0, 0.0)),
        ({"name": "sgd", "momentum": 0.9, "weight_decay": 0.01}, Edge(3.8, 0.01)),
        ({"name": "sgd", "momentum": 0.5, "nesterov": True}, Edge(1.5, 0.0)),
        ({"name": "adam"}, None),
        ({}, None),
    ],
)
def test_the_edge_is_that_of_the_optimizer(optimizer: dict[str, object], edge: Edge | None) -> None:
    assert Edge.of({"optimizer": optimizer}) == edge


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.3, 0.9])
def test_the_edge_is_where_torch_diverges(momentum: float, nesterov: bool) -> None:
    """λ/2·x² with torch's own SGD, a hundredth below the edge and above it."""
    import torch

    config: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "weight_decay": 0.5}
    edge = Edge.of({"optimizer": {"name": "sgd", **config}})
    assert edge is not None
    (at,) = edge.at(np.array([0.1]))
    ends = []
    for curvature in (0.99 * at, 1.01 * at):
        x = torch.ones(1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([x], lr=0.1, **config)
        for _ in range(4000):
            optimizer.zero_grad()
            (curvature / 2 * x.square()).sum().backward()
            optimizer.step()
        ends.append(abs(x.item()))
    assert ends[0] < 1e-3
    assert not ends[1] < 1e3


def test_adam_has_no_edge(tmp_path: Path) -> None:
    folder = run(tmp_path, *TINY, NONE, SHARP, "optimizer=adam", "optimizer.lr=0.001").folder
    assert folder is not None
    assert sharpness_table(condexp.open_run(folder))["edge"].isna().all()


class InAProduct(Silent):
    """Asks to stop in the n-th product with a vector."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def measuring(self, what: str, _done: int, _num: int, /) -> None:
        self.left -= what == "product with a vector"
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)


WAYS = {
    "alone": [NONE],
    "hessian": [*HESSIAN, *EVERY, "model.width=16"],
    "probe": [*PROBE, *EVERY, "analysis.matrices=[input,ggn]", "analysis.layer_blocks=false"],
    "float64": [NONE, "analysis.network_precision=float64", "model.norm=none"],
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_stopped_run_ends_with_the_bytes_of_one_that_was_not(
    tmp_path: Path, way: list[str]
) -> None:
    undisturbed = run(tmp_path / "whole", *TINY, *way, SHARP).folder
    assert undisturbed is not None
    for observer in (InAProduct(2), Signals(2, signal.SIGTERM), InAProduct(5)):
        with pytest.raises(Stopped):
            run(tmp_path / "stopped", *TINY, *way, SHARP, observer=observer)
    result = run(tmp_path / "stopped", *TINY, *way, SHARP)
    assert result.folder is not None
    assert contents(result.folder) == contents(undisturbed)


def test_a_longer_run_goes_on_with_its_rows(tmp_path: Path) -> None:
    short = run(tmp_path, *TINY, NONE, SHARP).folder
    assert short is not None
    longer = [*TINY, NONE, SHARP, "trainer.steps=12"]
    extended = run(tmp_path, *longer, f"run.extend_from={short}").folder
    whole = run(tmp_path / "whole", *longer).folder
    assert extended is not None
    assert whole is not None
    both = [condexp.open_run(folder).metrics for folder in (extended, whole)]
    pd.testing.assert_frame_equal(both[0][["sharpness"]], both[1][["sharpness"]])


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (["analysis.sharpness.every_steps=0"], r"analysis\.sharpness\.every_steps"),
        (["analysis.sharpness.every_steps=often"], r"analysis\.sharpness\.every_steps"),
        ([SHARP, "trainer.precision=bf16"], r"analysis\.sharpness of passes in bfloat16"),
        ([SHARP, "trainer.num_processes=2"], r"analysis\.sharpness are measured by one process"),
        ([SHARP, *PROBE, "analysis.probe.size=1000"], r"probe\.size is 1000"),
    ],
)
def test_refusals(tmp_path: Path, way: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(tmp_path, *TINY, NONE, *way)
