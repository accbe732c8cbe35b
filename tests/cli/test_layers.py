"""What ``condexp layers`` prints, and the size of the file it foretells."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from condexp.analysis.layers.select import trace_layers
from condexp.analysis.options import AnalysisOptions
from condexp.cli.layers import layers_report
from condexp.runs.prepare import prepare
from condexp.store.hdf5.create import create_results
from condexp.store.schema.layout import FileSpec, file_size
from tests.analysis.test_costs import MATRICES, model
from tests.in_process import validated
from tests.results.stored import text_of

NUM_SAMPLES = 4
Report = Callable[..., str]


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    """The report as a terminal of 100 columns shows it."""
    monkeypatch.chdir(tmp_path)

    def report(*overrides: str) -> str:
        prepared = prepare(validated(*overrides))
        return "".join(text_of(part, width=100) for part in layers_report(prepared))

    return report


def columns(text: str, layer: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [layer]]
    return line.replace("p ≤ ", "p≤").split()[1:]


def test_a_wide_network_is_measured_by_its_rows(report: Report) -> None:
    text = report("model.depth=3", "model.width=512")
    # 128 rows: 64 inputs, 512 units, 10 outputs. 8·(64² + 128²), 8·(128² + 128²), 8·(128² + 10²).
    assert columns(text, "layers.0.linear") == [
        "Linear", "64", "512", "1", "128", "p≤0.25", "primal", "dual", "164", "kB",
    ]  # fmt: skip
    assert columns(text, "layers.1.linear")[5:] == ["p≤0.25", "dual", "dual", "262", "kB"]
    assert columns(text, "fc")[5:] == ["p≤0.25", "dual", "primal", "132", "kB"]
    assert "dual: the spectrum comes from the Gram matrix" in text
    assert "3 of 3 layers have fewer rows than p·d" in text
    narrow = report("model.depth=3", "model.width=16")
    assert "dual" not in narrow
    assert "fewer rows" not in narrow


@pytest.mark.parametrize("model", ["mlp", "resnet", "vgg"])
def test_the_columns_fit_a_terminal(report: Report, model: str) -> None:
    given = ["dataset.image_size=32"] if model == "vgg" else []
    text = report(f"model={model}", "analysis=full", *given)
    head = next(line for line in text.splitlines() if line.startswith("layer "))
    assert head.split() == [
        "layer", "type", "d_in", "d_out", "tions", "rows", "κ_p", "Σx", "Σ∇h", "Fisher", "memory",
    ]  # fmt: skip
    assert len(head.rstrip()) <= 100
    assert columns(text, "fc")[:3] == ["Linear", "64" if model != "vgg" else "512", "10"]


def test_only_what_is_measured_has_a_side(report: Report) -> None:
    assert " Σ∇h" not in report("analysis.matrices=[input]")
    alone = report("analysis.matrices=[fisher]")
    assert columns(alone, "fc")[5:7] == ["all", "dual"]  # 128 rows, 640 weights
    nothing = report("analysis=none")
    assert columns(nothing, "fc")[5:] == ["all", "0", "B"]
    assert "0 snapshots" in nothing


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        # Three Gram matrices in float64, and one layer's gradients at a time.
        (["analysis=full"], "128 rows, 128 eigenvalues of the network; takes 426 kB"),
        (
            ["analysis=fisher", "analysis.fisher_type=exact", "analysis.probe.mode=eval",
             "analysis.probe.size=100", "analysis.probe.batch_size=100"],
            "900 eigenvalues of the network; takes 20.6 MB, with a memory_limit 19.7 MB at least",
        ),
        (
            ["analysis=fisher", "analysis.fisher_type=exact", "analysis.probe.mode=eval",
             "analysis.probe.size=100", "analysis.probe.batch_size=100",
             "analysis.memory_limit=0.02"],
            "takes 20 MB of 20 MB (memory_limit)",
        ),
    ],
)  # fmt: skip
def test_what_fisher_takes(report: Report, overrides: list[str], line: str) -> None:
    assert line in re.sub(r"\s+", " ", report(*overrides))


@pytest.mark.parametrize("asked", MATRICES)
def test_size_of_the_file(asked: str, tmp_path: Path) -> None:
    options = AnalysisOptions(MATRICES[asked])
    catalogue = trace_layers(model(), torch.zeros(2, 8, 14, 14), options)
    spec = FileSpec(
        layers=catalogue.layers,
        not_analysed=catalogue.not_analysed,
        matrices=options.matrices,
        kappa_p=options.kappa_p,
        save_spectra=True,
        snapshot_steps=tuple(range(40)),
        eval_steps=(40,),
        num_train_steps=40,
        steps_per_epoch=10,
        num_samples=NUM_SAMPLES,
        config_yaml="seed: 1\n",
    )
    create_results(tmp_path / "results.h5", spec)
    # Exact in the arrays; the descriptions of the arrays are estimated.
    actual = (tmp_path / "results.h5").stat().st_size
    assert file_size(spec) == pytest.approx(actual, rel=0.15)


def test_products_with_a_vector_are_told(report: Report) -> None:
    text = " ".join(report("analysis.sharpness.every_steps=10", "analysis.matrices=[ggn]").split())
    assert "ggn: 7 blocks a snapshot, each 128 products with a vector and up to 200 for" in text
    assert "sharpness: 17 times 2 to 6 products with a vector, of 2.5 to 3.5 steps each" in text
    assert "beside products with a vector, a snapshot takes" in text
    assert "products" not in report()
