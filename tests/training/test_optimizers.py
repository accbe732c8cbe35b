"""Optimizers carry out their formulas; learning rates are exact functions of the step."""

import pytest
import torch
from torch import Tensor, nn

from condexp.errors import InputError
from condexp.training.optimizers import (
    build_optimizer,
    constant,
    multistep,
    set_learning_rate,
    steady_learning_rate,
)


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))


def updates(optimizer: torch.optim.Optimizer, weights: nn.Parameter, num_steps: int) -> Tensor:
    """Descend on ½‖w‖², whose gradient is w."""
    for _ in range(num_steps):
        weights.grad = weights.detach().clone()
        optimizer.step()
    return weights.detach()


def test_sgd_with_momentum_and_decay_by_hand() -> None:
    weights, lr, momentum, decay = parameter(), 0.1, 0.9, 0.05
    optimizer = build_optimizer("sgd", [weights], lr=lr, momentum=momentum, weight_decay=decay)
    result = updates(optimizer, weights, 3)
    expected, velocity = parameter().detach(), torch.zeros(2, dtype=torch.float64)
    for _ in range(3):
        velocity = momentum * velocity + (1 + decay) * expected
        expected = expected - lr * velocity
    # A few float64 roundings of numbers of order 1.
    torch.testing.assert_close(result, expected, rtol=1e-14, atol=0)


def test_nesterov_by_hand() -> None:
    weights, lr, momentum = parameter(), 0.1, 0.5
    result = updates(
        build_optimizer("sgd", [weights], lr=lr, momentum=momentum, nesterov=True), weights, 2
    )
    expected, velocity = parameter().detach(), torch.zeros(2, dtype=torch.float64)
    for _ in range(2):
        gradient = expected
        velocity = momentum * velocity + gradient
        expected = expected - lr * (gradient + momentum * velocity)
    torch.testing.assert_close(result, expected, rtol=1e-14, atol=0)


def test_adam_moves_by_the_learning_rate_at_first() -> None:
    weights = parameter()
    optimizer = build_optimizer("adam", [weights], lr=0.01, eps=0.0)
    # Bias-corrected moments of one gradient g: g / √g² = sign(g).
    expected = torch.tensor([1.0 - 0.01, -2.0 + 0.01], dtype=torch.float64)
    torch.testing.assert_close(updates(optimizer, weights, 1), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "sdg"}, "unknown optimizer 'sdg': allowed are sgd, adam. Did you mean 'sgd'?"),
        ({"lr": -1.0}, "lr is -1.0: it must be a positive number"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"momentum": 1.0}, r"momentum is 1.0: it must be in \[0, 1\)"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"nesterov": True}, "nesterov is True: it must be false where momentum is 0"),
        ({"name": "adam", "momentum": 0.9}, "0 for adam; only sgd has momentum"),
        ({"name": "adam", "nesterov": True}, "false for adam"),
        ({"name": "adam", "betas": (0.9, 1.0)}, "betas is"),
        ({"name": "adam", "eps": -1.0}, "eps is -1.0"),
    ],
)
def test_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        build_optimizer(**({"name": "sgd", "params": [parameter()], "lr": 0.1} | arguments))  # type: ignore[arg-type]


def test_constant_rate() -> None:
    assert [constant(0.3)(step) for step in (0, 1, 10**6)] == [0.3, 0.3, 0.3]


def test_multistep_equals_torch() -> None:
    steps_per_epoch, milestones, gamma = 3, [2, 5], 0.1
    optimizer = torch.optim.SGD([parameter()], lr=0.8)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma)
    ours = multistep(0.8, milestones=milestones, gamma=gamma, steps_per_epoch=steps_per_epoch)
    for epoch in range(8):
        for step in range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch):
            # torch multiplies by gamma one milestone after the other: one rounding each.
            assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-15)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("milestones", [[3, 2], [2, 2], [0]])
def test_multistep_refuses_milestones(milestones: list[int]) -> None:
    with pytest.raises(InputError, match="it must be ascending epochs from 1 on"):
        multistep(0.1, milestones=milestones, gamma=0.1, steps_per_epoch=1)


def test_multistep_refuses_gamma() -> None:
    with pytest.raises(InputError, match="gamma is 0"):
        multistep(0.1, milestones=[1], gamma=0, steps_per_epoch=1)


def test_steady_learning_rate_is_the_drift_under_a_constant_gradient() -> None:
    weights = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = build_optimizer("sgd", [weights], lr=1.0, momentum=0.75)
    set_learning_rate(optimizer, 0.5)
    assert steady_learning_rate(optimizer) == 2.0
    before = 0.0
    for _ in range(200):
        before = weights.item()
        weights.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
    # 0.75^200 = 1e-25 of the start is left.
    assert before - weights.item() == pytest.approx(2.0, rel=1e-12)


def test_adam_has_no_steady_learning_rate() -> None:
    assert steady_learning_rate(build_optimizer("adam", [parameter()], lr=0.1)) is None
