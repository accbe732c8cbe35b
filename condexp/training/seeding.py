"""Randomness: one seed for everything, and private streams that nothing else can disturb."""

import hashlib
import os
import random

import numpy as np
import torch

from condexp.errors import InputError

# numpy's legacy generator takes no larger seed.
MAX_SEED = 2**32 - 1


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch (all devices), numpy and Python.

    Args:
        seed: From 0 to 2³² − 1.

    Raises:
        InputError: If the seed is outside that range.
    """
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed is {seed}: it must lie between 0 and {MAX_SEED}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make_generator(seed: int, *stream: int | str) -> torch.Generator:
    """Return a generator on the CPU whose numbers depend on the seed and the stream's name alone.

    Args:
        seed: The run's seed.
        stream: What the numbers are for, such as ``"probe"`` or ``("epoch", 3)``; other names give
            independent numbers.

    Returns:
        A fresh generator, seeded by SHA-256 of the arguments.

    >>> first, again, other = (
    ...     torch.rand(1, generator=make_generator(7, "order", epoch)) for epoch in (0, 0, 1)
    ... )
    >>> bool(first == again), bool(first == other)
    (True, False)
    """
    # repr keeps 1 and "1" apart.
    digest = hashlib.sha256(repr((seed, *stream)).encode()).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return generator


def deterministic(enabled: bool) -> None:
    """Make torch use deterministic algorithms only, and raise where there is none.

    On the CPU the same seed gives the same bytes either way. On a GPU this costs speed, and has to
    come before the first matrix product, where cuBLAS reads its workspace setting.

    Args:
        enabled: Switch on (True) or back to torch's default (False).
    """
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(enabled)
    torch.backends.cudnn.deterministic = enabled
    torch.backends.cudnn.benchmark = False
    # By default torch then also fills new memory with NaN, which costs 5 % of a ResNet's step.
    torch.utils.deterministic.fill_uninitialized_memory = (  # type: ignore[attr-defined]
        not enabled
    )
