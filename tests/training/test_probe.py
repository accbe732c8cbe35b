"""Which samples a probe holds, in which mode it measures, and that nobody notices."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import WHOLE_MATRICES
from condexp.errors import InputError
from condexp.training.choices import ProbeMode
from condexp.training.probe import Probe, draw_probe
from tests.training.runs import EVERY_MATRIX, hooks, images, mlp, model_state, resnet

LOSS = nn.CrossEntropyLoss()
FLOAT64 = AnalysisOptions(matrices=WHOLE_MATRICES, precision="float64")  # type: ignore[arg-type]


def probe(
    mode: ProbeMode = ProbeMode.EVAL, *, size: int = 12, batch_size: int = 5, seed: int = 0
) -> Probe:
    return draw_probe(
        images(), size=size, batch_size=batch_size, mode=mode, seed=seed, dtype=torch.float64
    )


def samples(given: Probe) -> Tensor:
    return torch.cat([inputs for inputs, _ in given.batches])


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(1)
    model = mlp(dropout=0.0).double()
    model(torch.randn(16, 36, dtype=torch.float64))
    return model


def test_the_samples_are_a_function_of_the_seed() -> None:
    first = samples(probe())
    torch.rand(3)  # whatever else draws numbers
    assert torch.equal(samples(probe()), first)
    assert torch.equal(samples(probe(batch_size=3)), first)
    assert not torch.equal(samples(probe(seed=1)), first)


def test_the_samples_are_normalised_training_samples_each_once() -> None:
    data = images()
    everything = {
        tuple(row) for row in ((data.train.inputs.double() - 128) / 64).flatten(1).tolist()
    }
    drawn = [tuple(row) for row in samples(probe()).flatten(1).tolist()]
    assert len(set(drawn)) == len(drawn) == 12
    assert set(drawn) <= everything
    assert [len(inputs) for inputs, _ in probe().batches] == [5, 5, 2]


@pytest.mark.parametrize("size", [0, 23])
def test_size_out_of_range(size: int) -> None:
    with pytest.raises(InputError, match=f"probe.size is {size}.*between 1 and the 22 training"):
        probe(size=size)


def test_one_sample_has_no_batch_statistics() -> None:
    with pytest.raises(InputError, match=r"a batch of one sample.*probe.mode=eval"):
        probe(ProbeMode.TRAIN, size=11, batch_size=5)
    assert len(probe(ProbeMode.EVAL, size=11, batch_size=5).batches) == 3


def test_no_batches() -> None:
    with pytest.raises(InputError, match="the probe holds no batch"):
        Probe((), ProbeMode.EVAL)


def test_eval_mode_unites_batches_exactly(model: nn.Sequential) -> None:
    several = probe(batch_size=5).measure(model, LOSS, FLOAT64)
    at_once = probe(batch_size=12).measure(model, LOSS, FLOAT64)
    assert several.bn_mode == at_once.bn_mode == "eval"
    assert several.num_samples == at_once.num_samples == 12
    for name in at_once.layers:
        for matrix in ("input", "grad_output", "weight", "weight_grad"):
            ours, theirs = getattr(several[name], matrix), getattr(at_once[name], matrix)
            # Sums in another order: eigenvalues agree to a few eps of the largest (Weyl).
            torch.testing.assert_close(
                ours.eigenvalues, theirs.eigenvalues, rtol=0, atol=1e-13 * theirs.lambda_max
            )


def test_train_mode_takes_each_batch_by_its_own_statistics(model: nn.Sequential) -> None:
    given = probe(ProbeMode.TRAIN, size=12, batch_size=4)
    snapshot = given.measure(model, LOSS, FLOAT64)
    assert snapshot.bn_mode == "train"
    # The input of the last layer by hand: normalised by its own batch, rectified.
    weight, bias = model.get_parameter("1.weight"), model.get_parameter("1.bias")
    rows = []
    for inputs, _ in given.batches:
        hidden = inputs.flatten(1) @ weight.T + bias
        mean, variance = hidden.mean(0), hidden.var(0, correction=0)
        rows.append(((hidden - mean) / (variance + 1e-5).sqrt()).clamp(min=0))
    united = torch.cat(rows)
    expected = torch.linalg.eigvalsh(united.T @ united / 12).flip(0)
    measured = snapshot["6"].input
    assert measured is not None
    # The trace is at most 7, the number of units: rounding moves an eigenvalue by 1e-14.
    torch.testing.assert_close(measured.eigenvalues, expected.detach(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("mode", list(ProbeMode))
@pytest.mark.parametrize("build", [partial(mlp, noise=True), resnet])
@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_model_as_found(
    mode: ProbeMode, build: Callable[..., nn.Sequential], training: bool
) -> None:
    model = build(dropout=0.5).double()
    loss = LOSS(model.train()(samples(probe())), torch.zeros(12, dtype=torch.int64))
    loss.backward()
    model.train(training)
    model[-1].train(not training)
    before = model_state(model)
    probe(mode).measure(model, LOSS, EVERY_MATRIX)
    assert model_state(model) == before
    assert hooks(model) == []


@pytest.mark.parametrize("mode", list(ProbeMode))
def test_leaves_the_model_as_found_after_an_exception(mode: ProbeMode) -> None:
    model = mlp(dropout=0.5, noise=True).double()
    calls = 0

    def fails_later(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ArithmeticError("no loss")
        loss: Tensor = LOSS(outputs, targets)
        return loss

    before = model_state(model)
    with pytest.raises(ArithmeticError, match="no loss"):
        probe(mode).measure(model, fails_later, EVERY_MATRIX)
    assert calls == 2
    assert model_state(model) == before
    assert hooks(model) == []
