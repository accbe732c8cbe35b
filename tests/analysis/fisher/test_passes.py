"""Exact Fisher matrices in pieces: batches, chunks, groups of layers, and what can't be."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import condexp
from condexp.analysis.analyze import analyze_batches
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.recorder import Recorder
from condexp.analysis.snapshot import Snapshot
from condexp.analysis.statistics.hooks import MeasurementHooks
from condexp.analysis.vocabulary import FisherType, Matrix, Precision
from condexp.errors import InputError
from tests import cases
from tests.analysis import fisher_oracles, oracles

CROSS_ENTROPY = nn.CrossEntropyLoss()
MATRICES = (Matrix.GRAD_OUTPUT, Matrix.FISHER)


def same_snapshots(given: Snapshot, expected: Snapshot, relative: float = 1e-10) -> None:
    assert given.layers == expected.layers
    assert expected.fisher is not None
    oracles.close(given.fisher, expected.fisher.eigenvalues, relative)
    for name in given.layers:
        of_layer = expected[name]
        assert of_layer.fisher is not None
        oracles.close(given[name].fisher, of_layer.fisher.eigenvalues, relative)
        if of_layer.grad_output is not None:
            oracles.close(given[name].grad_output, of_layer.grad_output.eigenvalues, relative)


@pytest.fixture(scope="module", params=["convolutions", "reused"])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    """Gradients formed at once (T ≥ d_in), and rows kept; three samples and three classes."""
    if request.param == "reused":
        return cases.reused(), cases.normal(6, 4), cases.labels(6, 3)
    return cases.resnet().eval(), cases.normal(6, 2, 16, 16), cases.labels(6, 3)


Make = Callable[[Tensor, Tensor], object]


@pytest.mark.parametrize("fisher_type", ["empirical", "exact"])
@pytest.mark.parametrize("one_way", [False, True])
def test_batches_make_one_matrix(
    case: tuple[nn.Module, Tensor, Tensor], fisher_type: str, one_way: bool
) -> None:
    model, inputs, targets = case
    options = AnalysisOptions(matrices=MATRICES, fisher_type=FisherType(fisher_type))
    pieces = [(inputs[part], targets[part]) for part in (slice(0, 1), slice(1, 4), slice(4, 6))]
    batches = iter(pieces) if one_way else pieces
    given = analyze_batches(model, CROSS_ENTROPY, batches, options)
    expected = condexp.analyze(
        model, CROSS_ENTROPY, inputs, targets, MATRICES, fisher_type=fisher_type
    )
    same_snapshots(given, expected)
    assert given.num_samples == 6


def test_drawn_labels_go_on_from_batch_to_batch() -> None:
    """The same rows twice have different labels: four rows of rank 2·d_in at least."""
    layer, row = cases.randomised(nn.Linear(3, 2, bias=False)), cases.normal(1, 3)
    options = AnalysisOptions(matrices=MATRICES, fisher_type=FisherType.MC)
    targets = torch.zeros(1, 2).double()
    snapshot = analyze_batches(layer, nn.MSELoss(), [(row, targets)] * 2, options)
    assert snapshot.fisher is not None
    assert snapshot.fisher.rank == 2


@pytest.mark.parametrize("fisher_type", ["empirical", "mc", "exact"])
def test_a_recorder_and_analyze_agree_and_a_limit_changes_nothing(
    case: tuple[nn.Module, Tensor, Tensor], fisher_type: str
) -> None:
    model, inputs, targets = case
    expected = condexp.analyze(
        model, CROSS_ENTROPY, inputs, targets, MATRICES, fisher_type=fisher_type
    )
    for limit in (60_000, 200_000, 10**9):
        given = condexp.analyze(
            model,
            CROSS_ENTROPY,
            inputs,
            targets,
            MATRICES,
            fisher_type=fisher_type,
            memory_limit=limit,
        )
        same_snapshots(given, expected)
    if fisher_type == "empirical":
        with Recorder(model, MATRICES) as recorder:
            CROSS_ENTROPY(model(inputs), targets).backward()
        same_snapshots(recorder.snapshot(), expected)


def test_a_limit_divides_the_layers_into_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group back-propagates all signals again, and measures its own layers alone."""
    model, inputs, targets = cases.resnet().eval(), cases.normal(6, 2, 16, 16), cases.labels(6, 3)
    groups: list[list[str]] = []
    extra_backward = MeasurementHooks.extra_backward

    def noted(self: MeasurementHooks, names: list[str], num_signals: int) -> object:
        groups.append(list(names))
        return extra_backward(self, names, num_signals)

    monkeypatch.setattr(MeasurementHooks, "extra_backward", noted)
    snapshot = condexp.analyze(
        model, CROSS_ENTROPY, inputs, targets, "fisher", fisher_type="exact", memory_limit=60_000
    )
    assert len(groups) > 1
    assert tuple(name for names in groups for name in names) == snapshot.layers


