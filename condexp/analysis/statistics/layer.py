"""Statistics of one layer, accumulated over forward and backward passes.

Hooks and autograd are not seen here: tensors are handed in by the methods' callers.
"""

from collections import Counter

import torch
from torch import Tensor

from condexp.analysis.fisher.block import FisherBlock, FisherMeasures
from condexp.analysis.layers.calls import ForwardPass, PassMode
from condexp.analysis.layers.info import LayerInfo
from condexp.analysis.layers.kinds import Layer
from condexp.analysis.layers.rows import (
    Operation,
    gradient_rows,
    moment_rows,
    unit_extremes,
)
from condexp.analysis.layers.samples import Owners, SampleTest
from condexp.analysis.layers.select import describe
from condexp.analysis.layers.use import WeightUse
from condexp.analysis.linalg.kronecker import KroneckerSpectrum
from condexp.analysis.linalg.moments import Scale
from condexp.analysis.linalg.norms import frobenius_norm
from condexp.analysis.linalg.precision import computed_in, summable
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import LayerSnapshot, PlainMeasures
from condexp.analysis.statistics.measures import RowMeans, UnitExtremes, mean_fraction, underflow
from condexp.analysis.statistics.moment import AdaptiveMoment, Factor, SolveQueue
from condexp.analysis.statistics.state import LayerState
from condexp.analysis.statistics.weights import WeightStatistics
from condexp.analysis.vocabulary import ConvInput, Matrix
from condexp.errors import InputError


