"""Statistics of weights of which the samples' gradients are measured, for they have no factors."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from condexp.analysis.fisher.formed import sample_gradients
from condexp.analysis.layers.calls import ForwardPass, LayerCall
from condexp.analysis.layers.use import WeightUse
from condexp.analysis.linalg.norms import frobenius_norm
from condexp.analysis.statistics.layer import LayerStatistics


class GradientStatistics(LayerStatistics):
    """Statistics of the scale of a normalisation, or of a weight that is used in several ways.

    Args:
        *args: As for :class:`.LayerStatistics`.
        **kwargs: Likewise.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.layer.also:
            self._options = replace(self._options, bias=False)
        self._input = self._grad_output = None
        self._calls: dict[tuple[int, int], LayerCall] = {}
        self._of_inputs = self._of_grads = 0.0

    def _add_inputs(self, use: WeightUse, inputs: Tensor, _num_samples: int, /) -> None:
        """Note how large the rows are."""
        rows = inputs.numel() / inputs.shape[-1]
        square = rows if use.operation.num_entries else float(frobenius_norm(inputs)) ** 2
        self._of_inputs = max(self._of_inputs, square / rows)

    def _keep_inputs(self, use: WeightUse, _inputs: Tensor, call: tuple[int, int]) -> None:
        # All rows are those of one sample here: their sum is what is compared.
        plain = replace(self._options, bias=False)
        about = use.inputs.detach(), use.output_shape, 1
        self._calls[call] = LayerCall(self.name, use.operation, plain, *about)

    def _certify(
        self,
        call: tuple[int, int],
        grad: Tensor,
        norm: Tensor,
        dtype: torch.dtype,
        current: ForwardPass,
    ) -> None:
        kept = self._calls.pop(call, None)
        if kept is None:
            return
        self._of_grads += (float(norm) * current.denominator) ** 2 / current.num_samples
        formed = sample_gradients(self.layer, kept, grad, torch.float64)
        formed = self.layer.lay_out(formed.view(self.layer.weight.shape))
        num_rows = kept.inputs.numel() / kept.inputs.shape[-1]
        rounding = math.sqrt(num_rows * self._of_inputs) * float(norm)
        groups = self.layer.operation.groups
        self._weight.certificate.add_formed(groups, formed, rounding, dtype)

    def _row_power(self) -> float:
        return self._of_inputs * self._of_grads

    def _mean_fraction(self) -> float:
        return math.nan
