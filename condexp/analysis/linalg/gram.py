"""Gram matrices of per-sample weight gradients, formed or not (``docs/theory.md`` §3)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from condexp.analysis.linalg.products import CHUNK_ROWS, added
from condexp.analysis.linalg.rows.dense import DenseRows

RowLoader = Callable[[slice], Tensor]
"""From a slice of samples to their rows, ``[groups, n, T, d]``: laid out where they are used."""

WORKING_NUMBERS = 1 << 24
"""Numbers in one working array, unless less memory is allowed."""
_LAID_OUT = 1 << 20  # numbers laid out at once: they should stay in the cache
_PAIRS = 1 << 22  # products of two positions at once
_COST_OF_PAIR = 8  # multiplying and summing a pair of products, in flops of a matrix product


@dataclass(frozen=True)
class GradientShape:
    """Sizes of one layer's rows.

    Args:
        groups: Number of separate blocks.
        positions: Number T of rows that a sample contributes.
        d_in: Length of a row a.
        d_out: Length of a row g in one group.
    """

    groups: int
    positions: int
    d_in: int
    d_out: int

    @property
    def num_weights(self) -> int:
        """d, the length of vec(G)."""
        return self.groups * self.d_out * self.d_in


@dataclass(frozen=True, eq=False)
class Batch:
    """The rows of which the gradients G_ns = Σ_t g_s aᵀ of some samples are made.

    Args:
        shape: Sizes of the rows.
        num_samples: Number N of samples.
        inputs: Loader of the rows a.
        signals: Loaders of the rows g, one for each back-propagation.
    """

    shape: GradientShape
    num_samples: int
    inputs: RowLoader
    signals: tuple[RowLoader, ...]

    @property
    def num_rows(self) -> int:
        """Gradients: one for each signal and sample."""
        return len(self.signals) * self.num_samples


@dataclass(frozen=True, eq=False)
class Grams:
    """Both sides of the matrix J of gradients ``[rows, d]``.

    Args:
        rows: Matrix J Jᵀ, float64.
        weights: Matrix Jᵀ J, float64; None where it is no smaller.
    """

    rows: Tensor
    weights: Tensor | None

    @property
    def smaller(self) -> Tensor:
        """The side of length min(rows, d)."""
        return self.rows if self.weights is None else self.weights


def form_gradients(
    batch: Batch, signal: int, dtype: torch.dtype, channels: slice = slice(None)
) -> Tensor:
    """Form the gradients of all samples for one signal.

    Args:
        batch: The samples.
        signal: Index of the signal.
        dtype: Working precision.
        channels: The outputs of each group whose weights count.

    Returns:
        ``[N, d]``, d fewer with ``channels``; a row is vec(G) by group, output and input.
    """
    shape, formed = batch.shape, []
    at_once = max(1, _LAID_OUT // (shape.groups * shape.positions * shape.d_in))
    for start in range(0, batch.num_samples, at_once):
        part = slice(start, min(start + at_once, batch.num_samples))
        inputs = batch.inputs(part).to(dtype)
        grads = batch.signals[signal](part)[..., channels].to(dtype)
        formed.append((grads.mT @ inputs).movedim(0, 1).flatten(1))
    return torch.cat(formed)


def grams_of_gradients(gradients: Tensor, dtype: torch.dtype) -> Grams:
    """Multiply gradients that are formed.

    Args:
        gradients: Matrix J, ``[rows, d]``.
        dtype: Working precision.

    Returns:
        Both sides.
    """
    num_rows, num_weights = gradients.shape
    weights = None
    if num_rows > num_weights:
        # Drawn labels repeat rows, whose rounding adds up in one long product: 2000 rows of float64
        # erred by 18 eps where the noise floor of 12 weights is 16 eps (MKL with AVX2).
        size = CHUNK_ROWS if dtype == torch.float64 else num_rows
        weights = added(
            DenseRows(part[None]).products(dtype)[0] for part in torch.split(gradients, size)
        )
    return Grams(_row_gram(gradients, dtype), weights)


def grams(batches: Sequence[Batch], dtype: torch.dtype, budget: int = WORKING_NUMBERS) -> Grams:
    """Multiply the gradients of all samples, the cheaper way: formed, or as ghosts.

    Rows are ordered by batch, signal and sample. Ghost products ⟨G_n, G_m⟩ =
    Σ_{t,s} (a_nt·a_ms)(g_nt·g_ms) are taken in float64 whatever the working precision: their error
    is relative to the sum's terms, which may cancel.

    Args:
        batches: The samples; same ``groups``, ``d_in``, ``d_out`` and number of signals.
        dtype: Working precision of formed gradients.
        budget: Count of numbers that a working array may hold (it holds one output's, or one
            pair's, at least).

    Returns:
        Both sides.
    """
    num_rows, num_weights = sum(batch.num_rows for batch in batches), batches[0].shape.num_weights
    if num_rows > num_weights:
        return grams_of_gradients(_all_gradients(batches, dtype, slice(None)), dtype)
    if _ghosts_are_cheaper(batches, dtype):
        return Grams(_ghost_gram(batches, budget), None)
    shape = batches[0].shape
    step = max(1, min(shape.d_out, budget // (num_rows * shape.groups * shape.d_in)))
    total = sum(
        _row_gram(_all_gradients(batches, dtype, slice(start, start + step)), dtype)
        for start in range(0, shape.d_out, step)
    )
    assert isinstance(total, Tensor)
    return Grams(total, None)


def _row_gram(gradients: Tensor, dtype: torch.dtype) -> Tensor:
    return DenseRows(gradients[None]).gram(dtype)[0].double()


def _all_gradients(batches: Sequence[Batch], dtype: torch.dtype, channels: slice) -> Tensor:
    formed = [
        form_gradients(batch, signal, dtype, channels)
        for batch in batches
        for signal in range(len(batch.signals))
    ]
    return torch.cat(formed) if len(formed) > 1 else formed[0]


@dataclass(frozen=True)
class ProductFlops:
    """Operations of the two ways to multiply gradients.

    Args:
        formed: Of gradients that are formed.
        ghosts: Of products of rows; infinite where there are more gradients than weights.
    """

    formed: float
    ghosts: float

    @property
    def cheapest(self) -> float:
        """Those of the cheaper way."""
        return min(self.formed, self.ghosts)


def product_flops(
    groups: int, d_in: int, d_out: int, *, num_rows: int, of_inputs: int, of_grads: int
) -> ProductFlops:
    """Count the operations of all products of a layer's gradients.

    Args:
        groups: Number of separate blocks.
        d_in: Length of a row a.
        d_out: Length of a row g in one group.
        num_rows: Number of gradients.
        of_inputs: Number of rows a.
        of_grads: Number of rows g.

    Returns:
        The operations.
    """
    num_weights = groups * d_out * d_in
    formed = 2.0 * of_grads * num_weights + 2.0 * num_rows**2 * num_weights
    if num_rows > num_weights:  # both sides are wanted
        return ProductFlops(formed + 2.0 * num_rows * num_weights**2, math.inf)
    pairs = 2.0 * of_inputs**2 * d_in + float(of_grads) ** 2 * (2 * d_out + _COST_OF_PAIR)
    return ProductFlops(formed, groups * pairs)


def _ghosts_are_cheaper(batches: Sequence[Batch], dtype: torch.dtype) -> bool:
    """Return which way has fewer flops; those in float64 count twice."""
    shape = batches[0].shape
    flops = product_flops(
        shape.groups,
        shape.d_in,
        shape.d_out,
        num_rows=sum(batch.num_rows for batch in batches),
        of_inputs=sum(batch.num_samples * batch.shape.positions for batch in batches),
        of_grads=sum(batch.num_rows * batch.shape.positions for batch in batches),
    )
    return flops.ghosts * (1 if dtype == torch.float64 else 2) < flops.formed


@dataclass(frozen=True, eq=False)
class _Block:
    """Some samples of a batch, and where their gradients stand in the Gram matrix."""

    batch: Batch
    part: slice
    first_row: int

    def indices(self) -> Tensor:
        """Return the rows of the Gram matrix, by signal and sample."""
        starts = torch.arange(len(self.batch.signals)) * self.batch.num_samples
        samples = torch.arange(self.part.start, self.part.stop)
        return (self.first_row + starts[:, None] + samples).flatten()


def _blocks(batches: Sequence[Batch], budget: int) -> Iterator[_Block]:
    first_rows = [0]
    for batch in batches:
        first_rows.append(first_rows[-1] + batch.num_rows)
    side = int(min(_PAIRS, budget) ** 0.5)
    for batch, (first_row, _) in zip(batches, pairwise(first_rows), strict=True):
        shape = batch.shape
        at_once = min(
            side // (len(batch.signals) * shape.positions),
            budget // (shape.groups * shape.positions * shape.d_in),
        )
        at_once = max(1, at_once)
        for start in range(0, batch.num_samples, at_once):
            part = slice(start, min(start + at_once, batch.num_samples))
            yield _Block(batch, part, first_row)


def _ghost_gram(batches: Sequence[Batch], budget: int) -> Tensor:
    blocks = list(_blocks(batches, budget))
    laid_out = _lay_out(blocks[0])
    side, device = sum(batch.num_rows for batch in batches), laid_out[0].device
    total = torch.zeros(side, side, dtype=torch.float64, device=device)
    for number, block in enumerate(blocks):
        left = laid_out if number == 0 else _lay_out(block)
        rows = block.indices().to(device)
        for other in blocks[: number + 1]:
            right = left if other is block else _lay_out(other)
            product, columns = _ghost_products(left, right), other.indices().to(device)
            total[rows[:, None], columns] = product
            total[columns[:, None], rows] = product.mT
    return total


def _lay_out(block: _Block) -> tuple[Tensor, Tensor]:
    """Return a ``[groups, n, T, d_in]`` and g ``[groups, signals, n, T, d_out]`` in float64."""
    grads = [signal(block.part) for signal in block.batch.signals]
    return block.batch.inputs(block.part).double(), torch.stack(grads, 1).double()


def _ghost_products(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> Tensor:
    """Return ⟨G, G'⟩ of two blocks of samples, ``[signals·n, signals·m]``, summed over groups."""
    (n, positions), (m, others) = left[0].shape[1:3], right[0].shape[1:3]
    total = torch.zeros((), dtype=torch.float64, device=left[0].device)
    for a, g, b, h in zip(*left, *right, strict=True):
        of_inputs = a.flatten(0, 1) @ b.flatten(0, 1).mT
        of_grads = g.flatten(0, 2) @ h.flatten(0, 2).mT
        if positions == others == 1:
            signals = len(g), len(h)
            total = total + of_grads * of_inputs.repeat(signals)
            continue
        of_grads = of_grads.view(len(g), n, positions, len(h), m, others)
        products = of_grads.mul_(of_inputs.view(1, n, positions, 1, m, others))
        total = total + products.sum((2, 5)).flatten(2).flatten(0, 1)
    return total
