"""The spectrum of a second moment of unit vectors, which is diagonal: of how often each occurs."""

import torch
from torch import Tensor

from condexp.analysis.linalg.eigen import descending_eigenvalues
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.vocabulary import SpectrumStatus

_EPS = torch.finfo(torch.float64).eps


def spectrum_of_counts(counts: Tensor, num_rows: int, *, center: bool) -> Spectrum:
    """Return the spectrum of 1/R Σ r rᵀ of rows that are unit vectors, or 0; no matrix is formed.

    The eigenvalues are the frequencies f, exact but for the division. With ``center`` they are
    those of diag(f) − f fᵀ: m entries of one frequency leave it m − 1 times, and what remains is a
    matrix as large as there are different frequencies, of which there are no more than √(2R).

    Args:
        counts: How often each unit vector occurs, ``[d]``.
        num_rows: Number R of rows.
        center: Whether the rows' mean is taken off.

    Returns:
        The spectrum, of length d.

    >>> spectrum_of_counts(torch.tensor([1, 0, 3]), 4, center=False).eigenvalues.tolist()
    [0.75, 0.25, 0.0]
    """
    frequencies = counts.cpu().double() / num_rows
    seen = frequencies[frequencies > 0]
    rank, floor = len(seen), 0.0
    if center and rank:
        floor = (rank + 4) * _EPS * float(seen.max())
        different, multiples = torch.unique(seen, return_counts=True)
        directions = multiples.double().sqrt() * different
        rest = descending_eigenvalues(different.diag() - torch.outer(directions, directions))
        seen = torch.cat([different.repeat_interleave(multiples - 1), rest.clamp(min=0)])
        # With unit vectors alone, the vector of ones is mapped to 0.
        rank -= bool(counts.sum() == num_rows)
    values = torch.zeros(1, len(counts), dtype=torch.float64)
    values[0, : len(seen)] = seen.sort(descending=True).values
    counted = torch.where(values > floor, values, 0.0)
    counted[:, rank:] = 0.0
    return Spectrum(
        counted,
        floor,
        SpectrumStatus.OK if bool(counted.any()) else SpectrumStatus.ZERO,
        torch.float64,
        num_rows,
        solved=values,
        max_ranks=(rank,),
        relative=4 * _EPS,
    )
