"""Wide layers in an analysis and in a run: estimated, marked everywhere, and right."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import condexp
from condexp.analysis.linalg import ratios
from condexp.analysis.vocabulary import Precision, SpectrumStatus
from condexp.cli.layers import layers_report
from condexp.results.collect import collect
from condexp.results.figures.spectrum import spectrum
from condexp.results.figures.style import Size
from condexp.results.layer_measures import LayerMeasures
from condexp.results.run_view import layer_table
from condexp.results.tables.cells import lay_out
from condexp.results.tables.numbers import Mark
from condexp.results.tables.table import make_table
from condexp.runs.prepare import prepare
from condexp.store.hdf5.validate import validate_results
from tests.in_process import validated
from tests.results.stored import text_of

MATRICES = ("input", "grad_output", "kfac", "fisher", "weight", "weight_grad")
LOSS = nn.CrossEntropyLoss()
FRACTIONS = (0.1, 0.5, 0.9)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratios, "WIDE", 24)


def batch(num_samples: int = 70) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(num_samples, 40, generator=generator, dtype=torch.float64)
    inputs *= torch.linspace(1, 0.05, 40, dtype=torch.float64)
    return inputs, torch.randint(4, (num_samples,), generator=generator)


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 4)).double()


@pytest.mark.parametrize("fisher_type", ["empirical", "exact"])
@pytest.mark.parametrize("precision", list(Precision))
def test_intervals_hold_the_numbers_of_a_narrower_limit(
    monkeypatch: pytest.MonkeyPatch, fisher_type: str, precision: Precision
) -> None:
    given: Any = {"matrices": MATRICES, "fisher_type": fisher_type, "precision": precision}
    solved: Any = condexp.analyze(net(), LOSS, *batch(), **{**given, "precision": "float64"})
    monkeypatch.setattr(ratios, "WIDE", 24)
    found: Any = condexp.analyze(net(), LOSS, *batch(), **given)
    pairs = [(solved.fisher, found.fisher)]
    pairs += [
        (getattr(solved[name], matrix), getattr(found[name], matrix))
        for name in solved
        for matrix in MATRICES
    ]
    statuses = [one.status for _, one in pairs]
    assert statuses.count(SpectrumStatus.ESTIMATED) == 10  # all but 4×4 factors and weights
    for truth, one in pairs:
        # Products of float32 err by 1e-7 of λ_1.
        assert one.lambda_max == pytest.approx(truth.lambda_max, rel=1e-6)
        assert one.trace == pytest.approx(truth.trace, rel=1e-6)
        for p in FRACTIONS:
            low, high = one.kappa_interval(p)
            least, most = truth.kappa_interval(p)
            assert low <= most
            assert least <= high


@pytest.mark.usefixtures("wide")
def test_the_network_of_few_weights_is_solved_for() -> None:
    model = nn.Linear(6, 4).double()
    inputs = torch.randn(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(30) % 4
    found: Any = condexp.analyze(model, LOSS, inputs, targets, matrices=("fisher",))
    assert found.fisher.status is SpectrumStatus.OK
    # A single layer is the network.
    torch.testing.assert_close(
        found.fisher.eigenvalues[:18], found["Linear"].fisher.eigenvalues[:18]
    )


def test_a_convolution_with_groups_is_estimated_block_by_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2, padding=1), nn.Flatten(), nn.Linear(128, 3))
    inputs, targets = torch.randn(12, 8, 4, 4), torch.arange(12) % 3
    given: Any = {"matrices": ("input", "kfac"), "layers": ["0"], "precision": "float64"}
    solved: Any = condexp.analyze(model, LOSS, inputs, targets, **given)["0"]
    monkeypatch.setattr(ratios, "WIDE", 24)
    found: Any = condexp.analyze(model, LOSS, inputs, targets, **given)["0"]
    for truth, one in ((solved.input, found.input), (solved.kfac, found.kfac)):
        assert one.status is SpectrumStatus.ESTIMATED
        assert one.trace == pytest.approx(truth.trace, rel=1e-9)
        for p in FRACTIONS:
            assert one.kappa_interval(p)[0] <= truth.kappa_interval(p)[1]
            assert truth.kappa_interval(p)[0] <= one.kappa_interval(p)[1]


@pytest.mark.usefixtures("wide")
def test_a_saved_snapshot_keeps_its_intervals(tmp_path: Path) -> None:
    found: Any = condexp.analyze(net(), LOSS, *batch())
    found.save(tmp_path / "snapshot.pt")
    read: Any = condexp.Snapshot.load(tmp_path / "snapshot.pt")
    for p in FRACTIONS:
        assert read["0"].kfac.kappa_interval(p) == found["0"].kfac.kappa_interval(p)
        assert read["0"].input.kappa(p) == found["0"].input.kappa(p)


@pytest.mark.usefixtures("wide")
def test_a_run_marks_what_is_estimated(tmp_path: Path) -> None:
    for seed in (0, 1):
        model = net()
        with (
            condexp.record_run(
                tmp_path / f"run{seed}",
                model,
                num_steps=1,
                schedule=condexp.Schedule(every_steps=1),
                config={"seed": seed},
            ) as run,
            run.step(0),
        ):
            LOSS(model(batch()[0]), batch()[1]).backward()
    stored = condexp.open_run(tmp_path / "run0")
    assert validate_results(stored.file) == []
    measures = stored.measures()
    assert measures["input_status"].to_numpy().tolist() == [["estimated", "estimated"]]
    assert measures["grad_output_status"].to_numpy().tolist() == [["estimated", "ok"]]
    assert np.isnan(measures["input_rank"]).all()
    assert (measures["input_kappa_low"] <= measures["input_kappa"]).all()
    # The largest eigenvalues are stored, the others are not known.
    eigenvalues = stored.spectrum("input", "0").to_numpy()[0]
    assert eigenvalues[0] == measures["input_lambda_max"].to_numpy()[0, 0]
    assert np.isnan(eigenvalues[-1])

    data = LayerMeasures.read(stored)
    assert data.marks("input_kappa_0.5").tolist() == [[Mark.ESTIMATED, Mark.ESTIMATED]]
    assert data.marks("input_lambda_max").tolist() == [[Mark.NONE, Mark.NONE]]
    assert data.marks("input_rank").tolist() == [[Mark.MISSING, Mark.MISSING]]
    shown = text_of(layer_table(stored), width=100)
    assert "≈ " in shown
    assert "estimated, as the matrix is wide" in shown
    # Other fractions come from eigenvalues, of which too few are known.
    assert np.isnan(stored.measures(p=(0.3,))["input_kappa"]).all()

    frame = collect([tmp_path], ["0.input_kappa_0.5", "2.grad_output_kappa_0.5", "seed"])
    table = make_table(frame, ["seed"], [], "0.input_kappa_0.5")
    (laid_out,) = lay_out(table)
    assert str(laid_out.body[0][1][0]).startswith("≈ ")
    assert any("too wide to be solved for" in note for note in laid_out.notes)
    (laid_out,) = lay_out(make_table(frame, ["seed"], [], "2.grad_output_kappa_0.5"))
    assert "≈" not in str(laid_out.body[0][1][0])


@pytest.mark.usefixtures("wide")
def test_a_scree_plot_does_not_take_the_unknown_for_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setitem(spectrum.__globals__, "save", lambda figure, *_: drawn.append(figure))
    model, schedule = net(), condexp.Schedule(every_steps=1)
    folder = tmp_path / "run"
    with condexp.record_run(folder, model, num_steps=1, schedule=schedule) as run, run.step(0):
        LOSS(model(batch()[0]), batch()[1]).backward()
    stored = condexp.open_run(tmp_path / "run")
    spectrum([stored], tmp_path, size=Size.TEXT, layer="0")
    legend = drawn[0].axes[0].get_legend()
    assert legend is not None
    unknown = int(np.isnan(stored.spectrum("input", "0")).sum())
    assert legend.get_texts()[0].get_text() == f"step 0, {unknown} of 40 are not known"


@pytest.mark.usefixtures("wide")
def test_layers_says_beforehand_what_will_be_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepared = prepare(validated("model.depth=2", "model.width=32"))
    text = "".join(text_of(part, width=100) for part in layers_report(prepared))
    (line,) = [line for line in text.splitlines() if line.startswith("layers.0.linear ")]
    assert line.split().count("estimated") == 2
    assert "estimated: too wide to be solved for" in text