@pytest.mark.parametrize("fisher_type", ["empirical", "exact"])
def test_what_does_not_fit_is_said_before_anything_is_back_propagated(fisher_type: str) -> None:
    model, inputs, targets = cases.mlp(), cases.normal(6, 4), cases.labels(6, 3)

    def fail(_: Tensor) -> None:
        raise AssertionError

    handles = [p.register_hook(fail) for p in model.parameters()]  # type: ignore[no-untyped-call]
    options = AnalysisOptions(
        matrices=MATRICES, fisher_type=FisherType(fisher_type), memory_limit=800
    )
    for batches in ([(inputs, targets)], [(inputs[:3], targets[:3]), (inputs[3:], targets[3:])]):
        message = r"of 6 samples × \d signals needs .* memory_limit allows 0.0008 MB: take fewer"
        with pytest.raises(InputError, match=message):
            analyze_batches(model, CROSS_ENTROPY, batches, options)
    for handle in handles:
        handle.remove()


def test_a_stream_that_outgrows_the_limit_is_stopped() -> None:
    model, batch = cases.mlp(), (cases.normal(6, 4), cases.labels(6, 3))
    options = AnalysisOptions(matrices=MATRICES, memory_limit=20_000)
    analyze_batches(model, CROSS_ENTROPY, iter([batch] * 2), options)
    with pytest.raises(InputError, match="of 30 samples × 1 signals"):
        analyze_batches(model, CROSS_ENTROPY, iter([batch] * 9), options)


def test_a_layer_missing_in_a_batch_is_an_error() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.extra = cases.mlp((4, 3)), cases.randomised(nn.Linear(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.body(x)
            return out if len(x) == 2 else self.extra(out)

    inputs, targets = cases.normal(6, 4), cases.labels(6, 3)
    batches = [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])]
    with pytest.raises(InputError, match="layer 'extra' has 4 gradients where others have 6"):
        analyze_batches(Sometimes(), CROSS_ENTROPY, batches, AnalysisOptions(matrices=MATRICES))


def test_a_recorder_takes_one_pass() -> None:
    model, inputs, targets = cases.mlp(), cases.normal(6, 4), cases.labels(6, 3)
    with Recorder(model, MATRICES) as recorder:
        CROSS_ENTROPY(model(inputs), targets).backward()
        with pytest.raises(InputError, match=r"'0' was called again.*record one forward pass"):
            model(inputs)
    assert recorder.snapshot().fisher is not None
    with Recorder(model, MATRICES), pytest.raises(InputError, match="'0' was called again"):
        CROSS_ENTROPY(model(inputs) + model(inputs), targets).backward()


