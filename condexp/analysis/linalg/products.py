"""Products of rows in working precision over short chunks, summed in float64."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

CHUNK_ROWS = 256
"""Rows of one product in less than float64: the error does not grow with the number of rows."""

# Largest diagonal products, over the numbers in a row or column, within which float32 neither
# overflows nor loses precision to underflow.
_SAFE_MEAN_SQUARES = (1e-24, 1e30)
_CHUNK_FEATURES = 1024  # of a Gram matrix; the error is that of chunks of 256 (measured)
_LONG_CHUNK_ROWS = 4096  # in float64 the chunks only bound the memory of a conversion
_SLAB = 1 << 20  # numbers in the products of one call: they should stay in the cache
_FEW = 8  # chunks whose products are added in working precision, where there are many more


def cross_products(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return Σ_r left_r right_rᵀ for each block.

    Args:
        left: ``[groups, num_rows, c]``, any floating dtype and device with float64.
        right: ``[groups, num_rows, d]``.
        dtype: Working precision of the products.

    Returns:
        ``[groups, c, d]`` float64.

    >>> rows = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    >>> cross_products(rows, rows[..., :1], torch.float32).tolist()
    [[[10.0], [14.0]]]
    """
    groups, num_rows, c = left.shape
    size = chunk_rows(dtype)
    num_chunks = num_rows // size
    total = torch.zeros(groups, c, right.shape[2], dtype=torch.float64, device=left.device)
    if groups == 1 and num_chunks:
        whole = slice(num_chunks * size)
        ours, others = (
            torch.unflatten(rows[0, whole], 0, (num_chunks, size)) for rows in (left, right)
        )
        total += _of_chunks(ours, others, dtype)
    else:
        for start in range(0, num_chunks * size, size):
            piece = slice(start, start + size)
            total += torch.bmm(left[:, piece].to(dtype).mT, right[:, piece].to(dtype))
    if num_chunks * size < num_rows:
        rest = slice(num_chunks * size, num_rows)
        total += torch.bmm(left[:, rest].to(dtype).mT, right[:, rest].to(dtype))
    return total


