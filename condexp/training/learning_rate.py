"""Learning rates as pure functions of the step."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

from condexp.training.optimizers import _require

LearningRate = Callable[[int], float]


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
