"""The exact Fisher block of one layer (``docs/theory.md`` §3)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from condexp.analysis.fisher.ekfac import (
    Closeness,
    KroneckerDiagonal,
    kronecker_diagonal,
    refuse_wide,
)
from condexp.analysis.fisher.network import NetworkFisher
from condexp.analysis.layers.calls import LayerCall, PassMode, joined_grads, joined_inputs
from condexp.analysis.layers.kinds import Layer
from condexp.analysis.layers.rows import Operation
from condexp.analysis.layers.sample_calls import SampleCalls
from condexp.analysis.linalg.gram import (
    WORKING_NUMBERS,
    Batch,
    GradientShape,
    Grams,
    form_gradients,
    grams,
    grams_of_gradients,
)
from condexp.analysis.linalg.precision import coarser, exact_products
from condexp.analysis.linalg.spectrum import Spectrum
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import ConvInput, Matrix, Precision
from condexp.errors import InputError


@dataclass(frozen=True, eq=False)
class FisherState:
    """What one process has collected of a layer, sent to the process that computes its block.

    Args:
        forms: Whether the samples' gradients are formed as they arrive.
        num_samples: N over its passes.
        num_rows: Gradients: one for each signal and sample.
        gradients: The samples' gradients, where they are formed.
        passes: The calls of complete passes, where they are not.
        row_dtype: Precision in which rows and gradients were computed.
        obstacle: Why rows do not belong to samples; None where they do.
    """

    forms: bool
    num_samples: int
    num_rows: int
    gradients: list[Tensor]
    passes: list[list[LayerCall]]
    row_dtype: torch.dtype
    obstacle: str | None


@dataclass(frozen=True, eq=False, kw_only=True)
class FisherMeasures(Closeness):
    """What is measured of a layer's Fisher block.

    Args:
        fisher: The exact Fisher block, 1/N Σ vec(G_n) vec(G_n)ᵀ over samples (and signals):
            min(rows, d_in · d_out) eigenvalues.
        ekfac: EKFAC: its diagonal in the eigenbasis of Σ_x ⊗ Σ_∇h, d_in · d_out values.
    """

    fisher: Spectrum | None = None
    ekfac: Spectrum | None = None


class FisherBlock(SampleCalls):
    """The Fisher block of one layer, ``1/N Σ vec(G_n) vec(G_n)ᵀ`` with ``G_n = Σ_t g aᵀ``.

    The samples' gradients are formed as the g arrive where that takes no more memory than the rows
    (T ≥ d_in) and these are not needed for ``ekfac``; otherwise input and gradients are kept until
    the pass is complete. ``auto`` works in float64: by the time the whole network's spectrum shows
    that it needs it, the rows are gone.

    Args:
        name: The layer's name.
        layer: The layer.
        options: ``bias``, ``precision``, ``memory_limit`` and which of ``fisher`` and ``ekfac`` is
            asked for are read. Convolutions are looked at
            by patches always, for these are what the weight is multiplied with.
        network: The network's Fisher matrix, to which the layer's Gram matrix is added.
        pass_mode: Under ``SEVERAL_PASSES``, whose samples make one matrix, the rows are kept until
            the spectrum is asked for.
    """

    def __init__(
        self,
        name: str,
        layer: Layer,
        options: AnalysisOptions,
        network: NetworkFisher,
        pass_mode: PassMode,
    ) -> None:
        self._wants_fisher = options.wants(Matrix.FISHER)
        self._wants_ekfac = options.wants(Matrix.EKFAC) and layer.has_factors
        super().__init__(name, "'fisher'" if self._wants_fisher else "'ekfac'")
        self._layer, self._network, self._pass_mode = layer, network, pass_mode
        self._options = replace(options, conv_input=ConvInput.PATCHES)
        single = options.precision is Precision.FLOAT32
        self.dtype = torch.float32 if single else torch.float64
        self.row_dtype = torch.float64
        operation = layer.operation
        d_in = layer.fan_in + operation.appends_one(options)
        self._shape = GradientShape(operation.groups, 1, d_in, layer.d_out // operation.groups)
        self._forms = False  # the first call decides for all
        self._formed: list[Tensor] = []  # gradients of this pass, one for each signal
        self._passes: list[list[LayerCall]] = []  # the calls of complete passes
        self._gradients: list[Tensor] = []
        self._num_samples = self._num_rows = 0
        self._is_complete = False
        self._spectrum: Spectrum | None = None
        self._diagonal: KroneckerDiagonal | None = None
        self._norm = 0.0  # ‖F‖_F
        self._recomputed = False

    @property
    def num_weights(self) -> int:
        """d, the length of vec(G)."""
        return self._shape.num_weights

    def forward(
        self,
        operation: Operation,
        inputs: Tensor,
        output_shape: torch.Size,
        num_samples: int,
        use: int,
        *,
        recomputed: bool = False,
    ) -> None:
        """Add one use of the weight.

        Args:
            operation: What is computed with it.
            inputs: Input, detached.
            output_shape: Shape of the output.
            num_samples: N of the pass.
            use: Index of this use within the pass, from 0.
            recomputed: Whether it is computed in the backward pass, where others may follow it.

        Raises:
            InputError: If the block is complete, or the pass before is not.
        """
        if self._is_complete or use in self._calls:
            raise InputError(
                f"layer {self.name!r} was called again: the samples of {self._needed_by} make one "
                "matrix, so record one forward pass and its backward pass, on all samples at once."
            )
        call = LayerCall(self.name, operation, self._options, inputs, output_shape, num_samples)
        if use == 0 and self._num_samples == 0:
            self._forms = self._takes_less_formed(call)
        self._add_call(call, use)
        self._recomputed = self._recomputed or recomputed
        self.row_dtype = coarser(self.row_dtype, inputs.dtype)

    def backward(self, grad: Tensor, use: int, row_dtype: torch.dtype) -> None:
        """Add the gradient of one use's output, for the next signal.

        Args:
            grad: ``∂ℓ_n/∂h`` in at least float32, of the output's shape.
            use: Index within the pass of the use it belongs to.
            row_dtype: Precision in which it was computed.
        """
        call = self._calls[use]
        call.num_signals += 1
        self.row_dtype = coarser(self.row_dtype, row_dtype)
        if self.obstacle is not None:
            return
        if not self._forms:
            call.grads.append(grad)
            return
        with exact_products(grad.device):
            gradients = self._form(call, grad)
        if call.num_signals > len(self._formed):
            self._formed.append(gradients)
        else:  # of an earlier use
            self._formed[call.num_signals - 1] += gradients

    def _takes_less_formed(self, call: LayerCall) -> bool:
        """Return whether the samples' gradients take no more memory than the rows."""
        return call.positions >= self._shape.d_in and not self._wants_ekfac

    def _form(self, call: LayerCall, grad: Tensor) -> Tensor:
        """Return the gradients of all samples by one use, ``[N, d]``."""
        return form_gradients(self._batch([call], [[grad]]), 0, self.dtype)

    def pass_is_complete(self) -> None:
        """Complete the pass, unless uses may follow that are computed in the backward pass."""
        if not self._recomputed:
            self.close()

    def close(self) -> None:
        """Complete the pass, whose last signal has been added."""
        calls = [call for call in self._calls.values() if call.num_signals]
        self._calls = {}
        if not calls:
            return
        self._num_samples += calls[0].num_samples
        self._num_rows += calls[0].num_samples * calls[0].num_signals
        if self.obstacle is not None:
            self._formed, self._passes, self._gradients = [], [], []
            return
        self._gradients, self._formed = self._gradients + self._formed, []
        if not self._forms:
            self._passes.append(calls)
        if self._pass_mode is not PassMode.SEVERAL_PASSES:
            self._compute()

    def state(self) -> FisherState:
        """Return what the process that computes the block needs of the complete passes."""
        return FisherState(
            self._forms,
            self._num_samples,
            self._num_rows,
            self._gradients,
            self._passes,
            self.row_dtype,
            self.obstacle,
        )

    def merge(self, state: FisherState) -> None:
        """Add the passes of another process.

        Args:
            state: State of the other's block; one of no samples has no effect.
        """
        self.obstacle = self.obstacle or state.obstacle
        if state.num_samples == 0:
            return
        self._forms = state.forms
        self._num_samples += state.num_samples
        self._num_rows += state.num_rows
        self._gradients = self._gradients + state.gradients
        self._passes += state.passes
        self.row_dtype = coarser(self.row_dtype, state.row_dtype)

    def measures(self, loss_rounding: float = 0.0, *, has_null: bool = False) -> FisherMeasures:
        """Return what was asked for; no spectra where no gradient arrived.

        Args:
            loss_rounding: See :meth:`.LossRounding.relative_square`; it raises the noise floor by
                2·loss_rounding·λ_1.
            has_null: Whether Σ_∇h has a null vector in exact arithmetic.
        """
        if not self._is_complete:
            self.close()
            if not self._is_complete and self._num_samples and self.obstacle is None:
                self._compute()
        if self.obstacle is not None:
            return self._of_incomplete()
        fisher = self._spectrum and _raised(self._spectrum, loss_rounding)
        if self._diagonal is None:
            return FisherMeasures(fisher=fisher)
        about = self.num_weights, self._num_rows, self.row_dtype
        ekfac = self._diagonal.spectrum(*about, has_null_vector=has_null)
        closeness = Closeness() if fisher is None else self._diagonal.closeness(self._norm)
        ekfac = _raised(ekfac, loss_rounding)
        return FisherMeasures(**vars(closeness), fisher=fisher, ekfac=ekfac)

    def _of_incomplete(self) -> FisherMeasures:
        fisher = ekfac = None
        if self._wants_fisher:
            self._network.leave_out(self._num_rows, self.num_weights)
            length = min(self._num_rows, self.num_weights)
            fisher = Spectrum.of_incomplete(length, self._num_rows, self.dtype)
        if self._wants_ekfac:
            ekfac = Spectrum.of_incomplete(self.num_weights, self._num_rows, torch.float64)
        return FisherMeasures(fisher=fisher, ekfac=ekfac)

    def kept_bytes(self, num_signals: int, *, inputs: bool) -> int:
        """Return the bytes that the calls of this pass will keep until it is complete.

        Args:
            num_signals: Number of back-propagations to come.
            inputs: Whether inputs count; while a graph lives, it keeps them as well.
        """
        calls = list(self._calls.values())
        if self._forms:
            num_samples = calls[0].num_samples if calls else 0
            return num_signals * num_samples * self.num_weights * self.dtype.itemsize
        total = 0
        for call in calls:
            size = torch.promote_types(call.inputs.dtype, torch.float32).itemsize
            rows = call.num_samples * call.positions
            total += num_signals * rows * self._layer.d_out * size
            total += inputs * call.inputs.numel() * call.inputs.dtype.itemsize
        return total

    def _batch(self, calls: list[LayerCall], grads: list[list[Tensor]]) -> Batch:
        """Return the calls of a pass as one; the gradients are by call and signal."""
        shape = replace(self._shape, positions=sum(call.positions for call in calls))
        if entries := calls[0].operation.num_entries:
            shape = replace(shape, d_in=entries)
        signals = (joined_grads(calls, list(of_signal)) for of_signal in zip(*grads, strict=True))
        return Batch(shape, calls[0].num_samples, joined_inputs(calls), tuple(signals))

    def _compute(self) -> None:
        limit = self._options.memory_limit
        budget = WORKING_NUMBERS if limit is None else max(1, min(WORKING_NUMBERS, limit // 32))
        with exact_products(self._layer.weight.device):
            if self._forms:
                self._set_fisher(grams_of_gradients(_joined(self._gradients), self.dtype))
            else:
                if self._layer.operation.num_entries:
                    self._leave_out_unused_entries()
                batches = [
                    self._batch(calls, [call.grads for call in calls]) for calls in self._passes
                ]
                if self._wants_fisher:
                    self._set_fisher(grams(batches, self.dtype, budget))
                if self._wants_ekfac:
                    shape, signals = batches[0].shape, len(batches[0].signals)
                    rows = sum(b.num_samples * b.shape.positions for b in batches)
                    refuse_wide(self.name, (rows, shape.d_in), (rows * signals, shape.d_out))
                    self._diagonal = kronecker_diagonal(batches)
        self._passes, self._gradients, self._is_complete = [], [], True

    def _set_fisher(self, found: Grams) -> None:
        self._norm = float(torch.linalg.vector_norm(found.smaller)) / self._num_samples
        self._spectrum = Spectrum.from_matrix(
            found.smaller / self._num_samples,
            dtype=self.dtype,
            num_rows=len(found.rows),
            row_dtype=self.row_dtype,
            length=min(len(found.rows), self.num_weights),
        )
        self._network.add(
            self.name,
            found.rows / self._num_samples,
            self.num_weights,
            self.dtype,
            self.row_dtype,
        )

    def _leave_out_unused_entries(self) -> None:
        """Take a table's rows as those of the entries that are used: others have no gradient."""
        calls = [call for calls in self._passes for call in calls]
        used = torch.unique(torch.cat([call.inputs.flatten() for call in calls]))
        used = used[used >= 0]
        self._passes = [[call.with_entries(used) for call in calls] for calls in self._passes]


def _raised(spectrum: Spectrum, loss_rounding: float) -> Spectrum:
    return spectrum.with_floor_raised(2 * loss_rounding * spectrum.lambda_max)


def _joined(gradients: list[Tensor]) -> Tensor:
    return torch.cat(gradients) if len(gradients) > 1 else gradients[0]
