"""Frozen records of one analysis: of the network, and of each layer."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from condexp.analysis.curvature.measure import Curvature
from condexp.analysis.fisher.block import FisherMeasures
from condexp.analysis.fisher.ekfac import Closeness
from condexp.analysis.layers.info import LayerInfo, NotAnalysed
from condexp.analysis.linalg.curvature_spectrum import CurvatureSpectrum
from condexp.analysis.linalg.estimate import Estimate
from condexp.analysis.linalg.kronecker import KroneckerSpectrum
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.snapshot_file import load_record, save_record
from condexp.analysis.vocabulary import (
    CLOSENESS,
    CURVATURE_MATRICES,
    CURVATURE_MEASURES,
    LAYER_MEASURES,
    SPECTRUM_MEASURES,
    WHOLE_MATRICES,
    Matrix,
    SpectrumStatus,
)
from condexp.errors import InputError, choose

if TYPE_CHECKING:
    import pandas as pd


class BnMode(StrEnum):
    """Whose statistics the batch normalisations used: the batch's, the running ones, or both."""

    TRAIN = "train"
    EVAL = "eval"
    MIXED = "mixed"
    NONE = "none"

    @classmethod
    def of(cls, batch_statistics: Iterable[bool]) -> "BnMode":
        """Return the mode of some normalisations; each used the batch's statistics or did not."""
        used = set(batch_statistics)
        if len(used) == 2:
            return cls.MIXED
        return cls.NONE if not used else cls.TRAIN if True in used else cls.EVAL


@dataclass(frozen=True, eq=False, kw_only=True)
class WeightMeasures:
    """Measures of a layer's weight and of the loss's gradient with respect to it.

    Args:
        weight: W Wᵀ, ``groups · min(d_out / groups, fan_in)`` eigenvalues.
        weight_grad: (∂L/∂W)(∂L/∂W)ᵀ, the same length.
        weight_norm: ‖W‖_F.
        grad_norm: ‖∂L/∂W‖_F; NaN where no gradient arrived.
        domination_of: Function that computes ``domination``, which few read and may be costly.
        effective_lr: Median over output rows of lr/‖w_i‖²; NaN without a learning rate.
    """

    weight: Spectrum | None
    weight_grad: Spectrum | None
    weight_norm: float
    grad_norm: float
    domination_of: Callable[[], float]
    effective_lr: float


@dataclass(frozen=True, eq=False, kw_only=True)
class PlainMeasures:
    """Measures of a layer that need no spectrum.

    Args:
        info: The layer's sizes.
        dead_fraction: Share of the input units that are always 0.
        full_fraction: Share of the input units that are always > 0.
    """

    info: LayerInfo
    dead_fraction: float
    full_fraction: float


