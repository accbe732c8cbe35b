"""Optimizers, and learning rates as pure functions of the step."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from condexp.errors import InputError, choose

OPTIMIZERS = ("sgd", "adam", "adamw")
_ADAMS: dict[str, type[torch.optim.Adam]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}

LearningRate = Callable[[int], float]
"""The learning rate of each 0-based step."""


def build_optimizer(
    name: str,
    params: Iterable[nn.Parameter],
    *,
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    nesterov: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """Return an optimizer over the parameters, its arguments checked.

    Args:
        name: ``sgd``, ``adam`` or ``adamw``.
        params: The parameters to train.
        lr: Learning rate of the first step, > 0.
        weight_decay: Factor of ``w`` added to the gradient, ≥ 0; for AdamW, whose decay is
            decoupled (Loshchilov & Hutter 2019, algorithm 2), ``lr · weight_decay · w`` is
            subtracted from ``w`` itself.
        momentum: SGD's heavy-ball momentum, in [0, 1).
        nesterov: Nesterov's form of that momentum.
        betas: Adam's decay rates of the first and second moment, in [0, 1).
        eps: Adam's addend to the root of the second moment, ≥ 0.

    Returns:
        ``torch.optim.SGD``, ``torch.optim.Adam`` or ``torch.optim.AdamW``.

    Raises:
        InputError: If the name is unknown, a number is out of its range, or momentum is asked of an
            optimizer that has none.
    """
    choose("optimizer", name, OPTIMIZERS)
    _require(lr > 0 and math.isfinite(lr), "lr", lr, "a positive number")
    _require(0 <= momentum < 1, "momentum", momentum, "in [0, 1)")
    _require(weight_decay >= 0, "weight_decay", weight_decay, "at least 0")
    if name in _ADAMS:
        _require(momentum == 0, "momentum", momentum, f"0 for {name}; only sgd has momentum")
        _require(not nesterov, "nesterov", nesterov, f"false for {name}; only sgd has momentum")
        good_betas = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
        _require(good_betas, "betas", betas, "two numbers in [0, 1)")
        _require(eps >= 0, "eps", eps, "at least 0")
        return _ADAMS[name](params, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps)
    _require(not nesterov or momentum > 0, "nesterov", nesterov, "false where momentum is 0")
    return torch.optim.SGD(
        params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
    )


def constant(lr: float) -> LearningRate:
    """Return the same learning rate at every step.

    Args:
        lr: The learning rate.

    Returns:
        Function from the step to ``lr``.
    """
    return lambda _step: lr


def multistep(
    lr: float, *, milestones: Sequence[int], gamma: float, steps_per_epoch: int
) -> LearningRate:
    """Return a learning rate that is multiplied by ``gamma`` at each milestone.

    At step s: ``lr · gamma^#{milestones ≤ ⌊s / steps_per_epoch⌋}``.

    Args:
        lr: Learning rate of the first epoch.
        milestones: Epochs that start with a new learning rate, ascending, counted from 0.
        gamma: The factor, > 0.
        steps_per_epoch: Updates in an epoch.

    Returns:
        Function from the step to the learning rate.

    Raises:
        InputError: If the milestones do not ascend from 1 on, or gamma is not positive.

    >>> rate = multistep(1.0, milestones=[2], gamma=0.5, steps_per_epoch=10)
    >>> rate(19), rate(20)
    (1.0, 0.5)
    """
    epochs = list(milestones)
    _require(
        epochs == sorted(set(epochs)) and all(epoch >= 1 for epoch in epochs),
        "milestones",
        epochs,
        "ascending epochs from 1 on",
    )
    _require(gamma > 0 and math.isfinite(gamma), "gamma", gamma, "a positive number")
    return lambda step: lr * gamma ** bisect_right(epochs, step // steps_per_epoch)


def cosine(lr: float, *, num_steps: int) -> LearningRate:
    """Return a learning rate that falls to 0 over the whole run, along half a cosine.

    At step s of T: ``lr · (1 + cos(π·s/T)) / 2``: full at step 0, 0 after the last step (Loshchilov
    & Hutter 2017, equation 5, without restarts).

    Args:
        lr: Learning rate of the first step.
        num_steps: T, the number of updates of the run.

    Returns:
        Function from the step to the learning rate.

    Raises:
        InputError: If the run has no step.

    >>> rate = cosine(1.0, num_steps=2)
    >>> rate(0), round(rate(1), 12)
    (1.0, 0.5)
    """
    _require(num_steps >= 1, "num_steps", num_steps, "at least 1")
    return lambda step: lr * (1 + math.cos(math.pi * step / num_steps)) / 2


def warmed_up(rate: LearningRate, num_steps: int) -> LearningRate:
    """Return a learning rate that rises linearly at first: ``rate(s) · min(1, (s + 1) / n)``.

    The first step takes 1/n of what the schedule says, step n − 1 all of it. Where the schedule
    changes meanwhile, the two are multiplied (Goyal et al. 2017, section 2.2).

    Args:
        rate: The schedule, which continues below the warm-up.
        num_steps: n, the steps of the warm-up; 0 for none.

    Returns:
        Function from the step to the learning rate.

    Raises:
        InputError: If the number of steps is negative.

    >>> [warmed_up(constant(1.0), 4)(step) for step in (0, 1, 3, 4)]
    [0.25, 0.5, 1.0, 1.0]
    """
    _require(num_steps >= 0, "warmup_steps", num_steps, "at least 0")
    if num_steps == 0:
        return rate
    return lambda step: rate(step) * min(1.0, (step + 1) / num_steps)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Let the optimizer's next update use this learning rate.

    Args:
        optimizer: Its parameter groups are changed in place.
        lr: The learning rate of all groups.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr


def steady_learning_rate(optimizer: torch.optim.Optimizer) -> float | None:
    """Return the learning rate with momentum taken into account: ``lr / (1 − momentum)``.

    A constant gradient moves the weights that far a step in the long run.

    Args:
        optimizer: Any optimizer.

    Returns:
        The rate of the first parameter group, or None for optimizers other than SGD, whose step
        is not a multiple of the gradient.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return None
    group = optimizer.param_groups[0]
    return float(group["lr"]) / (1.0 - float(group["momentum"]))


def _require(holds: bool, name: str, given: object, allowed: str) -> None:
    if not holds:
        raise InputError(f"{name} is {given}: it must be {allowed}")
