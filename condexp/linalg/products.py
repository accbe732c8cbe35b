"""Products of rows in working precision over short chunks, summed in float64."""

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK_ROWS = 256
"""Rows of one product in less than float64: the error does not grow with the number of rows."""

# Largest diagonal products, over the numbers in a row or column, within which float32 neither
# overflows nor loses precision to underflow.
_SAFE_MEAN_SQUARES = (1e-24, 1e30)
_LONG_CHUNK_ROWS = 4096  # in float64 the chunks only bound the memory of a conversion
_SLAB = 1 << 19  # numbers in the products of one call: they should stay in the cache
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
    size = CHUNK_ROWS if dtype != torch.float64 else _LONG_CHUNK_ROWS
    num_chunks = num_rows // size
    total = torch.zeros(groups, c, right.shape[2], dtype=torch.float64, device=left.device)
    if groups == 1:
        whole = num_chunks * size
        _add_chunks(
            total,
            torch.unflatten(left[0, :whole], 0, (num_chunks, size)),
            torch.unflatten(right[0, :whole], 0, (num_chunks, size)),
            dtype,
        )
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
        ``[groups, num_rows, num_rows]`` float64.

    >>> inner_products(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.float64).tolist()
    [[[5.0, 11.0], [11.0, 25.0]]]
    """
    groups, num_rows, d = rows.shape
    size = CHUNK_ROWS if dtype != torch.float64 else _LONG_CHUNK_ROWS
    if d <= size:
        chunk = rows.to(dtype)
        return torch.bmm(chunk, chunk.mT).double()
    total = torch.zeros(groups, num_rows, num_rows, dtype=torch.float64, device=rows.device)
    product = torch.empty(groups, num_rows, num_rows, dtype=dtype, device=rows.device)
    for piece in torch.split(rows, size, dim=2):
        chunk = piece.to(dtype)
        torch.bmm(chunk, chunk.mT, out=product)
        total += product
    return total


def in_range(product: Callable[[float], Tensor], values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a product of values with themselves, also where their squares leave float32.

    An exploding or vanishing layer's squares do so long before its values. The product is then
    taken again of values scaled by a power of two, which loses nothing.

    Args:
        product: From what the values are multiplied by, 1 or a power of two (in float64 then), to
            symmetric matrices ``[groups, n, n]`` in float64.
        values: What is multiplied.
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
    return product(2.0**-exponent) * 2.0**exponent * 2.0**exponent


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
    rest = rows[:, whole:].sum(1).double()
    if whole == 0:
        return rest
    chunks = torch.unflatten(rows[:, :whole], 1, (whole // CHUNK_ROWS, CHUNK_ROWS)).sum(2)
    return chunks.sum(1, dtype=torch.float64) + rest


def _add_chunks(total: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype) -> None:
    """Add the products of ``[num_chunks, size, c]`` and ``[num_chunks, size, d]``.

    Of many chunks, a few products are added in working precision first: to convert each to float64
    costs half as much as the product. The error stays that of the chunks (measured).
    """
    _, c, d = total.shape
    few = 1 if dtype == torch.float64 else max(1, min(_FEW, len(left) // 4))
    at_once = max(few, min(_SLAB // (c * d), len(left)) // few * few)
    products = torch.empty(at_once, c, d, dtype=dtype, device=total.device)
    for start in range(0, len(left), at_once):
        pieces = left[start : start + at_once], right[start : start + at_once]
        out = products[: len(pieces[0])]
        torch.bmm(pieces[0].to(dtype).mT, pieces[1].to(dtype), out=out)
        whole = len(out) // few * few
        if few > 1:
            total += torch.unflatten(out[:whole], 0, (-1, few)).sum(1).sum(0, dtype=torch.float64)
        if few == 1 or whole < len(out):
            total += (out if few == 1 else out[whole:]).sum(0, dtype=torch.float64)