@dataclass(frozen=True, eq=False)
class LayerSnapshot(PlainMeasures, WeightMeasures, FisherMeasures):
    """The spectra and measures of one layer; a matrix that was not asked for is None.

    Args:
        input: Σ_x, ``groups · d_in`` eigenvalues.
        grad_output: Σ_∇h, ``d_out`` eigenvalues.
        kfac: Σ_x ⊗ Σ_∇h.
        input_mean_fraction: ‖mean(a)‖² / E‖a‖².
        gradient_residual: Certificate: relative difference between the weight's gradient and what
            the recorded rows make of it (``docs/theory.md`` §7); NaN where no gradient arrived.
        incomplete: Why all or some numbers are NaN, of status ``incomplete``, and the way out; None
            where the record is complete.
        hessian: The Hessian's block of the weights that ``fisher`` is of.
        ggn: The Gauss–Newton matrix's.
    """

    input: Spectrum | None
    grad_output: Spectrum | None
    kfac: KroneckerSpectrum | None
    input_mean_fraction: float
    gradient_residual: float = math.nan
    incomplete: str | None = None
    hessian: CurvatureSpectrum | None = None
    ggn: CurvatureSpectrum | None = None

    @property
    def gradient_is_whole(self) -> bool:
        """Whether nothing of the weight's gradient is missing in the rows."""
        return self.incomplete is None

    @property
    def has_numbers(self) -> bool:
        """Whether something of it can be believed: rows may be of no sample, and factors right."""
        if self.incomplete is None:
            return True
        every = (self.input, self.grad_output, self.kfac, self.weight, self.weight_grad)
        return any(s is not None and s.status is not SpectrumStatus.INCOMPLETE for s in every)

    def as_incomplete(self, reason: str) -> "LayerSnapshot":
        """Return a record of which nothing can be believed: every number of it is NaN.

        Args:
            reason: What is missing, and the way out.

        Returns:
            The record; the certificate that failed is kept.
        """
        kfac, nan = self.kfac, math.nan
        if kfac is not None:
            kfac = KroneckerSpectrum(kfac.a.as_incomplete(), kfac.b.as_incomplete())
        return replace(
            self,
            input=self.input and self.input.as_incomplete(),
            grad_output=self.grad_output and self.grad_output.as_incomplete(),
            kfac=kfac,
            fisher=self.fisher and self.fisher.as_incomplete(),
            ekfac=self.ekfac and self.ekfac.as_incomplete(),
            **vars(Closeness()),
            weight=self.weight and self.weight.as_incomplete(),
            weight_grad=self.weight_grad and self.weight_grad.as_incomplete(),
            dead_fraction=nan,
            full_fraction=nan,
            input_mean_fraction=nan,
            weight_norm=nan,
            grad_norm=nan,
            effective_lr=nan,
            domination_of=_unknown,
            incomplete=reason,
        )

    @cached_property
    def domination(self) -> float:
        """σ_max(∂L/∂W) / σ_max(W); NaN where no gradient arrived."""
        return self.domination_of()


def _unknown() -> float:
    return math.nan


