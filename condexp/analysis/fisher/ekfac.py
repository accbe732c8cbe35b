"""EKFAC: the diagonal of a Fisher block in the eigenbasis of its Kronecker factors."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from condexp.analysis.linalg.bounds import largest_ranks
from condexp.analysis.linalg.gram import Batch
from condexp.analysis.linalg.ratios import RELATIVE_ERROR, WIDE, is_wide
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.vocabulary import SpectrumStatus
from condexp.errors import InputError

_LAID_OUT = 1 << 20  # numbers laid out at once: they should stay in the cache
_EPS64 = torch.finfo(torch.float64).eps


def refuse_wide(name: str, *sides: tuple[int, int]) -> None:
    """Refuse factors whose eigenvectors would take too long.

    Args:
        name: The layer's name.
        *sides: Number of rows and of features of each factor.

    Raises:
        InputError: If one is too wide, on its smaller side.
    """
    widest = max(map(min, sides))
    if is_wide(widest):
        raise InputError(
            f"layer {name!r}: 'ekfac' needs the eigenvectors of a factor of side {widest}, and "
            f"{WIDE} is the most: leave the layer out with exclude=[{name!r}], take fewer samples, "
            "or leave 'ekfac' out of the matrices."
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Closeness:
    """How close the Kronecker approximations of a Fisher block F are to it.

    Args:
        kfac_cosine: ⟨F, K⟩ / (‖F‖_F‖K‖_F) of K-FAC K = Σ_x ⊗ Σ_∇h.
        kfac_relative_error: ‖F − K‖_F / ‖F‖_F.
        ekfac_cosine: The cosine of EKFAC.
        ekfac_relative_error: Its relative error, which is no larger than K-FAC's.
    """

    kfac_cosine: float = math.nan
    kfac_relative_error: float = math.nan
    ekfac_cosine: float = math.nan
    ekfac_relative_error: float = math.nan


@dataclass(frozen=True, eq=False)
class KroneckerDiagonal:
    """The diagonal s of a Fisher block in the eigenbasis U ⊗ V of Σ_x and Σ_∇h.

    s_ij = v_iᵀ (1/N Σ_n G_n u_j u_jᵀ G_nᵀ) v_i = 1/N Σ_n (v_iᵀ G_n u_j)², the eigenvalues of EKFAC
    (George et al. 2018, section 3). What of a side is not spanned by its rows is left out: there it
    is 0.

    Attributes:
        inputs: Eigenvalues of Σ_x, ``[groups, m]`` float64 on the CPU.
        grads: Those of Σ_∇h, ``[groups, n]``.
        values: s, ``[groups, n, m]``.
        ranks: Most that the rank of Σ_x and of Σ_∇h can be, of each block.
        d_out: Side of Σ_∇h.
        row_power: 1/N Σ_n Σ_t ‖g‖²‖a‖²: the trace, but for what cancels between positions.
    """

    inputs: Tensor
    grads: Tensor
    values: Tensor
    ranks: tuple[tuple[int, int], ...]
    d_out: int
    row_power: float

    def spectrum(
        self, num_weights: int, num_rows: int, row_dtype: torch.dtype, *, has_null_vector: bool
    ) -> Spectrum:
        """Return s as a spectrum, in descending order.

        Its noise floor is what products in float64 and the rows' precision leave in this basis; how
        far another rounding of the rows would turn the basis is not part of it.

        Args:
            num_weights: d, the length of the spectrum.
            num_rows: Number of gradients.
            row_dtype: Precision in which the rows were computed.
            has_null_vector: Whether Σ_∇h has one in exact arithmetic.

        Returns:
            The spectrum, of length d.
        """
        groups = len(self.values)
        blocks = self.values.new_zeros(groups, num_weights // groups)
        about = torch.float64, num_rows
        if not bool(self.values.isfinite().all()):
            unknown = torch.full_like(blocks, math.nan)
            return Spectrum(unknown, math.nan, SpectrumStatus.NONFINITE, *about)
        found = self.values.flatten(1).sort(descending=True).values
        blocks[:, : found.shape[1]] = found
        largest, eps = float(found.max()), torch.finfo(row_dtype).eps
        rounding = (sum(self.values.shape[1:]) + 4) * _EPS64
        blur = eps * math.sqrt(self.row_power / num_weights)
        floor = largest * (rounding + 4 * eps**2) + blur**2
        blocks = torch.where(blocks > floor, blocks, 0.0)
        most = self.d_out - has_null_vector
        status = SpectrumStatus.OK if bool(blocks.any()) else SpectrumStatus.ZERO
        return Spectrum(
            blocks,
            floor,
            status,
            *about,
            max_ranks=tuple(m * min(n, most) for m, n in self.ranks),
            relative=RELATIVE_ERROR * _EPS64,
            blur=blur,
        )

    def closeness(self, norm: float) -> Closeness:
        """Compare K-FAC and EKFAC with the Fisher block F, of which no entry is needed but s.

        In the eigenbasis both are diagonal, so ⟨F, K⟩ = Σ s_ij·a_j·b_i with the factors'
        eigenvalues, and F less its diagonal is orthogonal to both:
        ‖F − K‖² = ‖F‖² − ‖s‖² + ‖s − a·b‖².

        Args:
            norm: ‖F‖_F.

        Returns:
            The cosines and relative errors; NaN where a matrix is 0 or not finite.
        """
        products = self.grads[:, :, None] * self.inputs[:, None, :]
        s, k = float(self.values.norm()), float(products.norm())
        if not 0 < norm < math.inf or not 0 < s < math.inf:
            return Closeness()
        inner = float((products * self.values).sum())
        rest = max(0.0, 1 - (s / norm) ** 2)
        beside = (float((self.values - products).norm()) / norm) ** 2
        return Closeness(
            kfac_cosine=min(1.0, inner / (norm * k)),
            kfac_relative_error=math.sqrt(rest + beside),
            ekfac_cosine=min(1.0, s / norm),
            ekfac_relative_error=math.sqrt(rest),
        )


def kronecker_diagonal(batches: Sequence[Batch]) -> KroneckerDiagonal:
    """Fit the diagonal of a Fisher block in the eigenbasis of its factors.

    The rows are gone through twice, in float64 and in pieces: for the factors, and, once their
    eigenvectors are known, for the projections of the samples' gradients.

    Args:
        batches: The samples; same ``groups``, ``d_in``, ``d_out`` and number of signals.

    Returns:
        The diagonal, NaN where a row is not finite.
    """
    num_samples = sum(batch.num_samples for batch in batches)
    num_inputs = sum(batch.num_samples * batch.shape.positions for batch in batches)
    num_grads = num_inputs * len(batches[0].signals)
    shape = batches[0].shape
    of_inputs = _basis(_input_rows(batches), num_inputs, shape.d_in, num_inputs)
    of_grads = _basis(_grad_rows(batches), num_grads, shape.d_out, num_samples)
    values, power = _projected(batches, of_inputs.vectors, of_grads.vectors)
    return KroneckerDiagonal(
        of_inputs.values.cpu(),
        of_grads.values.cpu(),
        values.cpu() / num_samples,
        tuple(zip(of_inputs.ranks, of_grads.ranks, strict=True)),
        shape.d_out,
        power / num_samples,
    )


@dataclass(frozen=True, eq=False)
class _Basis:
    """Eigenvectors of a factor, ``[groups, d, m]``, their eigenvalues, and its largest ranks."""

    vectors: Tensor
    values: Tensor
    ranks: tuple[int, ...]


def _basis(pieces: Iterable[Tensor], num_rows: int, side: int, divisor: int) -> _Basis:
    """Return the eigenvectors of Σ r rᵀ / divisor, as many as the rows can span."""
    span = None
    if num_rows < side:  # an orthonormal basis of what they span, and the rows in it
        rows = torch.cat(list(pieces), 1)
        span = torch.linalg.qr(rows.mT).Q
        pieces = [rows @ span]
    moment = sum(piece.mT @ piece for piece in pieces) / divisor
    assert isinstance(moment, Tensor)
    if not bool(moment.isfinite().all()):
        vectors = torch.full_like(moment if span is None else span, math.nan)
        return _Basis(vectors, torch.full_like(moment[:, 0], math.nan), (0,) * len(moment))
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp(min=0.0)
    if span is not None:
        return _Basis(span @ vectors, values, (num_rows,) * len(moment))
    floors = (side + 4) * _EPS64 * values[:, -1:]
    square = moment.cpu()
    counted = (values > floors).sum(1).cpu().numpy()
    diagonals = square.numpy().diagonal(axis1=-2, axis2=-1)
    return _Basis(vectors, values, tuple(largest_ranks(square, diagonals, counted, torch.float64)))


def _parts(batch: Batch, num_weights: int = 0) -> Iterator[slice]:
    """Yield pieces of a batch, of so many samples that their rows and gradients stay small."""
    shape = batch.shape
    numbers = shape.groups * max(shape.positions * max(shape.d_in, shape.d_out), num_weights)
    at_once = max(1, _LAID_OUT // numbers)
    for start in range(0, batch.num_samples, at_once):
        yield slice(start, min(start + at_once, batch.num_samples))


def _input_rows(batches: Sequence[Batch]) -> Iterator[Tensor]:
    for batch in batches:
        for part in _parts(batch):
            yield batch.inputs(part).double().flatten(1, 2)


def _grad_rows(batches: Sequence[Batch]) -> Iterator[Tensor]:
    for batch in batches:
        for signal in batch.signals:
            for part in _parts(batch):
                yield signal(part).double().flatten(1, 2)


def _projected(batches: Sequence[Batch], u: Tensor, v: Tensor) -> tuple[Tensor, float]:
    """Return Σ_n (vᵀ G_n u)² of all pairs, ``[groups, n, m]``, and Σ_n Σ_t ‖g‖²‖a‖²."""
    total = u.new_zeros(len(u), v.shape[2], u.shape[2])
    power = u.new_zeros(())
    for batch in batches:
        for part in _parts(batch, u.shape[2] * v.shape[2]):
            inputs = batch.inputs(part).double()
            lengths = inputs.square().sum(3)
            inputs = inputs @ u[:, None]
            for signal in batch.signals:
                grads = signal(part).double()
                power += (grads.square().sum(3) * lengths).sum()
                grads = grads @ v[:, None]
                if batch.shape.positions == 1:
                    total += grads[:, :, 0].square().mT @ inputs[:, :, 0].square()
                else:
                    total += (grads.mT @ inputs).square().sum(1)
    return total, float(power)
