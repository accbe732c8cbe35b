"""Slow, obvious float64 oracles: loops over samples, positions and pixels, dense matrices."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def mean_second_moment(rows: Tensor, *, center: bool = False) -> Tensor:
    """Theory §3 `input`: 1/(N·T) Σ_{n,t} r rᵀ (− m mᵀ). rows [N, T, d] → [d, d]."""
    rows = rows.detach().double().cpu()
    num_samples, num_positions, d = rows.shape
    total = torch.zeros(d, d, dtype=torch.float64)
    mean = torch.zeros(d, dtype=torch.float64)
    for n, t in itertools.product(range(num_samples), range(num_positions)):
        total += torch.outer(rows[n, t], rows[n, t])
        mean += rows[n, t]
    total /= num_samples * num_positions
    mean /= num_samples * num_positions
    return total - torch.outer(mean, mean) if center else total


def sum_second_moment(rows: Tensor, *, center: bool = False) -> Tensor:
    """Theory §3 `grad_output`: 1/N Σ_n Σ_t r rᵀ (− T·m mᵀ). rows [N, T, d] → [d, d]."""
    return rows.shape[1] * mean_second_moment(rows, center=center)


def pad_image(image: Tensor, before: Sequence[int], after: Sequence[int], mode: str) -> Tensor:
    """Pad [C, H, W] pixel by pixel; before and after are (vertical, horizontal)."""
    channels, height, width = image.shape
    padded = torch.zeros(
        channels,
        before[0] + height + after[0],
        before[1] + width + after[1],
        dtype=image.dtype,
    )
    for row, column in itertools.product(range(padded.shape[1]), range(padded.shape[2])):
        source_row = _source(row - before[0], height, mode)
        source_column = _source(column - before[1], width, mode)
        if source_row is not None and source_column is not None:
            padded[:, row, column] = image[:, source_row, source_column]
    return padded


def _source(index: int, size: int, mode: str) -> int | None:
    """Where a padded pixel is copied from; None: it is 0."""
    if 0 <= index < size:
        return index
    if mode == "zeros":
        return None
    if mode == "replicate":
        return min(max(index, 0), size - 1)
    if mode == "circular":
        return index % size
    if mode == "reflect":
        return -index if index < 0 else 2 * (size - 1) - index
    raise ValueError(mode)


def conv_patches(
    inputs: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
) -> Tensor:
    """Every window of a convolution, pixel by pixel: [N, C, H, W] → [groups, N, T, d]."""
    totals = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    if padding == "same":
        before, after = [t // 2 for t in totals], [t - t // 2 for t in totals]
    elif padding == "valid":
        before = after = [0, 0]
    else:
        before = after = [int(amount) for amount in padding]
    inputs = inputs.detach().double().cpu()
    images = torch.stack([pad_image(image, before, after, padding_mode) for image in inputs])
    size = images.shape[2:]
    tops = range(0, size[0] - totals[0], stride[0])
    lefts = range(0, size[1] - totals[1], stride[1])
    block = images.shape[1] // groups
    d = block * kernel_size[0] * kernel_size[1]
    patches = torch.zeros(groups, len(images), len(tops) * len(lefts), d, dtype=torch.float64)
    for group in range(groups):
        for t, (top, left) in enumerate(itertools.product(tops, lefts)):
            offsets = itertools.product(range(block), range(kernel_size[0]), range(kernel_size[1]))
            for feature, (c, i, j) in enumerate(offsets):
                row, column = top + dilation[0] * i, left + dilation[1] * j
                patches[group, :, t, feature] = images[:, group * block + c, row, column]
    return patches


def eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues of a symmetric matrix, descending."""
    ascending: Tensor = torch.linalg.eigvalsh(matrix.detach().double().cpu())
    return ascending.flip(-1)


def kronecker_eigenvalues(a: Tensor, b: Tensor) -> Tensor:
    """Eigenvalues of the dense A ⊗ B, descending."""
    return eigenvalues(torch.kron(a.detach().double().cpu(), b.detach().double().cpu()))


def kronecker_products(a: Tensor, b: Tensor) -> Tensor:
    """All products of the eigenvalues a[g, i]·b[g, j], united over g, descending."""
    products = [x * y for block, other in zip(a, b, strict=True) for x in block for y in other]
    return torch.tensor([float(p) for p in products], dtype=torch.float64).sort(descending=True)[0]


def kappa(values: Tensor, p: float) -> float:
    """λ_1 / λ_k(p) of descending eigenvalues in which zeros are exact."""
    index = min(len(values), max(1, math.ceil(p * len(values) * (1 - 1e-12))))
    chosen = float(values[index - 1])
    return float(values[0]) / chosen if chosen > 0 else math.inf


def measures(values: Tensor) -> dict[str, float]:
    """The measures of docs/theory.md §4 of descending eigenvalues in which zeros are exact."""
    numbers = [float(value) for value in values]
    positive = [number for number in numbers if number > 0]
    total = math.fsum(numbers)
    shares = [number / total for number in positive]
    return {
        "lambda_max": numbers[0],
        "lambda_min": numbers[-1],
        "trace": total,
        "rank": float(len(positive)),
        "kappa_rank": positive[0] / positive[-1],
        "effective_rank": math.exp(-math.fsum(share * math.log(share) for share in shares)),
        "stable_rank": total / numbers[0],
    }