@dataclass(frozen=True)
class Coverage:
    """The share of a network that its measured weights are.

    Args:
        parameters: Of the number of its parameters.
        gradient: Of ‖∂L/∂θ‖², summed over the backward passes; NaN without one.
    """

    parameters: float = math.nan
    gradient: float = math.nan


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything measured at one moment; ``snapshot["fc"]`` is one layer's record.

    >>> import torch, condexp
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> inputs, targets = torch.eye(2), torch.zeros(2, 1)
    >>> snapshot = condexp.analyze(model, torch.nn.MSELoss(), inputs, targets)
    >>> snapshot.layers
    ('0', '2')
    >>> snapshot["0"].input.eigenvalues  # inputs are the unit vectors: Σ_x = I/2
    tensor([0.5000, 0.5000], dtype=torch.float64)
    >>> len(snapshot["2"].kfac), snapshot.num_samples, str(snapshot.bn_mode)
    (3, 2, 'none')
    >>> snapshot["1"]
    Traceback (most recent call last):
    condexp.errors.InputError: unknown layer '1': allowed are 0, 2.

    Args:
        records: One record a layer, in the order of their first call.
        num_samples: N, over all batches.
        bn_mode: Statistics that the batch normalisations used: the batch's or the running ones.
        fisher: The exact Fisher matrix of all analysed layers together, min(rows, weights)
            eigenvalues; None where it was not asked for. It is the network's as far as ``coverage``
            says.
        not_analysed: Modules and parameters that were not measured, and why.
        coverage: Share of the network that was measured.
        shared: Names of layers whose weight is another one's, by which it is measured.
        hessian: The Hessian of the loss with respect to all trained parameters, those of no layer
            too; None where it was not asked for.
        ggn: The Gauss–Newton matrix, likewise.
        eigenvectors: Those of the eigenvalues of ``hessian`` and ``ggn``, float32 ``[n, k + 1]``
            by ``hessian/`` and the layer's name, or nothing for the network; parameters one after
            the other. The last column is that of ``lambda_min``.
            There is none of a matrix that was computed whole.
        block_diagonal_cosine: ‖B‖_F / ‖F‖_F, the cosine of F = ``fisher`` and the matrix B of the
            layers' blocks alone; NaN without it.
        block_diagonal_relative_error: ‖F − B‖_F / ‖F‖_F, likewise.
    """

    records: tuple[LayerSnapshot, ...]
    num_samples: int
    bn_mode: BnMode
    fisher: Spectrum | None = None
    not_analysed: tuple[NotAnalysed, ...] = ()
    coverage: Coverage = Coverage()
    shared: Mapping[str, str] = field(default_factory=dict)
    hessian: CurvatureSpectrum | None = None
    ggn: CurvatureSpectrum | None = None
    eigenvectors: Mapping[str, Tensor] = field(default_factory=dict)
    block_diagonal_cosine: float = math.nan
    block_diagonal_relative_error: float = math.nan

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' names, in execution order."""
        return tuple(self._by_name)

    def __repr__(self) -> str:
        matrices = [str(m) for m in Matrix if any(getattr(r, m) is not None for r in self.records)]
        return (
            f"Snapshot({len(self)} layers, {self.num_samples} samples, bn_mode={self.bn_mode}, "
            f"matrices: {', '.join(matrices)})"
        )

    def to_pandas(self, p: Sequence[float] = (0.5,)) -> "pd.DataFrame":
        """Lay out the measures of every layer.

        Args:
            p: Fractions of the condition numbers.

        Returns:
            One row a layer, indexed by its name: ``type``, ``d_in``, ``d_out``, and measures named
            as those of a stored run, such as ``input_kappa_0.5``.
        """
        import pandas as pd

        rows = []
        for record in self.records:
            info = record.info
            row: dict[str, object] = {"type": info.type, "d_in": info.d_in, "d_out": info.d_out}
            row |= {name: getattr(record, name) for name in LAYER_MEASURES}
            if record.ekfac is not None and record.fisher is not None:
                row |= {name: getattr(record, name) for name in CLOSENESS}
            for matrix in WHOLE_MATRICES:
                if (spectrum := getattr(record, matrix)) is not None:
                    row |= {f"{matrix}_{m}": getattr(spectrum, m) for m in SPECTRUM_MEASURES}
                    row |= {f"{matrix}_kappa_{float(each)}": spectrum.kappa(each) for each in p}
            for matrix in CURVATURE_MATRICES:
                if (curvature := getattr(record, matrix)) is not None:
                    row |= {f"{matrix}_{m}": getattr(curvature, m) for m in CURVATURE_MEASURES}
            rows.append(row)
        return pd.DataFrame(rows, index=pd.Index(self.layers, name="layer"))

    def with_curvature(self, curvature: Curvature) -> "Snapshot":
        """Return the same with spectra of the Hessian and the Gauss–Newton matrix.

        Args:
            curvature: The spectra.

        Returns:
            The snapshot.
        """

        def of_layer(name: str) -> dict[str, Any]:
            return {str(matrix): of.get(name) for matrix, of in curvature.layers.items()}

        records = tuple(replace(each, **of_layer(each.info.name)) for each in self.records)
        network: dict[str, Any] = {str(matrix): s for matrix, s in curvature.network.items()}
        return replace(self, records=records, eigenvectors=curvature.vectors, **network)

    def save(self, path: str | Path) -> None:
        """Write the whole record to one file, which :meth:`load` and ``torch.load`` read.

        It holds plain values and tensors alone. A run's folder, which ``condexp show`` and figures
        read, is written by `condexp.record_run`.

        Args:
            path: The file; one that is there is replaced, unless it is no regular file.

        Raises:
            InputError: If it cannot be written.
        """
        save_record(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> "Snapshot":
        """Read what :meth:`save` wrote; nothing in the file is executed.

        Args:
            path: The file.

        Returns:
            The snapshot, equal to the one that was saved.

        Raises:
            InputError: If there is no such file, or it holds something else.
        """
        of_spectra = Spectrum, KroneckerSpectrum, Estimate, CurvatureSpectrum
        kinds = (cls, LayerSnapshot, LayerInfo, NotAnalysed, Coverage, *of_spectra)
        found = load_record(Path(path), kinds)
        if not isinstance(found, cls):
            raise InputError(f"{path} holds no snapshot")
        return found

    @cached_property
    def _by_name(self) -> dict[str, LayerSnapshot]:
        return {record.info.name: record for record in self.records}

    def __getitem__(self, name: str) -> LayerSnapshot:
        name = self.shared.get(name, name)
        return self._by_name[choose("layer", name, self.layers)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.records)