def test_samples_that_do_not_come_first_are_told_apart() -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = cases.randomised(nn.Linear(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(x.transpose(0, 1)).mean(0)
            return out

    model, inputs, targets = TimeFirst(), cases.normal(6, 5, 4), cases.labels(6, 3)
    given = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, "fisher")["fc"].fisher
    weight = next(model.parameters())
    losses = (CROSS_ENTROPY(model(x[None]), y[None]) for x, y in zip(inputs, targets, strict=True))
    rows = torch.stack([torch.autograd.grad(loss, weight)[0].flatten() for loss in losses])
    oracles.close(given, torch.linalg.eigvalsh(rows @ rows.T / 6).flip(0))


def test_a_use_without_gradient_adds_nothing() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = cases.randomised(nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.fc(x).detach())
            return out

    model, inputs, targets = Detached(), cases.normal(5, 4), cases.labels(5, 4)
    snapshot = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, "fisher")
    rows = fisher_oracles.empirical(model, ["fc"], CROSS_ENTROPY, inputs, targets)
    expected = fisher_oracles.eigenvalues(rows["fc"], 5)
    batches = [(inputs[:2], targets[:2]), (inputs[2:], targets[2:])]
    options = AnalysisOptions(matrices=MATRICES)
    for given in (snapshot, analyze_batches(model, CROSS_ENTROPY, batches, options)):
        oracles.close(given["fc"].fisher, expected)
        oracles.close(given.fisher, expected)


# Precision.


def trained_like() -> tuple[nn.Module, Tensor, Tensor]:
    """Float32, with some samples classified surely: gradients of very different length."""
    model, inputs = cases.vgg().eval(), cases.normal(24, 2, 8, 8)
    with torch.no_grad():
        targets = model(inputs).argmax(1)
        model[-1].weight.mul_(5)  # type: ignore[index]
    return model.float(), inputs.float(), targets


def spectra(snapshot: Snapshot) -> list[Spectrum]:
    found = [snapshot.fisher, *(record.fisher for record in snapshot.records)]
    return [spectrum for spectrum in found if spectrum]


def test_auto_is_within_a_hundredth_of_float64_rows() -> None:
    model, inputs, targets = trained_like()
    auto = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, "fisher")
    exact = condexp.analyze(model.double(), CROSS_ENTROPY, inputs.double(), targets, "fisher")
    finite = 0
    for given, expected in zip(spectra(auto), spectra(exact), strict=True):
        for p in (0.25, 0.5, 0.75, 1.0):
            low, high = given.kappa_interval(p)
            if math.isfinite(high):
                assert math.isclose(given.kappa(p), expected.kappa(p), rel_tol=0.01)
                finite += 1
            else:
                assert low <= expected.kappa_interval(p)[1]
    assert finite > 10


def test_float32_is_within_its_noise_floor() -> None:
    model, inputs, targets = trained_like()
    fine, coarse = (
        condexp.analyze(model, CROSS_ENTROPY, inputs, targets, "fisher", precision=precision)
        for precision in ("float64", "float32")
    )
    assert coarse.fisher is not None
    assert coarse.fisher.dtype == torch.float32
    for name in (None, *fine.layers):
        given = coarse.fisher if name is None else coarse[name].fisher
        expected = fine.fisher if name is None else fine[name].fisher
        assert given is not None
        assert expected is not None
        low, high = given.bounds
        assert bool(((low <= expected.blocks) & (expected.blocks <= high)).all())


def test_half_precision_raises_the_floor() -> None:
    """bfloat16's gradients are known to three digits, whatever the products are taken in."""
    model, inputs, targets = trained_like()
    with Recorder(model, "fisher") as recorder, torch.autocast("cpu", torch.bfloat16):
        CROSS_ENTROPY(model(inputs), targets).backward()
    spectrum = recorder.snapshot()["0"].fisher
    assert spectrum is not None
    floor = 4 * torch.finfo(torch.bfloat16).eps ** 2 * spectrum.lambda_max
    assert spectrum.noise_floor >= floor


def test_precision_float32_is_taken_literally() -> None:
    options = AnalysisOptions(matrices=MATRICES, precision=Precision.FLOAT32)
    model, batch = cases.mlp(), (cases.normal(6, 4), cases.labels(6, 3))
    snapshot = analyze_batches(model, CROSS_ENTROPY, [batch], options)
    assert snapshot.fisher is not None
    assert snapshot.fisher.dtype == torch.float32
