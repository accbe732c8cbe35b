"""One call: several batches, unusual inputs, and errors."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import condexp
from condexp.analysis.analyze import analyze_batches
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import LAYER_MEASURES, SpectrumStatus
from condexp.errors import InputError
from tests import cases
from tests.analysis import oracles

CROSS_ENTROPY = nn.CrossEntropyLoss()
ALL = ("input", "grad_output", "kfac", "weight", "weight_grad")


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (cases.mlp(), (4,)),
        (cases.mlp(batch_norm=True).eval(), (4,)),
        (cases.resnet().eval(), (2, 8, 8)),
        (cases.vgg(batch_norm=False), (2, 8, 8)),
        (cases.reused(), (4,)),
    ],
    ids=["mlp", "mlp-bn-eval", "resnet-eval", "vgg", "reused"],
)
def test_several_batches_equal_one_big_batch(
    model: nn.Module, shape: tuple[int, ...], center: bool
) -> None:
    """Where the samples do not mix: uneven batches, every spectrum and measure."""
    inputs, targets = cases.normal(7, *shape), cases.labels(7, 3)
    options = AnalysisOptions(matrices=ALL, center=center)  # type: ignore[arg-type]
    batches = [(inputs[a:b], targets[a:b]) for a, b in [(0, 3), (3, 4), (4, 7)]]
    one = analyze_batches(model, CROSS_ENTROPY, [(inputs, targets)], options, learning_rate=0.1)
    many = analyze_batches(model, CROSS_ENTROPY, iter(batches), options, learning_rate=0.1)
    assert (many.layers, many.num_samples, many.bn_mode) == (one.layers, 7, one.bn_mode)
    for name in one.layers:
        assert many[name].info == one[name].info
        for matrix in ("input", "grad_output", "weight", "weight_grad"):
            oracles.same(getattr(many[name], matrix), getattr(one[name], matrix))
        kfac, expected = many[name].kfac, one[name].kfac
        assert kfac is not None
        assert expected is not None
        assert math.isclose(kfac.trace, expected.trace, rel_tol=1e-10)
        for measure in LAYER_MEASURES:
            given, wanted = getattr(many[name], measure), getattr(one[name], measure)
            assert math.isclose(given, wanted, rel_tol=1e-10), measure


def test_batches_in_training_mode_are_normalised_each_by_itself() -> None:
    model = cases.mlp(batch_norm=True)
    inputs, targets = cases.normal(8, 4), cases.labels(8, 3)
    halves = [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])]
    merged = analyze_batches(model, CROSS_ENTROPY, halves, AnalysisOptions())["3"]
    each = [condexp.analyze(model, CROSS_ENTROPY, *half)["3"] for half in halves]
    traces = [record.grad_output.trace for record in each if record.grad_output is not None]
    assert merged.grad_output is not None
    assert math.isclose(merged.grad_output.trace, sum(traces) / 2, rel_tol=1e-10)


def test_batches_with_ignored_targets_have_each_its_own_denominator() -> None:
    model, inputs = cases.mlp(), cases.normal(6, 4)
    targets = torch.tensor([0, -100, -100, 1, 2, 0])
    batches = [(inputs[:3], targets[:3]), (inputs[3:], targets[3:])]
    one = condexp.analyze(model, CROSS_ENTROPY, inputs, targets)
    many = analyze_batches(model, CROSS_ENTROPY, batches, AnalysisOptions())
    for name in one.layers:
        oracles.same(many[name].grad_output, one[name].grad_output)


def test_no_batch_is_an_error() -> None:
    with pytest.raises(InputError, match="there is no batch to analyse"):
        analyze_batches(cases.mlp(), CROSS_ENTROPY, [], AnalysisOptions())


def test_only_what_was_asked_for_is_measured() -> None:
    model, inputs, targets = cases.mlp(), cases.normal(4, 4), cases.labels(4, 3)
    record = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, ("kfac",))["0"]
    assert record.kfac is not None
    assert [record.input, record.grad_output, record.weight, record.weight_grad] == [None] * 4
    record = condexp.analyze(model, CROSS_ENTROPY, inputs, targets, "weight")["0"]
    assert record.weight is not None
    assert record.kfac is None
    assert record.domination > 0


def test_a_model_that_is_itself_a_layer_goes_by_its_class() -> None:
    conv = cases.randomised(nn.Conv2d(2, 3, 3))
    inputs, targets = cases.normal(4, 2, 5, 5), cases.labels(4, 3, 3, 3)
    assert condexp.analyze(conv, CROSS_ENTROPY, inputs, targets).layers == ("Conv2d",)


def test_a_weight_of_two_modules_is_one_layer() -> None:
    first, second = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second)
    twice = nn.Sequential(first, nn.Tanh(), first)
    inputs, targets = cases.normal(4, 4), cases.normal(4, 4, seed=2)
    measures = (*ALL, "fisher")
    with torch.no_grad():
        second.bias.copy_(first.bias)
    snapshot = condexp.analyze(model, nn.MSELoss(), inputs, targets, measures)
    expected = condexp.analyze(twice, nn.MSELoss(), inputs, targets, measures)
    assert snapshot.layers == ("0",)
    assert snapshot["2"] is snapshot["0"]
    assert snapshot["0"].info.uses == 2
    for matrix in ("input", "grad_output", "fisher", "weight_grad"):
        oracles.same(getattr(snapshot["0"], matrix), getattr(expected["0"], matrix))
    assert [entry.name for entry in snapshot.not_analysed] == ["2", "0.bias"]


def test_a_dead_layer_is_a_finding() -> None:
    """Everything after a layer of zeros: status zero, rank 0, no exception."""
    model = cases.mlp(bias=False)
    with torch.no_grad():
        model[0].weight.zero_()  # type: ignore[operator]
    record = condexp.analyze(model, CROSS_ENTROPY, cases.normal(4, 4), cases.labels(4, 3))["2"]
    assert record.input is not None
    assert record.kfac is not None
    assert (record.input.status, record.input.rank, record.kfac.status) == ("zero", 0, "zero")
    assert math.isnan(record.input.kappa(0.5))
    assert record.dead_fraction == 1


def test_a_diverged_model_is_measured_as_nonfinite() -> None:
    model = cases.mlp()
    with torch.no_grad():
        model[0].weight.fill_(math.inf)  # type: ignore[operator]
    snapshot = condexp.analyze(model, CROSS_ENTROPY, cases.normal(4, 4), cases.labels(4, 3))
    assert [record.grad_output.status for record in snapshot.records if record.grad_output] == [
        SpectrumStatus.NONFINITE
    ] * 3
    assert math.isnan(snapshot["4"].domination)


def test_an_unreliable_spectrum_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eigenvalue under −floor: more rounding than was promised, so no number is given."""
    indefinite = Spectrum.from_matrix(
        torch.diag(torch.tensor([1.0, -1.0])), dtype=torch.float64, num_rows=9
    )
    assert indefinite.status is SpectrumStatus.UNRELIABLE
    monkeypatch.setattr(
        "condexp.analysis.statistics.moment.AdaptiveMoment.spectrum", lambda *_: indefinite
    )
    model, inputs, targets = cases.mlp(), cases.normal(4, 4), cases.labels(4, 3)
    with pytest.raises(ArithmeticError, match="spectrum of 'input' of layer '0' is unreliable"):
        condexp.analyze(model, CROSS_ENTROPY, inputs, targets)
    # A probe in the middle of a training keeps the status instead.
    snapshot = analyze_batches(model, CROSS_ENTROPY, [(inputs, targets)], AnalysisOptions())
    assert snapshot["0"].input is indefinite