def inner_products(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the Gram matrix of rows, r_i·r_j, for each block.

    Args:
        rows: ``[groups, num_rows, d]``; the features are what is chunked here.
        dtype: Working precision of the products.

    Returns:
        ``[groups, num_rows, num_rows]``: float64, or the working precision of a single product.

    >>> inner_products(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.float64).tolist()
    [[[5.0, 11.0], [11.0, 25.0]]]
    """
    size = max(_CHUNK_FEATURES, chunk_rows(dtype))
    chunks = (piece.to(dtype) for piece in torch.split(rows, size, dim=2))
    return added(torch.bmm(chunk, chunk.mT) for chunk in chunks)


def added(products: Iterable[Tensor]) -> Tensor:
    """Return the sum of products: float64, or a single one as it is."""
    total = None
    for product in products:
        total = product if total is None else total.double().add_(product)
    assert total is not None
    return total


def in_range(product: Callable[[float], Tensor], values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a product of values with themselves, also where their squares leave float32.

    An exploding or vanishing layer's squares do so long before its values. The product is then
    taken again of values scaled by a power of two, which loses nothing.

    Args:
        product: Function from a factor of the values, 1 or a power of two (in float64 then), to
            symmetric matrices ``[groups, n, n]``.
        values: The values that are multiplied.
        dtype: Working precision of the product.

    Returns:
        The product.
    """
    products = product(1.0)
    if dtype == torch.float64:
        return products
    low, high = _SAFE_MEAN_SQUARES
    num_terms = values.numel() / products.shape[0] / products.shape[-1]
    if low <= float(products.diagonal(dim1=-2, dim2=-1).max()) / num_terms <= high:
        return products
    largest = values.abs().max().double()
    if not (0 < float(largest) < float("inf")):
        return products
    exponent = int(torch.frexp(largest).exponent)
    return product(2.0**-exponent).double() * 2.0**exponent * 2.0**exponent


def scaled(values: Tensor, factor: float) -> Tensor:
    """Return values times a factor; where it is not 1, in float64."""
    return values if factor == 1 else values.double() * factor


def column_sums(rows: Tensor) -> Tensor:
    """Sum rows in their own precision within chunks of 256, in float64 over chunks.

    Args:
        rows: ``[groups, num_rows, ...]``.

    Returns:
        ``[groups, ...]`` float64.
    """
    whole = rows.shape[1] - rows.shape[1] % CHUNK_ROWS
    if whole == 0:
        return rows.sum(1).double()
    rest = rows[:, whole:].sum(1).double()
    chunks = torch.unflatten(rows[:, :whole], 1, (whole // CHUNK_ROWS, CHUNK_ROWS)).sum(2)
    return chunks.sum(1, dtype=torch.float64) + rest


def ahead_products(rows: Tensor, num_rows: int, ahead: int, num: int, dtype: torch.dtype) -> Tensor:
    """Return Σ_r rows_r rows_{r + ahead + j}ᵀ for j = 0 … num − 1, of rows side by side in memory.

    A chunk is every so many-th row of a stretch: what is ahead of each of its rows is then one
    longer row as it lies, so one product does for all j, and nothing is copied.

    Args:
        rows: ``[more, c]``, contiguous; at least ``ahead + num`` more than :func:`rows_to_reach`.
        num_rows: Number of rows; those after them are 0.
        ahead: Distance at which the other rows begin.
        num: Number of shifts that follow one another.
        dtype: Working precision, that of the rows.

    Returns:
        ``[num, c, c]`` float64.
    """
    c, start = rows.shape[1], rows.storage_offset()
    num_stretches, apart, size = _stretches(num_rows, num, c, dtype)
    strides = c, apart * c, 1
    batches = []
    for first in range(start, start + num_stretches * apart * size * c, apart * size * c):
        left = rows.as_strided((apart, size, c), strides, first)
        right = rows.as_strided((apart, size, num * c), strides, first + ahead * c)
        batches.append((left.mT, right))
    return torch.unflatten(_of_batches(batches, dtype)[0], 1, (num, c)).transpose(0, 1)


def rows_to_reach(num_rows: int, num: int, c: int, dtype: torch.dtype) -> int:
    """Return how many rows, with zeros, the chunks of :func:`ahead_products` are made of."""
    return math.prod(_stretches(num_rows, num, c, dtype))


def _stretches(num_rows: int, num: int, c: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Return the number of stretches, of the chunks in each, and of the rows in each of those."""
    longest = chunk_rows(dtype)
    apart = max(_at_once(-(-num_rows // longest), num * c**2), num)
    num_stretches = -(-num_rows // (apart * longest))
    return num_stretches, apart, -(-num_rows // (apart * num_stretches))


def chunk_rows(dtype: torch.dtype) -> int:
    """Return how many rows one product may have."""
    return _LONG_CHUNK_ROWS if dtype == torch.float64 else CHUNK_ROWS


def sample_products(samples: Tensor) -> Tensor:
    """Return Σ_n Σ_t s_nt s_ntᵀ of samples whose columns are what is multiplied.

    Args:
        samples: ``[N, groups, c, T]``; their precision is the products'.

    Returns:
        ``[groups, c, c]`` float64.
    """
    groups, num_chunks = samples.shape[1], -(-samples.shape[3] // chunk_rows(samples.dtype))
    at_once = _at_once(len(samples) * num_chunks, groups * samples.shape[2] ** 2)
    batches = [
        (piece, piece.mT)
        for some in torch.split(samples, at_once)
        for piece in torch.split(some.flatten(0, 1), chunk_rows(samples.dtype), 2)
    ]
    return _of_batches(batches, samples.dtype, groups)


def _of_chunks(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum of the products of ``[num, size, c]`` and ``[num, size, d]``, num > 0."""
    at_once = _at_once(len(left), left.shape[2] * right.shape[2])
    pieces = zip(torch.split(left, at_once), torch.split(right, at_once), strict=True)
    return _of_batches([(one.mT, other) for one, other in pieces], dtype)[0]


def _at_once(num_products: int, numbers: int) -> int:
    """Return how many products, of so many numbers each, are taken in one call: an even number."""
    return 2 * max(1, min(-(-num_products // (2 * _FEW)), _SLAB // numbers // 2))


def _of_batches(
    batches: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype, groups: int = 1
) -> Tensor:
    """Return the sum of the products of batches.

    A few are added in working precision first: to convert each to float64 costs half as much as the
    product. The error stays that of the chunks (measured).

    Args:
        batches: ``[num·groups, c, size]`` and ``[num·groups, size, d]``, none before a larger one.
        dtype: Working precision.
        groups: Number of sums that are kept apart.

    Returns:
        ``[groups, c, d]`` float64.
    """

    def by_few() -> Iterator[Tensor]:
        for start in range(0, len(batches), _FEW):
            products = torch.bmm(*(factor.to(dtype) for factor in batches[start]))
            for left, right in batches[start + 1 : start + _FEW]:
                products[: len(left)].baddbmm_(left.to(dtype), right.to(dtype))
            if len(products) > groups:
                products = torch.unflatten(products, 0, (-1, groups)).sum(0, dtype=torch.float64)
            yield products

    return added(by_few()).double()
