"""Hooks on a model's forward and backward passes, which feed the statistics of its layers."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from condexp.analysis.communicator import SINGLE_PROCESS, Communicator
from condexp.analysis.layers.calls import ForwardPass, PassMode
from condexp.analysis.layers.rows import Layer, count_samples
from condexp.analysis.layers.select import select_modules
from condexp.analysis.loss.rounding import LossRounding
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import Snapshot
from condexp.analysis.statistics.layer import LayerStatistics
from condexp.analysis.statistics.network import NetworkStatistics
from condexp.errors import InputError


@dataclass(frozen=True)
class _ExtraBackward:
    """Back-propagations of other cotangents than the loss's, which some layers measure."""

    names: frozenset[str]
    num_signals: int


class MeasurementHooks:
    """Measure the layers of a model during passes that somebody else runs inside a ``with``.

    Args:
        model: The network.
        options: What to measure.
        denominator: D of the loss; None for N. May be set between passes.
        learning_rate: For ``effective_lr``: lr / (1 − momentum).
        loss_fn: The loss, if its gradient's rounding is to count as noise.
        pass_mode: Who runs the passes, and how many.
        keep_weights: Whether weights are kept for a ``domination`` that is read later; without them
            it is NaN unless ``weight`` or ``weight_grad`` is measured.

    Raises:
        InputError: If an option matches no layer.
    """

    def __init__(
        self,
        model: nn.Module,
        options: AnalysisOptions,
        *,
        denominator: float | None = None,
        learning_rate: float | None = None,
        loss_fn: object | None = None,
        pass_mode: PassMode = PassMode.USER_PASSES,
        keep_weights: bool = True,
    ) -> None:
        self.model, self.options, self.denominator = model, options, denominator
        self.edges: dict[str, list[GradientEdge]] = {}
        self._modules, _ = select_modules(model, options)
        self.statistics = NetworkStatistics(
            self._modules,
            options,
            learning_rate=learning_rate,
            loss_rounding=None if loss_fn is None else LossRounding(loss_fn),
            pass_mode=pass_mode,
            keep_weights=keep_weights,
        )
        self._handles: list[RemovableHandle] = []
        self._pass: ForwardPass | None = None
        self._extra: _ExtraBackward | None = None

    @property
    def weights(self) -> list[Tensor]:
        """The weights that are measured and trained, each once."""
        weights = {id(module.weight): module.weight for module in self._modules.values()}
        return [weight for weight in weights.values() if weight.requires_grad]

    def __enter__(self) -> Self:
        self._refuse_frozen()
        self._keep(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
        if self.statistics.loss_rounding is not None:
            self._keep(self.model.register_forward_hook(self._end))
        for name, module in self._modules.items():
            self._keep(module.register_forward_hook(self._on_forward(name), with_kwargs=True))
            if module.weight.requires_grad:
                self._on_grad(module.weight, self._on_weight_grad(name))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.edges.clear()

    @contextmanager
    def extra_backward(self, names: Iterable[str], num_signals: int) -> Iterator[None]:
        """Measure the cotangents that are back-propagated inside, through the last pass.

        Args:
            names: Names of the layers that measure them.
            num_signals: Number of cotangents; together they make one matrix.

        Yields:
            Nothing.
        """
        self._extra = _ExtraBackward(frozenset(names), num_signals)
        try:
            yield
        finally:
            self._extra = None

    def snapshot(self, communicator: Communicator = SINGLE_PROCESS) -> Snapshot:
        """Return what was measured so far.

        Args:
            communicator: The processes that have measured passes of their own, and call this
                together.

        Returns:
            The records of all layers that were called, in the order of their first call; where
            there are several processes, rank 0 has them.

        Raises:
            InputError: If nothing was recorded, or a gradient that was asked for did not arrive.
        """
        return self.statistics.snapshot(communicator)

    def _keep(self, handle: RemovableHandle) -> None:
        self._handles.append(handle)

    def _on_grad(self, tensor: Tensor, hook: Callable[[Tensor], None]) -> None:
        self._keep(tensor.register_hook(hook))  # type: ignore[no-untyped-call]

    def _refuse_frozen(self) -> None:
        for name, module in self._modules.items():
            if self.options.needs_gradients and not module.weight.requires_grad:
                raise InputError(
                    f"layer {name!r} is frozen (its weight has requires_grad=False), so it has no "
                    f"gradient: leave it out with exclude=[{name!r}], or ask for "
                    "matrices=('input', 'weight') only."
                )

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        number = 0 if self._pass is None else self._pass.number + 1
        num_samples = count_samples((args, kwargs))
        denominator = float(num_samples) if self.denominator is None else self.denominator
        self._pass = ForwardPass(number, num_samples, denominator)
        self.statistics.num_samples += num_samples
        self.edges.clear()
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                self.statistics.batch_statistics.add(module.training or module.running_mean is None)

    def _end(self, _model: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        rounding, current = self.statistics.loss_rounding, self._pass
        if rounding and current and isinstance(output, Tensor) and output.requires_grad:
            hook = rounding.output_hook(output, current.denominator)
            self._on_grad(output, lambda grad: None if self._extra else hook(grad))

    def _on_forward(self, name: str) -> Callable[..., None]:
        def hook(_module: Layer, args: Any, kwargs: dict[str, Any], output: Tensor) -> None:
            if not torch.is_grad_enabled():
                return
            if self._pass is None:
                raise InputError(
                    f"layer {name!r} was called on its own: call the recorded model itself, "
                    "which tells the number of samples."
                )
            if self._pass.num_samples == 0:
                return
            if name in self.statistics and torch._C._current_graph_task_id() != -1:
                return  # an activation checkpoint computes again what was measured
            layer, current = self.statistics[name], self._pass
            given: Tensor = args[0] if args else kwargs["input"]
            with torch.no_grad():
                use = layer.forward(given.detach(), output, current)
            if layer.needs_output_gradients:
                # On the tensor, not on the module: an in-place activation may follow.
                self._on_grad(output, partial(self._on_output_grad, layer, current, use))
                if not self.options.is_empirical:
                    self.edges.setdefault(name, []).append(get_gradient_edge(output))

        return hook

    def _on_output_grad(
        self, layer: LayerStatistics, current: ForwardPass, use: int, grad: Tensor
    ) -> None:
        if self.options.is_empirical:
            layer.backward(grad, current, use)
        elif self._extra is not None and layer.name in self._extra.names:
            extra = replace(current, denominator=1.0, num_signals=self._extra.num_signals)
            layer.backward(grad, extra, use)

    def _on_weight_grad(self, name: str) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            if self._pass is not None and name in self.statistics and self._extra is None:
                self.statistics[name].weight_backward(grad, self._pass)

        return hook