def test_inference_mode_outside_does_not_matter() -> None:
    model, inputs, targets = cases.mlp(), cases.normal(4, 4), cases.labels(4, 3)
    expected = condexp.analyze(model, CROSS_ENTROPY, inputs, targets)
    with torch.inference_mode():
        given = condexp.analyze(model, CROSS_ENTROPY, inputs, targets)
    oracles.same(given["0"].grad_output, expected["0"].grad_output)


def test_a_plain_function_is_a_loss() -> None:
    model, inputs, targets = cases.mlp(), cases.normal(4, 4), cases.labels(4, 3)
    given = condexp.analyze(model, F.cross_entropy, inputs, targets)
    expected = condexp.analyze(model, CROSS_ENTROPY, inputs, targets)
    oracles.same(given["0"].grad_output, expected["0"].grad_output)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(0, 4).double(), r"got a tensor of shape \(0, 4\)"),
        (torch.tensor(1.0).double(), r"got a tensor of shape \(\)"),
        ([cases.normal(2, 4)], "got list; for other inputs put a Recorder around"),
    ],
)
def test_unusable_inputs_are_an_error(inputs: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        condexp.analyze(cases.mlp(), CROSS_ENTROPY, inputs, cases.labels(2, 3))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda f, y: F.cross_entropy(f, y, reduction="none"), r"got a tensor of shape \(4,\)"),
        (lambda f, y: 1.0, "got float"),
    ],
)
def test_a_loss_that_is_no_scalar_is_an_error(loss: object, message: str) -> None:
    with pytest.raises(InputError, match=f"loss_fn must return a scalar tensor, {message}"):
        condexp.analyze(cases.mlp(), loss, cases.normal(4, 4), cases.labels(4, 3))  # type: ignore[arg-type]


def test_batches_may_come_from_a_generator_that_draws() -> None:
    """Its draws are undone with the rest: the probe is part of the analysis."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(3):
            yield torch.randn(4, 4, dtype=torch.float64), cases.labels(4, 3)

    model, before = cases.mlp(), torch.get_rng_state()
    snapshot = analyze_batches(model, CROSS_ENTROPY, batches(), AnalysisOptions())
    assert snapshot.num_samples == 12
    assert torch.equal(torch.get_rng_state(), before)