class LayerStatistics:
    """Statistics of one layer over all passes so far.

    Attributes:
        has_unseen_uses: Whether the network's graph has uses of the weight whose rows are missing.

    Args:
        name: Name of the layer.
        layer: The layer.
        options: What to measure.
        fisher: The layer's Fisher block, if it is measured.
        pass_mode: Who runs the passes, and how many. Of several signals, and in the layers of
            ``options.float64``, rows come in several portions whatever the mode.
        queue: See :class:`.AdaptiveMoment`.
        keep_weights: See :class:`.MeasurementHooks`.
        convolves: Whether the network has convolutions; see :func:`.computed_in`.
    """

    def __init__(
        self,
        name: str,
        layer: Layer,
        options: AnalysisOptions,
        fisher: FisherBlock | None = None,
        *,
        pass_mode: PassMode,
        queue: SolveQueue,
        keep_weights: bool = True,
        convolves: bool = True,
    ) -> None:
        self.name, self.layer, self.fisher, self._options = name, layer, fisher, options
        if options.has_several_signals or name in options.float64:
            pass_mode = PassMode.SEVERAL_PASSES
        self._one_pass = pass_mode is PassMode.ONE_PASS

        def moment(scale: Scale, matrix: Matrix) -> AdaptiveMoment | None:
            wanted = options.wants(matrix, Matrix.KFAC)
            return AdaptiveMoment(scale, options, pass_mode, queue) if wanted else None

        self._input: Factor | None = moment(Scale.MEAN, Matrix.INPUT)
        self._grad_output: Factor | None = moment(Scale.SUM, Matrix.GRAD_OUTPUT)
        self._weight = WeightStatistics(layer, options, pass_mode, keep_values=keep_weights)
        self._units, self._means = UnitExtremes(), RowMeans()
        self._uses: Counter[int] = Counter()
        self._returns: Counter[int] = Counter()
        self._with_gradient: set[int] = set()
        self._projected: dict[tuple[int, int], tuple[Operation, Tensor]] = {}
        self._operation, self._convolves = layer.operation, convolves
        self._positions = 0
        self.mixes_samples = False
        self._num_samples, self._underflow = 0, 0.0
        self.has_zero_sums = self.has_unseen_uses = False

    @property
    def info(self) -> LayerInfo:
        """The layer's sizes, as far as they are known."""
        about = self.name, self.layer, self._options
        return describe(*about, positions=self._positions, uses=max(self._uses.values(), default=1))

    def state(self) -> LayerState:
        """Return the statistics so far, of complete passes, for another process to merge."""
        moments = [m and m.state() for m in (self._input, self._grad_output)]
        fisher = self.fisher and self.fisher.state()
        parts = (*moments, self._weight.state(), self._units, self._means, fisher)
        uses = max(self._uses.values(), default=0)
        numbers = self._positions, self._num_samples, self._underflow
        return LayerState(parts, uses, *numbers, self.has_unseen_uses)

    def merge(self, state: LayerState) -> None:
        """Add the statistics of another process, of the same layer.

        Args:
            state: State of the other's statistics.
        """
        mine = (self._input, self._grad_output, self._weight, self._units, self._means, self.fisher)
        for part, other in zip(mine, state.parts, strict=True):
            if part is not None:
                part.merge(other)
        self._uses[0] = max(self._uses[0], state.uses)
        self._positions = self._positions or state.positions
        self._num_samples += state.num_samples
        self._underflow += state.underflow
        self.has_unseen_uses = self.has_unseen_uses or state.has_unseen_uses

    @property
    def is_reused(self) -> bool:
        """Whether rows were left out under ``ONE_PASS``, because the layer was called again."""
        return any(m is not None and m.is_reused for m in (self._input, self._grad_output))

    def forward(
        self, use: WeightUse, current: ForwardPass, *, recomputed: bool = False
    ) -> int | None:
        """Add one use of the layer's weight.

        Args:
            use: The use.
            current: The pass that it belongs to.
            recomputed: Whether it is computed in the backward pass, where others may follow it.

        Returns:
            The index of this use within the pass, from 0; None where it has no rows.

        Raises:
            InputError: If a bias is asked for and added in some uses only.
        """
        num_rows = use.num_rows
        if num_rows == 0:
            return None
        number, operation = self._uses[current.number], use.operation
        if operation.appends_one(self._options) != self._operation.appends_one(self._options):
            raise InputError(
                f"layer {self.name!r} is used with and without its bias, so bias=True has no rows "
                f"for it: leave it out with exclude=[{self.name!r}], or take bias=False."
            )
        self._weight.forward(use.dtype)
        self._uses[current.number] += 1
        self._positions = self._positions or max(1, num_rows // current.num_samples)
        whole = summable(use.inputs.detach())
        self._add_inputs(use, whole, current.num_samples if number == 0 else 0)
        self._keep_inputs(use, whole, (current.number, number))
        if self.fisher is not None:
            shape, num_samples = use.output_shape, current.num_samples
            given = use.inputs.detach()
            self.fisher.forward(operation, given, shape, num_samples, number, recomputed=recomputed)
        return number

    def _keep_inputs(self, use: WeightUse, inputs: Tensor, call: tuple[int, int]) -> None:
        """Keep of an input what the certificate needs once its gradient comes."""
        certificate = self._weight.certificate
        self._projected[call] = use.operation, certificate.project(use.operation, inputs)

    def _add_inputs(self, use: WeightUse, inputs: Tensor, num_samples: int, /) -> None:
        """Add the rows of an input, in at least float32, of so many new samples."""
        images = inputs if use.images is use.inputs else summable(use.images)
        if self._options.conv_input is ConvInput.CHANNELS:
            inputs = images = self.layer.without_padding(images)
        rows = moment_rows(use.operation, inputs, self._options)
        if isinstance(self._input, AdaptiveMoment):
            row_dtype, ours = use.row_dtype(convolves=self._convolves), self._one_pass
            may_change = use.may_change(self.layer.weight, read_later=not ours)
            may_change |= not (ours or self._options.needs_gradients)  # no backward pass will tell
            self._input.add(rows, num_samples, row_dtype, may_change=may_change)
        else:
            self._means.add(rows)
        self._units.add(*unit_extremes(use.operation, images))

    def test_samples(
        self, test: SampleTest, operation: Operation, number: int, grad: Tensor
    ) -> None:
        """Find out which rows of a use belong to which sample.

        Args:
            test: The test.
            operation: What was computed.
            number: Index of the use within the pass.
            grad: Gradient of the test's cotangents with respect to its output.
        """
        if self.fisher is not None:
            self.fisher.test_samples(test, grad, number)
        parts, num_samples = (
            grad.flatten(0, -2) if operation.parts_are_rows else grad,
            len(test.chosen),
        )
        if len(parts) % num_samples:
            self.mixes_samples = True
            return
        owners = Owners(num_samples, len(parts))
        owners.test(test, parts)
        self.mixes_samples = self.mixes_samples or (owners.is_settled and owners.layout is None)

    @property
    def gradient_power(self) -> float:
        """‖∂L/∂W‖², summed over the backward passes."""
        return float(self._weight.certificate.power)

    @torch.no_grad()
    def backward(
        self,
        operation: Operation,
        number: int,
        grad: Tensor,
        current: ForwardPass,
        *,
        of_loss: bool = True,
    ) -> None:
        """Add the gradient with respect to the output of one use.

        Args:
            operation: What was computed.
            number: Index of the use within the pass.
            grad: Gradient ∂L/∂h, of the output's shape.
            current: The pass that it belongs to.
            of_loss: Whether it is that of the data's loss, which is certified, and measured unless
                other signals are asked for.

        Raises:
            InputError: If the same use was back-propagated before.
        """
        # Promoted first: half precision would overflow once multiplied by the denominator.
        given, grad = grad, summable(grad)
        norm = frobenius_norm(grad)
        if of_loss:
            self._certify((current.number, number), grad, norm, given.dtype, current)
            measures = self._grad_output is not None or self.fisher is not None
            if not measures or not self._options.is_empirical:
                return
        first = self._returns[current.number] == 0
        self._num_samples += current.num_samples if first else 0
        self._returns[current.number] += 1
        if self._returns[current.number] > self._uses[current.number] * current.num_signals:
            raise InputError(
                f"layer {self.name!r} was back-propagated twice after one forward pass, which "
                "would count its gradients double: record one backward pass a forward pass."
            )
        row_dtype = computed_in(given.dtype, given.device, convolves=self._convolves)
        if self._grad_output is not None:
            self._add_grads(operation, number, grad, current, row_dtype)
            num_columns = self.layer.d_out // operation.groups
            self._underflow += underflow(given, norm, num_columns) * current.denominator**2
        if self.fisher is not None:
            self.fisher.backward(grad * current.denominator, number, row_dtype)
            if self._returns[current.number] == self._uses[current.number] * current.num_signals:
                self.fisher.pass_is_complete()

    def _add_grads(
        self,
        operation: Operation,
        _number: int,
        grad: Tensor,
        current: ForwardPass,
        row_dtype: torch.dtype,
    ) -> None:
        """Add the rows of a gradient ∂L/∂h, which was computed in a precision."""
        assert isinstance(self._grad_output, AdaptiveMoment)
        rows = gradient_rows(operation, grad, current.denominator)
        num_new = current.num_samples if self._returns[current.number] == 1 else 0
        self._grad_output.add(rows, num_new, row_dtype, may_change=not self._one_pass)

    def _certify(
        self,
        call: tuple[int, int],
        grad: Tensor,
        norm: Tensor,
        dtype: torch.dtype,
        _current: ForwardPass,
    ) -> None:
        """Compare ∂L/∂h of one use, computed in a precision, once that of the weight comes."""
        if (kept := self._projected.pop(call, None)) is not None:
            operation, projected = kept
            self._weight.certificate.add_rows(operation, projected, grad, norm, dtype)

    @torch.no_grad()
    def weight_backward(self, grad: Tensor, current: ForwardPass, *, in_parts: bool) -> None:
        """Add ∂L/∂W of one backward pass of the data's loss, or a part of it."""
        is_new = current.number not in self._with_gradient
        self._with_gradient.add(current.number)
        self._weight.backward(
            grad, current.num_samples, current.denominator, is_new=is_new, in_parts=in_parts
        )

    def enqueue(self) -> None:
        """Queue the moments for their eigenvalues, which are computed together with others'."""
        for factor in (self._input, self._grad_output):
            if isinstance(factor, AdaptiveMoment):
                factor.enqueue()

    def plain(self) -> PlainMeasures | None:
        """Compute the measures that need no eigenvalues.

        Returns:
            The measures; None where the layer was never called.

        Raises:
            InputError: If a gradient was asked for and none arrived.
        """
        if not self._weight.was_used:
            return None
        if self._options.needs_gradients and not self._weight.has_gradient:
            raise InputError(
                f"no gradient reached layer {self.name!r}: backward() did not run while "
                "recording, or the loss does not depend on the layer; leave it out with "
                f"exclude=[{self.name!r}] or ask for matrices=('input', 'weight') only."
            )
        dead, full = self._units.dead_fraction(), self._units.full_fraction()
        return PlainMeasures(info=self.info, dead_fraction=dead, full_fraction=full)

    def record(
        self, plain: PlainMeasures, learning_rate: float | None, loss_rounding: float = 0.0
    ) -> LayerSnapshot:
        """Compute the spectra, and return the layer's record.

        Args:
            plain: The measures of :meth:`plain`.
            learning_rate: Step length of the optimizer, or None.
            loss_rounding: See :meth:`.LossRounding.relative_square`.

        Returns:
            The record.
        """
        wants = self._options.wants
        # Cotangents of other labels are computed without the difference that rounds the loss's.
        of_signals = loss_rounding if self._options.is_empirical else 0.0
        inputs = None if self._input is None else self._input.spectrum()
        grad_output = None if self._grad_output is None else self._grad_output.spectrum(of_signals)
        if grad_output is not None and self._underflow:
            grad_output = grad_output.with_floor_raised(
                self._underflow / self._num_samples, hides_zeros=True
            )
        has_null = self.has_zero_sums and max(self._uses.values()) == 1
        if grad_output is not None and has_null:
            grad_output = grad_output.with_null_vector()
        kfac, power = None, self._row_power()
        if inputs is not None and grad_output is not None and wants(Matrix.KFAC):
            kfac = KroneckerSpectrum(inputs, grad_output)
        of_weight = self._weight.measures(learning_rate, loss_rounding=loss_rounding, power=power)
        block, nothing = self.fisher, FisherMeasures()
        of_fisher = nothing if block is None else block.measures(of_signals, has_null=has_null)
        residual, fails = self._weight.certificate.check()
        way_out = f"leave it out with exclude=[{self.name!r}]"
        record = LayerSnapshot(
            **vars(plain),
            input=inputs if wants(Matrix.INPUT) else None,
            grad_output=grad_output if wants(Matrix.GRAD_OUTPUT) else None,
            kfac=kfac,
            **vars(of_fisher),
            input_mean_fraction=self._mean_fraction(),
            **vars(of_weight),
            gradient_residual=residual,
            incomplete=None if self._obstacle is None else f"{self._obstacle}; {way_out}",
        )
        if fails:
            reason = (
                "the recorded rows do not reproduce its weight's gradient (relative difference "
                f"{residual:.2g}): the weight is used otherwise than by linear or conv2d, "
                "by another module, or in the loss itself, or a hook changes its gradient"
            )
        elif self.has_unseen_uses:
            reason = "its weight is used otherwise than by linear or conv2d, too"
        else:
            return record
        return record.as_incomplete(f"{reason}; {way_out}")

    @property
    def _obstacle(self) -> str | None:
        """Why some matrix has no numbers: its rows do not belong to samples."""
        return None if self.fisher is None else self.fisher.obstacle

    def _row_power(self) -> float:
        """Return Σ‖a‖²·Σ‖g‖² of the rows per sample; 0 where not known."""
        if self._input is None or self._grad_output is None:
            return 0.0
        return self._input.power() * self._grad_output.power()

    def _mean_fraction(self) -> float:
        if self._means.num_rows or self._input is None:
            mean, power = self._means.mean, self._means.power
        else:
            mean, power = self._input.mean(), self._input.power()
        if self._operation.appends_one(
            self._options
        ):  # the bias's 1 is no unit; each block has one
            mean, power = mean[:, :-1], power - len(mean)
        return mean_fraction(mean, power)
