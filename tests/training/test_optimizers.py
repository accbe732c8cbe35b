"""Optimizers carry out their formulas; learning rates are exact functions of the step."""

import math

import pytest
import torch
from torch import Tensor, nn

from condexp.errors import InputError
from condexp.training.learning_rate import constant, cosine, multistep, warmed_up
from condexp.training.optimizers import build_optimizer, set_learning_rate, steady_learning_rate


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


def test_adamw_by_hand() -> None:
    """Loshchilov & Hutter 2019, algorithm 2: the decay goes past the moments."""
    weights, lr, decay, betas, eps = parameter(), 0.01, 0.3, (0.8, 0.95), 1e-3
    optimizer = build_optimizer("adamw", [weights], lr=lr, weight_decay=decay, betas=betas, eps=eps)
    result = updates(optimizer, weights, 3)
    expected = parameter().detach()
    first, second = torch.zeros_like(expected), torch.zeros_like(expected)
    for step in (1, 2, 3):
        gradient = expected
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient.square()
        corrected = first / (1 - betas[0] ** step), second / (1 - betas[1] ** step)
        expected = expected - lr * (corrected[0] / (corrected[1].sqrt() + eps) + decay * expected)
    # A few float64 roundings of numbers of order 1.
    torch.testing.assert_close(result, expected, rtol=1e-14, atol=0)


def test_adamw_is_torchs_and_not_adam() -> None:
    ours, theirs, adam = parameter(), parameter(), parameter()
    setting = {"lr": 0.05, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-6}
    result = updates(build_optimizer("adamw", [ours], **setting), ours, 4)  # type: ignore[arg-type]
    reference = updates(torch.optim.AdamW([theirs], **setting), theirs, 4)  # type: ignore[arg-type]
    assert torch.equal(result, reference)
    coupled = updates(build_optimizer("adam", [adam], **setting), adam, 4)  # type: ignore[arg-type]
    assert not torch.allclose(result, coupled)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "sdg"},
            "unknown optimizer 'sdg': allowed are sgd, adam, adamw. Did you mean 'sgd'?",
        ),
        ({"lr": -1.0}, "lr is -1.0: it must be a positive number"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"momentum": 1.0}, r"momentum is 1.0: it must be in \[0, 1\)"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"nesterov": True}, "nesterov is True: it must be false where momentum is 0"),
        ({"name": "adam", "momentum": 0.9}, "0 for adam; only sgd has momentum"),
        ({"name": "adam", "nesterov": True}, "false for adam"),
        ({"name": "adam", "betas": (0.9, 1.0)}, "betas is"),
        ({"name": "adam", "eps": -1.0}, "eps is -1.0"),
        ({"name": "adamw", "momentum": 0.9}, "0 for adamw; only sgd has momentum"),
        ({"name": "adamw", "betas": (-0.1, 0.9)}, "betas is"),
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


def test_cosine_by_hand() -> None:
    rate = cosine(0.4, num_steps=6)
    # cos of multiples of 30°; a rounding or two of numbers of order 1.
    root = math.sqrt(3) / 2
    expected = [0.2 * (1 + c) for c in (1, root, 0.5, 0, -0.5, -root)]
    assert [rate(step) for step in range(6)] == pytest.approx(expected, rel=1e-14)
    assert rate(0) == 0.4
    assert rate(6) == 0


def test_cosine_equals_torch() -> None:
    num_steps = 50
    optimizer = torch.optim.SGD([parameter()], lr=0.8)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=num_steps)
    ours = cosine(0.8, num_steps=num_steps)
    for step in range(num_steps):
        # torch multiplies step by step, so its roundings add up: 50 · 1e-16, relative to lr.
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-14)
        optimizer.step()
        theirs.step()


def test_cosine_of_a_single_step_is_constant() -> None:
    assert cosine(0.3, num_steps=1)(0) == 0.3
    with pytest.raises(InputError, match="num_steps is 0: it must be at least 1"):
        cosine(0.3, num_steps=0)


def test_warm_up_rises_from_a_fraction_to_the_full_rate() -> None:
    rate = warmed_up(constant(2.0), 4)
    assert [rate(step) for step in (0, 1, 2, 3, 4, 10**6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_warm_up_multiplies_what_the_schedule_does_meanwhile() -> None:
    halving = multistep(1.0, milestones=[1], gamma=0.5, steps_per_epoch=2)
    rate = warmed_up(halving, 4)
    assert [rate(step) for step in range(6)] == [0.25, 0.5, 0.375, 0.5, 0.5, 0.5]
    falling = cosine(1.0, num_steps=8)
    rate = warmed_up(falling, 4)
    assert [rate(step) / falling(step) for step in range(6)] == pytest.approx(
        [0.25, 0.5, 0.75, 1, 1, 1], rel=1e-15
    )


def test_no_warm_up() -> None:
    falling = cosine(1.0, num_steps=8)
    assert warmed_up(falling, 0) is falling
    assert [warmed_up(falling, 1)(step) for step in range(8)] == [falling(s) for s in range(8)]
    with pytest.raises(InputError, match="warmup_steps is -1: it must be at least 0"):
        warmed_up(falling, -1)


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


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_has_no_steady_learning_rate(name: str) -> None:
    assert steady_learning_rate(build_optimizer(name, [parameter()], lr=0.1)) is None
