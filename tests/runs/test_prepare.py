"""What a configuration asks of the analysis arrives there, or is refused before anything runs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from condexp.analysis.vocabulary import WHOLE_MATRICES, FisherType, Matrix
from condexp.errors import InputError
from condexp.runs.execute import run_experiment
from condexp.runs.prepare import PreparedRun, prepare
from condexp.store.reader import open_run
from condexp.store.run_folder.status import State
from tests.in_process import run, validated
from tests.observer import Silent

Prepare = Callable[..., PreparedRun]
SMALL = ["analysis.probe.size=20", "analysis.probe.batch_size=20"]
EVAL = "analysis.probe.mode=eval"


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    monkeypatch.chdir(tmp_path)

    def prepared(*overrides: str) -> PreparedRun:
        return prepare(validated(*SMALL, *overrides))

    return prepared


def test_the_presets(prepared: Prepare) -> None:
    blocks = prepared("analysis=fisher")
    assert {"input", "grad_output", "kfac", "fisher"} == set(blocks.options.matrices)
    assert blocks.source == "probe"
    assert set(prepared("analysis=full").options.matrices) == {*WHOLE_MATRICES} - {Matrix.EKFAC}
    assert Matrix.FISHER not in prepared().options.matrices


def test_the_keys_reach_the_analysis(prepared: Prepare) -> None:
    labels = ["analysis.fisher_type=mc", "analysis.mc_samples=3"]
    options = prepared("analysis=fisher", EVAL, *labels, "analysis.memory_limit=0.25").options
    assert (options.fisher_type, options.mc_samples) == (FisherType.MC, 3)
    assert options.memory_limit == 250_000_000  # 1 GB is 10^9 bytes
    assert prepared().options.memory_limit is None


@pytest.mark.parametrize(
    ("overrides", "num_signals"),
    [
        ([], 1),
        (["analysis.fisher_type=mc", "analysis.mc_samples=3"], 3),
        (["analysis.fisher_type=exact"], 9),  # ten classes
        (["analysis.fisher_type=exact", "dataset=gaussian", "model=linear"], 1),
        (["analysis.fisher_type=exact", "dataset=gaussian", "dataset.num_outputs=4",
          "model=linear"], 4),
    ],
)  # fmt: skip
def test_the_file_has_a_row_for_each_sample_and_signal(
    prepared: Prepare, overrides: list[str], num_signals: int
) -> None:
    spec = prepared("analysis=fisher", EVAL, *overrides).spec
    assert (spec.num_samples, spec.num_signals) == (20, num_signals)
    weights = sum(layer.d_in * layer.d_out for layer in spec.layers)
    assert spec.extent.network_length == min(20 * num_signals, weights)
    for layer, length in zip(spec.layers, spec.extent.lengths[Matrix.FISHER], strict=True):
        assert length == min(20 * num_signals, layer.d_in * layer.d_out)


@pytest.mark.parametrize("kind", ["mc", "exact"])
def test_labels_that_the_training_does_not_back_propagate(prepared: Prepare, kind: str) -> None:
    message = rf"analysis\.fisher_type={kind} needs backward passes of its own.*source=probe"
    with pytest.raises(InputError, match=message):
        prepared(f"analysis.fisher_type={kind}")
    prepared("analysis=none", f"analysis.fisher_type={kind}")  # measures nothing


@pytest.mark.parametrize(
    ("kind", "matrices", "refused"),
    [
        ("exact", "[fisher]", True),
        ("exact", "[input,grad_output]", True),
        ("mc", "[fisher]", True),
        ("mc", "[kfac]", False),
        ("empirical", "[fisher]", False),
    ],
)
def test_batch_statistics_mix_the_samples(
    prepared: Prepare, kind: str, matrices: str, refused: bool
) -> None:
    given = [
        "analysis=fisher",
        f"analysis.fisher_type={kind}",
        f"analysis.matrices={matrices}",
        "analysis.probe.mode=train",
    ]
    if refused:
        message = r"'layers\.0\.norm' normalises by batch statistics.*analysis\.probe\.mode=eval"
        with pytest.raises(InputError, match=message):
            prepared(*given)
    else:
        prepared(*given)
    # As it says: in eval mode, or without batch normalisation.
    prepared(*given, EVAL)
    prepared(*given, "model.norm=none")


def test_what_does_not_fit_is_refused_beforehand(prepared: Prepare) -> None:
    exact = ["analysis=fisher", "analysis.fisher_type=exact", EVAL]
    # 180 rows: three Gram matrices in float64, 0.78 MB, and the largest layer's nine gradients.
    message = r"20 samples × 9 signals needs 0\.\d+ MB, memory_limit allows 0\.5 MB: take fewer"
    with pytest.raises(InputError, match=message):
        prepared(*exact, "analysis.memory_limit=0.0005")
    prepared(*exact, "analysis.memory_limit=0.001")
    # In batches the rows of all layers are kept.
    in_batches = [*exact, "analysis.probe.batch_size=10"]
    with pytest.raises(InputError, match="memory_limit allows 1 MB"):
        prepared(*in_batches, "analysis.memory_limit=0.001")
    prepared(*in_batches, "analysis.memory_limit=0.002")
    prepared(*exact, "analysis.matrices=[kfac]", "analysis.memory_limit=0.0005")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("analysis.fisher_type=exakt", r"allowed are empirical, mc, exact.*'exact'"),
        ("analysis.mc_samples=0", r"analysis\.mc_samples=0: it must be at least 1"),
        ("analysis.memory_limit=0", r"analysis\.memory_limit=0\.0: it must be greater than 0"),
        ("analysis.memory_limit=8GB", r"analysis\.memory_limit: Value '8GB'"),
        ("analysis.matrices=[fischer]", r"'fischer'.*Did you mean 'fisher'"),
        ("analysis=fischer", r"fischer"),
    ],
)
def test_what_cannot_be_asked_for(prepared: Prepare, override: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        prepared(override)


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize(
    ("overrides", "rows"),
    [
        (["analysis=full", "trainer.batch_size=16"], 16),
        (["analysis=fisher", "analysis.probe.batch_size=8"], 20),
        (["analysis=fisher", "analysis.fisher_type=exact", EVAL], 180),
        (["analysis=fisher", "analysis.fisher_type=mc", "analysis.mc_samples=2",
          "analysis.probe.batch_size=8", EVAL], 40),
        (["analysis=fisher", "model=resnet", "model.depth=8", "analysis.bias=true",
          "analysis.conv_input=channels", "analysis.layers.include=[first,last_linear]",
          "analysis.probe.size=200", "analysis.probe.batch_size=200"], 200),
    ],
    ids=["train batch", "batches", "exact", "mc in batches", "channels"],
)  # fmt: skip
def test_what_is_foretold_is_what_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], rows: int
) -> None:
    monkeypatch.chdir(tmp_path)
    brief = [
        "trainer.steps=1",
        "analysis.schedule.log_spaced=null",
        "analysis.schedule.at_end=false",
    ]
    data = ["dataset.subset.train=300", "dataset.subset.test=10"]
    config = validated(*SMALL, *brief, *data, *overrides)
    result = run_experiment(config, Silent())
    assert (result.state, result.message) == (State.COMPLETE, None)
    assert result.folder is not None
    run = open_run(result.folder)
    network, measures = run.network(), run.measures()
    assert set(measures["fisher_status"].values.ravel()) == {"ok"}
    # A trace has no zeros to be cut: the network's is the sum of its layers'.
    total = measures["fisher_trace"].sum("layer").values
    np.testing.assert_allclose(network["fisher_trace"].values, total, rtol=1e-6)
    assert network["fisher_eigenvalue"].shape == (1, rows)
    assert (measures["n_fisher"].values <= rows).all()


def test_a_run_that_would_fill_the_disk_says_so_before_it_starts(tmp_path: Path) -> None:
    much = [
        "model.width=512",
        "trainer.epochs=null",
        "trainer.steps=100000",
        "analysis.schedule.every_steps=1",
    ]
    told = r"takes up to 17.9 GB of disk \(100000 snapshots .*than run.max_disk=10: .*save_spectra"
    with pytest.raises(InputError, match=told):
        prepare(validated(*much, "run.max_disk=10", root=tmp_path))
    assert prepare(validated(*much, root=tmp_path)).num_bytes > 10e9


def test_the_disk_that_a_run_takes_is_at_most_what_was_said(tmp_path: Path) -> None:
    small = ["trainer.steps=4", "dataset.subset.train=40", "dataset.subset.test=20"]
    small += ["trainer.batch_size=10", "trainer.checkpoint.every_steps=1"]
    config = validated(*small, root=tmp_path)
    result = run(tmp_path, *small, picture=True)
    assert result.folder is not None
    taken = sum(path.stat().st_size for path in result.folder.iterdir())
    assert taken < prepare(config).num_bytes
