"""Frozen records of one analysis: of the network, and of each layer."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from condexp.analysis.layers.info import LayerInfo, NotAnalysed
from condexp.analysis.linalg.kronecker import KroneckerSpectrum
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.errors import choose


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
class LayerSnapshot(PlainMeasures, WeightMeasures):
    """The spectra and measures of one layer; a matrix that was not asked for is None.

    Args:
        input: Σ_x, ``groups · d_in`` eigenvalues.
        grad_output: Σ_∇h, ``d_out`` eigenvalues.
        kfac: Σ_x ⊗ Σ_∇h.
        fisher: The exact Fisher block, 1/N Σ vec(G_n) vec(G_n)ᵀ over samples (and signals):
            min(rows, d_in · d_out) eigenvalues.
        input_mean_fraction: ‖mean(a)‖² / E‖a‖².
        gradient_residual: How far the recorded rows are from the weight's gradient; NaN where that
            was not looked at.
    """

    input: Spectrum | None
    grad_output: Spectrum | None
    kfac: KroneckerSpectrum | None
    fisher: Spectrum | None
    input_mean_fraction: float
    gradient_residual: float = math.nan

    @cached_property
    def domination(self) -> float:
        """σ_max(∂L/∂W) / σ_max(W); NaN where no gradient arrived."""
        return self.domination_of()


@dataclass(frozen=True)
class Coverage:
    """The measured share of a network.

    Args:
        parameters: Of its parameters, by number.
        gradient: Of the squared norm of its gradient.
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
            eigenvalues; None where it was not asked for.
        coverage: The share of the network that was measured.
        not_analysed: What has weights and was not measured, with the reason.
    """

    records: tuple[LayerSnapshot, ...]
    num_samples: int
    bn_mode: BnMode
    fisher: Spectrum | None = None
    coverage: Coverage = Coverage()
    not_analysed: tuple[NotAnalysed, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' names, in execution order."""
        return tuple(self._by_name)

    @cached_property
    def _by_name(self) -> dict[str, LayerSnapshot]:
        return {record.info.name: record for record in self.records}

    def __getitem__(self, name: str) -> LayerSnapshot:
        return self._by_name[choose("layer", name, self.layers)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.records)
