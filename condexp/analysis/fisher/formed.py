"""The Fisher block of a weight whose samples' gradients are no sums of products of the same rows.

That is the scale of a normalisation, G_n = Σ_t g ⊙ x̂, and a weight that is used in several ways,
such as an embedding that is the last layer too: the gradients of all uses are added, entry by entry
of the weight.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from condexp.analysis.fisher.block import FisherBlock
from condexp.analysis.fisher.network import NetworkFisher
from condexp.analysis.layers.calls import LayerCall, PassMode
from condexp.analysis.layers.kinds import Layer
from condexp.analysis.linalg.gram import Batch, GradientShape, form_gradients
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import Matrix


class FormedFisherBlock(FisherBlock):
    """The Fisher block of a scale or of a weight that is used in several ways.

    Args:
        name: The layer's name.
        layer: The layer.
        options: As for :class:`.FisherBlock`.
        network: Likewise.
        pass_mode: Likewise.
    """

    def __init__(
        self,
        name: str,
        layer: Layer,
        options: AnalysisOptions,
        network: NetworkFisher,
        pass_mode: PassMode,
    ) -> None:
        super().__init__(name, layer, options, network, pass_mode)
        self._appends_one = layer.operation.appends_one(options)
        self._options = replace(self._options, bias=False)  # rows have none, also of other kinds

    @property
    def num_weights(self) -> int:
        """d: the number of weights, and of shifts with ``bias``."""
        return self._layer.weight.numel() + self._appends_one * self._layer.d_out

    def _takes_less_formed(self, _call: LayerCall) -> bool:
        return True  # there is no other way

    def _form(self, call: LayerCall, grad: Tensor) -> Tensor:
        if self._appends_one:
            scales, shifts = (
                scaled(call, grad, self.dtype, shift=shift) for shift in (False, True)
            )
            return torch.stack([scales, shifts], 2).flatten(1)
        return sample_gradients(self._layer, call, grad, self.dtype)


def fisher_block(
    name: str,
    layer: Layer,
    options: AnalysisOptions,
    network: NetworkFisher,
    pass_mode: PassMode,
) -> FisherBlock | None:
    """Return the Fisher block of a layer; see :class:`.FisherBlock`.

    Args:
        name: The layer's name.
        layer: The layer.
        options: As for the block.
        network: Likewise.
        pass_mode: Likewise.

    Returns:
        The block, of the kind that the layer needs; None where nothing of it is asked for.
    """
    if not (options.wants(Matrix.FISHER) or (options.wants(Matrix.EKFAC) and layer.has_factors)):
        return None
    kind = FisherBlock if layer.has_factors else FormedFisherBlock
    return kind(name, layer, options, network, pass_mode)


def sample_gradients(layer: Layer, call: LayerCall, grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the gradients of all samples by one use of a weight.

    Args:
        layer: The layer.
        call: The use.
        grad: Gradient of its output.
        dtype: Working precision.

    Returns:
        ``[N, d]``, in the order of the weight's own entries.
    """
    if call.operation.is_scale:
        return scaled(call, grad, dtype)
    kind = next(kind for kind in layer.kinds if kind.function == call.operation.function)
    if call.operation.num_entries:
        return _looked_up(call, grad, dtype)
    groups, d_in = call.operation.groups, kind.fan_in
    shape = GradientShape(groups, call.positions, d_in, kind.d_out // groups)
    batch = Batch(shape, call.num_samples, call.input_rows, (partial(call.grad_rows, grad),))
    formed = form_gradients(batch, 0, dtype)
    own = torch.empty_like(formed)
    own[:, _order(kind.weight, kind.lay_out).to(formed.device)] = formed
    return own


def _order(weight: Tensor, lay_out: Callable[[Tensor], Tensor]) -> Tensor:
    """Return which entry of a weight is where it is laid out."""
    entries = torch.arange(weight.numel()).view(weight.shape)
    return lay_out(entries).flatten()


def _looked_up(call: LayerCall, grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the samples' gradients of a table, ``[N, entries · d]``."""
    grads = call.grad_rows(grad, slice(None))[0].to(dtype)
    entries = call.indices()
    samples = torch.arange(len(entries), device=entries.device)[:, None]
    places = (samples * call.operation.num_entries + entries)[entries >= 0]
    found = grads.new_zeros(len(entries) * call.operation.num_entries, grads.shape[2])
    return found.index_add_(0, places, grads[entries >= 0]).reshape(len(entries), -1)


def scaled(call: LayerCall, grad: Tensor, dtype: torch.dtype, *, shift: bool = False) -> Tensor:
    """Return the samples' gradients of a scale, Σ_t g ⊙ x̂, or of a shift, Σ_t g: ``[N, c]``."""
    every = slice(None)
    grads = call.grad_rows(grad, every)[0].to(dtype)
    return (grads if shift else grads * call.input_rows(every)[0].to(dtype)).sum(1)
