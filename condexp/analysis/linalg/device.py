"""Eigenvalues on a device whose float64 is fast: a stack a size, believed only if certified."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

FAST_FLOAT64 = frozenset({(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)})
"""CUDA's compute capabilities with float64 at half of float32's rate or more: those of data centres
(P100, V100, A100, H100, B200); it is 1/32 or less on others."""


def has_fast_float64(device: torch.device) -> bool:
    """Return whether float64 on a device is worth its time: products and eigenvalues alike.

    Args:
        device: Any device.

    Returns:
        False for the CPU too, which has rules of its own.
    """
    return device.type == "cuda" and _capability(device.index) in FAST_FLOAT64


@lru_cache
def _capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def solve_stacked(matrices: Sequence[Tensor]) -> list[Tensor | None]:
    """Solve matrices where they are, all of one size in one call.

    One version of a batched solver returned wrong values in silence (pytorch#192483): they are
    believed where Σλ is the trace and Σλ² is ‖·‖_F², as for :func:`.descending_eigenvalues`.

    Args:
        matrices: Symmetric, ``[groups, n, n]`` each, on one device.

    Returns:
        Eigenvalues ``[groups, n]`` of each, descending, float64 on the CPU; None where the solver
        failed or is not believed.
    """
    of_sizes: dict[int, list[int]] = {}
    for number, matrix in enumerate(matrices):
        of_sizes.setdefault(matrix.shape[-1], []).append(number)
    solved: dict[int, Tensor] = {}
    for numbers in of_sizes.values():
        stack = torch.cat([matrices[number] for number in numbers]).double()
        try:
            values = torch.linalg.eigvalsh(stack, UPLO="U").flip(-1)
        except RuntimeError:  # torch.linalg.LinAlgError is one; so is a lack of memory
            continue
        values = torch.where(_is_certified(stack, values)[:, None], values, torch.nan)
        parts = torch.split(values, [len(matrices[number]) for number in numbers])
        solved |= dict(zip(numbers, parts, strict=True))
    on_cpu = dict(zip(solved, fetched(list(solved.values())), strict=True))
    found = (on_cpu.get(number) for number in range(len(matrices)))
    return [None if each is None or bool(each.isnan().any()) else each for each in found]


def solver_error(side: int) -> float:
    """Return the error of √Σλ², relative to ‖·‖_F, up to which a solver is believed.

    Args:
        side: Side of the matrix. Σλ may be √side times as far from the trace.
    """
    return 1e-12 * max(side, 8)


def upper_norms(matrices: Tensor) -> Tensor:
    """Return ‖·‖_F of what solvers read: the upper triangle, as if the lower were its mirror image.

    A product XᵀX is symmetric up to its own rounding, which may be float32's: on some processors
    the entries i, j and j, i are summed in different orders.

    Args:
        matrices: ``[..., n, n]`` float64.

    Returns:
        ``[...]``.
    """
    above = torch.linalg.vector_norm(matrices.triu(1), dim=(-2, -1))
    diagonal = torch.linalg.vector_norm(matrices.diagonal(dim1=-2, dim2=-1), dim=-1)
    return torch.hypot(math.sqrt(2) * above, diagonal)


def _is_certified(matrices: Tensor, values: Tensor) -> Tensor:
    side = values.shape[-1]
    norms = upper_norms(matrices)
    allowed = solver_error(side) * norms
    traces = matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
    fits: Tensor = (torch.linalg.vector_norm(values, dim=-1) - norms).abs() <= allowed
    sums: Tensor = (values.sum(-1) - traces).abs() <= allowed * math.sqrt(side)
    return fits.logical_and(sums)


def fetched(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Bring tensors to the CPU, all of one type in one transfer, for each waits for the device.

    Args:
        tensors: On any device.

    Returns:
        The same values on the CPU; what is there already is returned as it is.
    """
    found = dict(enumerate(tensors))
    away = {number: each for number, each in found.items() if each.device.type != "cpu"}
    for dtype in dict.fromkeys(each.dtype for each in away.values()):
        some = {number: each for number, each in away.items() if each.dtype == dtype}
        found |= dict(zip(some, _in_one_transfer(list(some.values())), strict=True))
    return list(found.values())


def _in_one_transfer(tensors: Sequence[Tensor]) -> list[Tensor]:
    whole = torch.cat([each.flatten() for each in tensors]).cpu()
    parts = torch.split(whole, [each.numel() for each in tensors])
    return [part.view(each.shape) for part, each in zip(parts, tensors, strict=True)]
