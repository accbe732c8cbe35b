"""Optimizers by name, and their step lengths."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from condexp.errors import InputError, choose

OPTIMIZERS = ("sgd", "adam", "adamw")
_ADAMS: dict[str, type[torch.optim.Adam]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


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


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Let the optimizer's next update use this learning rate.

    Args:
        optimizer: Its parameter groups are changed in place.
        lr: The learning rate of all groups; a group's ``lr_scale`` is a factor of it.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


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
