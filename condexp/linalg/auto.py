"""The precision of products, and when ``auto`` has to take them again."""

from collections.abc import Sequence

import torch

from condexp.analysis.linalg.spectrum import Spectrum, kappa_index
from condexp.analysis.vocabulary import Status


def needs_float64(spectrum: Spectrum, kappa_p: Sequence[float], *, whole: bool = False) -> bool:
    """Return whether a spectrum must be taken again with float64 products (``Precision.AUTO``).

    That is so if a requested κ_p falls on an eigenvalue between 0 and 16·eps·λ_1, where 1 %
    accuracy ends, unless the number of rows already makes it an exact 0, or the rows themselves are
    too coarse to tell; or if float32 failed (status ``unreliable``).

    Args:
        spectrum: From products of any precision.
        kappa_p: The fractions p asked for.
        whole: They are asked of a Kronecker product with this factor too, whose eigenvalues are
            made of any of the factor's: none of those may be too small.

    Returns:
        True if products in float64 could change a requested κ_p.
    """
    if spectrum.dtype == torch.float64 or spectrum.status in {Status.ZERO, Status.NONFINITE}:
        return False
    if spectrum.status is Status.UNRELIABLE:
        return True
    max_rank = spectrum.blocks.shape[0] * spectrum.num_rows
    threshold = 16 * torch.finfo(spectrum.dtype).eps * spectrum.lambda_max
    if spectrum.noise_floor > threshold:  # set by half-precision rows, whatever the products
        return False
    indices = [kappa_index(p, len(spectrum)) for p in kappa_p]
    if whole and indices:
        indices.append(min(len(spectrum), max_rank))  # the smallest that is no exact 0
    return any(
        index <= max_rank and float(spectrum.eigenvalues[index - 1]) < threshold
        for index in indices
    )
