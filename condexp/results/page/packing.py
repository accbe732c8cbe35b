"""Numbers as few bytes: rounded to so many bits, compressed, and written as text for a page."""

import base64
import gzip
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXPONENT_BITS = 12  # the sign and the exponent of a float64
HIGH_BITS = 32


class Packed:
    """What was packed, and what was left out of it.

    Attributes:
        data: Plain values for the page's JSON.
        blobs: Base64 texts by name.
        notes: What was thinned, a sentence each.
    """

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.blobs: dict[str, str] = {}
        self.notes: list[str] = []


def compress(content: bytes) -> str:
    """Compress bytes; a browser undoes it by ``atob`` and ``DecompressionStream("gzip")``.

    Args:
        content: The bytes.

    Returns:
        Base64 text; the same of the same bytes.
    """
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


def round_to_bits(values: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    """Round numbers to the nearest of so many bits of mantissa (Klöwer et al. 2021).

    Args:
        values: Any; what is not finite stays as it is, and nothing finite becomes infinite.
        bits: Kept bits of the mantissa, 1 to 51: the relative error is at most 2^-(bits + 1).

    Returns:
        The numbers, rounded.

    >>> round_to_bits(np.array([1.0, 1 + 2**-5, -3.14159, np.inf, 1.7976931348623157e308]), 4)
    array([ 1.00000000e+000,  1.00000000e+000, -3.12500000e+000,
                        inf,  1.74151522e+308])
    """
    drop = 52 - bits
    whole = np.ascontiguousarray(values, dtype=np.float64).view(np.uint64)
    mask = np.uint64(~((1 << drop) - 1) & (2**64 - 1))
    # To even where it is half-way, as everywhere.
    odd = (whole >> np.uint64(drop)) & np.uint64(1)
    rounded = ((whole + np.uint64((1 << (drop - 1)) - 1) + odd) & mask).view(np.float64)
    cut = np.where(np.isfinite(rounded), rounded, (whole & mask).view(np.float64))
    return np.where(np.isfinite(values), cut, values)


def pack_numbers(values: NDArray[np.float64], bits: int) -> str:
    """Write numbers for a page, rounded.

    Each becomes the upper half of its float64, as the difference (modulo 2³²) from the one before
    it along the last axis but one, and all first bytes come before all second ones: neighbouring
    snapshots differ little, so this compresses well.

    Args:
        values: ``[..., S, n]``, where S are snapshots.
        bits: Kept bits of the mantissa, at most 20.

    Returns:
        Base64 text, which ``numbers`` of ``page.js`` reads.

    Raises:
        ValueError: If so many bits do not fit.
    """
    if not 1 <= bits <= HIGH_BITS - EXPONENT_BITS:
        raise ValueError(f"{bits} bits of mantissa do not fit a word beside the exponent")
    clean = np.where(np.isnan(values), np.nan, values)  # one NaN of many
    words = (round_to_bits(clean, bits).view(np.uint64) >> np.uint64(HIGH_BITS)).astype("<u4")
    steps = np.diff(words, axis=-2, prepend=np.zeros_like(words[..., :1, :]))
    planes = np.ascontiguousarray(steps).view(np.uint8).reshape(-1, 4).T
    return compress(np.ascontiguousarray(planes).tobytes())


def pack_codes(codes: NDArray[np.uint8]) -> str:
    """Write small whole numbers for a page.

    Args:
        codes: Any shape, below 256.

    Returns:
        Base64 text.
    """
    return compress(codes.tobytes())
