"""Randomness: one seed for everything, and private streams that nothing else can disturb."""

import hashlib
import os
import random
from collections.abc import Mapping
from typing import Any

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


def random_state() -> dict[str, Any]:
    """Return the state of every global generator that training can draw from.

    Returns:
        Tensors and plain values: Python's, numpy's, torch's on the CPU, and torch's on the CUDA
        devices and the MPS device, where they are in use.
    """
    version, internal, gauss_next = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": {
            "version": version,
            "internal": torch.tensor(internal),
            "gauss_next": gauss_next,
        },
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached_gaussian": float(cached),
        },
        "torch": torch.get_rng_state(),
        # Asking a GPU that nobody uses would start it.
        "cuda": torch.cuda.get_rng_state_all() if _cuda_in_use() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set every global generator to a state; devices that are not here are left out.

    Args:
        state: As :func:`random_state` gave it.
    """
    python, numpy = state["python"], state["numpy"]
    internal = tuple(python["internal"].tolist())
    random.setstate((python["version"], internal, python["gauss_next"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    drawn = (numpy["position"], numpy["has_gauss"], numpy["cached_gaussian"])
    np.random.set_state(("MT19937", keys, *drawn))
    torch.set_rng_state(state["torch"])
    for index, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(device_state, index)
    if state["mps"] is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


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


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
