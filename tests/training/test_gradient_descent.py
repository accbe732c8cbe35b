"""Full-batch gradient descent on a quadratic whose Hessian is known: docs/theory.md §6."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from condexp.analysis.options import AnalysisOptions
from condexp.data.dataset import Dataset
from condexp.data.loaders import Batches
from condexp.training.choices import ProbeMode, RunState, Source
from condexp.training.evaluate import Evaluator, build_loss
from condexp.training.learning_rate import constant
from condexp.training.loop import Outcome, Plan, Trainer
from condexp.training.optimizers import build_optimizer
from condexp.training.probe import draw_probe
from tests.from_conf import build, load
from tests.training.runs import Log

DIM, NUM_OUTPUTS, NUM_TRAIN = 5, 3, 40


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load(
        "gaussian",
        dim=DIM,
        num_train=NUM_TRAIN,
        num_test=8,
        num_outputs=NUM_OUTPUTS,
        condition_number=10.0,
    )


@pytest.fixture(scope="module")
def curvature(data: Dataset) -> tuple[Tensor, Tensor]:
    """Eigenvalues of the Hessian (2/C)·XᵀX/N, descending, and directions in columns."""
    inputs = data.train.inputs
    values, vectors = torch.linalg.eigh(2 / NUM_OUTPUTS * inputs.T @ inputs / NUM_TRAIN)
    return values.flip(0), vectors.flip(1)


def solution(data: Dataset) -> Tensor:
    """The weight [C, d] with loss 0."""
    weight: Tensor = torch.linalg.lstsq(data.train.inputs, data.train.targets).solution
    return weight.T


def descend(data: Dataset, start: Tensor, lr: float, num_steps: int) -> tuple[Tensor, Log, Outcome]:
    """Return the weight, the log and the outcome after some steps from ``start``."""
    model = build("linear", (DIM,), NUM_OUTPUTS, bias=False).double()
    with torch.no_grad():
        model.get_parameter("fc.weight").copy_(start)
    full = Batches(data.train, batch_size=None, shuffle=True, dtype=torch.float64)
    assert full.steps_per_epoch == 1
    loss_fn, log = build_loss(data.task), Log()
    outcome = Trainer(
        model=model,
        loss_fn=loss_fn,
        optimizer=build_optimizer("sgd", model.parameters(), lr=lr),
        learning_rate=constant(lr),
        batches=full,
        plan=Plan(num_steps, 1, (0,), (num_steps,)),
        options=AnalysisOptions(),
        source=Source.PROBE,
        probe=draw_probe(
            data,
            size=NUM_TRAIN,
            batch_size=NUM_TRAIN,
            mode=ProbeMode.EVAL,
            seed=0,
            dtype=torch.float64,
        ),
        evaluate=Evaluator(
            loss_fn,
            Batches(data.train, dtype=torch.float64),
            Batches(data.test, dtype=torch.float64),
        ),
    ).train([log])
    return model.get_parameter("fc.weight").detach(), log, outcome


@pytest.mark.parametrize("share", [0.3, 0.99, 1.01, 1.3])
def test_each_mode_contracts_exactly(
    data: Dataset, curvature: tuple[Tensor, Tensor], share: float
) -> None:
    values, vectors = curvature
    lr, num_steps = share * 2 / values[0].item(), 25
    start = torch.randn(NUM_OUTPUTS, DIM, generator=torch.Generator().manual_seed(1)).double()
    end, _, _ = descend(data, start, lr, num_steps)
    errors = [(weight - solution(data)) @ vectors for weight in (start, end)]
    # 25 steps of float64 rounding relative to the largest error on the way.
    torch.testing.assert_close(
        errors[1],
        errors[0] * (1 - lr * values) ** num_steps,
        rtol=1e-10,
        atol=1e-12 * max(1.0, (1 - lr * values).abs().max().item() ** num_steps),
    )


@pytest.mark.parametrize("share", [0.5, 0.99, 1.01, 1.5])
def test_diverges_iff_lr_exceeds_two_over_the_measured_lambda_max(
    data: Dataset, curvature: tuple[Tensor, Tensor], share: float
) -> None:
    values, vectors = curvature
    start = solution(data) + torch.outer(torch.ones(NUM_OUTPUTS).double(), vectors[:, 0])
    _, log, _ = descend(data, start, share * 2 / values[0].item(), 30)
    measured = log.snapshots[0].snapshot["fc"].input
    assert measured is not None
    lr_max = 2 / (2 / NUM_OUTPUTS * measured.lambda_max)
    lr = log.steps[0].lr
    losses = [record.loss for record in log.steps]
    diverges = all(later > earlier for earlier, later in pairwise(losses))
    assert diverges == (lr > lr_max) == (share > 1)
    # Along the top eigenvector alone the loss shrinks or grows by the same factor each step. Other
    # modes start from rounding, 1e-32 in the loss, and 0.99² leaves the loss above 1e-2.
    if share != 0.5:
        factor = (1 - lr * values[0].item()) ** 2
        assert losses[-1] == pytest.approx(losses[0] * factor**29, rel=1e-9)


def test_overflow_is_a_result(data: Dataset, curvature: tuple[Tensor, Tensor]) -> None:
    values, _ = curvature
    end, log, outcome = descend(
        data, torch.zeros(NUM_OUTPUTS, DIM).double(), 10 * 2 / values[0].item(), 400
    )
    assert outcome.state is RunState.DIVERGED
    # The loss grows by 19² a step and passes 1.8e308 after 308/log10(361) = 121 steps or so.
    assert 110 < outcome.num_steps_done < 130
    assert [record.step for record in log.steps] == list(range(outcome.num_steps_done + 1))
    assert math.isinf(log.steps[-1].loss)
    assert torch.isfinite(end).all()
    assert outcome.final is None
    assert log.evals == []
