"""Evaluation against the obvious full-set computation, and what it leaves behind."""

import math
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from condexp.data.dataset import Split, Task
from condexp.data.loaders import Batches
from condexp.training.evaluate import (
    Evaluation,
    Evaluator,
    LossFunction,
    Score,
    build_loss,
    mean_score,
    score_batches,
)
from tests.training.runs import hooks, images, mlp, model_state


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    model = mlp(dropout=0.5).double()
    model(torch.randn(16, 36, dtype=torch.float64))  # running statistics away from 0 and 1
    return model


def in_order(split: Split, size: int) -> Batches:
    return Batches(split, mean=(128.0,), std=(64.0,), batch_size=size, dtype=torch.float64)


def evaluate(
    model: nn.Module, loss_fn: LossFunction, batches: Iterable[tuple[Tensor, Tensor]]
) -> Score:
    return mean_score(score_batches(model, loss_fn, batches))


def by_hand(model: nn.Module, split: Split) -> tuple[float, float]:
    """All samples at once: loss, and error in percent."""
    model.eval()
    outputs = model((split.inputs.double() - 128) / 64)
    right = sum(
        int(row.argmax()) == int(target) for row, target in zip(outputs, split.targets, strict=True)
    )
    loss = -outputs.log_softmax(1)[range(len(split)), split.targets].mean()
    return loss.item(), 100 * (1 - right / len(split))


@pytest.mark.parametrize("size", [5, 8, 22])
def test_equals_all_samples_at_once(model: nn.Module, size: int) -> None:
    split = images().train
    score = evaluate(model, nn.CrossEntropyLoss(), in_order(split, size).epoch())
    # Means of a few float64 numbers of order 1; the error passes through float32 (6e-8).
    loss, error = by_hand(model, split)
    assert score.loss == pytest.approx(loss, rel=1e-13)
    assert score.error == pytest.approx(error, rel=1e-6)


def test_leaves_the_model_as_found(model: nn.Sequential) -> None:
    model[2].eval()  # a layer frozen on purpose stays frozen
    before = model_state(model)
    evaluate(model, nn.CrossEntropyLoss(), in_order(images().train, 8).epoch())
    assert model_state(model) == before
    assert not model[2].training
    assert model[1].training


def test_restores_modes_after_an_exception(model: nn.Sequential) -> None:
    def fails(outputs: Tensor, targets: Tensor) -> Tensor:
        raise ArithmeticError("no loss")

    before = model_state(model)
    with pytest.raises(ArithmeticError, match="no loss"):
        evaluate(model, fails, in_order(images().train, 8).epoch())
    assert model_state(model) == before
    assert hooks(model) == []


def test_regression_has_no_error() -> None:
    model = nn.Linear(3, 2).double()
    inputs, targets = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    score = evaluate(model, build_loss(Task.REGRESSION), [(inputs, targets)])
    # The mean over samples and outputs.
    expected = (model(inputs) - targets).square().sum().item() / (7 * 2)
    assert score.loss == pytest.approx(expected, rel=1e-13)
    assert math.isnan(score.error)


def test_loss_of_each_task() -> None:
    assert isinstance(build_loss(Task.CLASSIFICATION), nn.CrossEntropyLoss)
    assert isinstance(build_loss(Task.REGRESSION), nn.MSELoss)


def test_evaluator_scores_both_sets(model: nn.Sequential) -> None:
    data, loss_fn = images(), nn.CrossEntropyLoss()
    result = Evaluator(loss_fn, in_order(data.train, 8), in_order(data.test, 8))(model)
    train = evaluate(model, loss_fn, in_order(data.train, 8).epoch())
    test = evaluate(model, loss_fn, in_order(data.test, 8).epoch())
    assert train != test
    assert result == Evaluation(train.loss, train.error, test.loss, test.error)


def test_no_samples_no_score(model: nn.Sequential) -> None:
    assert all(math.isnan(value) for value in evaluate(model, nn.CrossEntropyLoss(), []))
    assert Score(1.0, 2.0).error == 2.0


def test_errors_are_counted() -> None:
    """18 of 360 are exactly 5 percent, whatever the batches."""
    outputs = torch.eye(2)[torch.arange(360) % 2]
    targets = torch.where(torch.arange(360) < 18, 1, 0) ^ (torch.arange(360) % 2)
    for size in (7, 64, 360):
        batches = zip(torch.split(outputs, size), torch.split(targets, size), strict=True)
        assert evaluate(nn.Identity(), nn.CrossEntropyLoss(), batches).error == 5.0
