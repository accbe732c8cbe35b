"""Hooks that listen to a model's forward and backward pass and tell the layers' tapes."""

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
from condexp.analysis.layers.calls import ForwardPass
from condexp.analysis.layers.rows import Layer, count_samples
from condexp.analysis.layers.select import select_modules
from condexp.analysis.loss.rounding import LossRounding
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import Snapshot
from condexp.analysis.statistics.layer import LayerStatistics
from condexp.analysis.statistics.network import NetworkStatistics
from condexp.analysis.vocabulary import FisherType
from condexp.errors import InputError


@dataclass(frozen=True)
class _ExtraBackward:
    """Back-propagations of signals that are not the loss's, heard by some layers."""

    names: frozenset[str]
    num_signals: int


class MeasurementHooks:
    """Measure the layers of a model during passes that somebody else runs inside a ``with``.

    Args:
        model: The network.
        options: What to measure.
        denominator: D of the loss; None: N. May be set between passes.
        learning_rate: For ``effective_lr``: lr / (1 − momentum).
        loss_fn: The loss, if its gradient's rounding is to count as noise.
        streaming: Several passes will follow, so ``auto`` takes float64 products at once, and
            ``fisher`` keeps its rows until the snapshot.
        single: One pass will follow, and the snapshot before the weights change, so nothing but the
            spectrum is kept of a layer's rows; layers that came again are named.
        keeps_weights: For a ``domination`` that is read later; else it is NaN unless it is stored.

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
        streaming: bool = False,
        single: bool = False,
        keeps_weights: bool = True,
    ) -> None:
        self.model, self.options, self.denominator = model, options, denominator
        self.edges: dict[str, list[GradientEdge]] = {}
        self._modules, _ = select_modules(model, options)
        self.tapes = NetworkStatistics(
            self._modules,
            options,
            learning_rate=learning_rate,
            root_noise=None if loss_fn is None else LossRounding(loss_fn),
            streaming=streaming,
            single=single,
            keeps_weights=keeps_weights,
        )
        self._handles: list[RemovableHandle] = []
        self._pass: ForwardPass | None = None
        self._sweep: _ExtraBackward | None = None

    @property
    def weights(self) -> list[Tensor]:
        """The weights that are measured and trained, each once."""
        weights = {id(module.weight): module.weight for module in self._modules.values()}
        return [weight for weight in weights.values() if weight.requires_grad]

    def __enter__(self) -> Self:
        self._refuse_frozen()
        self._keep(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
        if self.tapes.root_noise is not None:
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
    def sweep(self, names: Iterable[str], num_signals: int) -> Iterator[None]:
        """Hear the signals that are back-propagated inside, through the last pass.

        Args:
            names: The layers that hear them.
            num_signals: How many they are; together they make one matrix.

        Yields:
            Nothing.
        """
        self._sweep = _ExtraBackward(frozenset(names), num_signals)
        try:
            yield
        finally:
            self._sweep = None

    def snapshot(self, communicator: Communicator = SINGLE_PROCESS) -> Snapshot:
        """Return what was measured so far.

        Args:
            communicator: The processes whose listeners have heard passes of their own, and
                call this together.

        Returns:
            The records of all layers that were called, in the order of their first call; where
            there are other ranks than this, rank 0 has it.

        Raises:
            InputError: If nothing was recorded, or a gradient that was asked for did not arrive.
        """
        return self.tapes.snapshot(communicator)

    @property
    def _hears_the_loss(self) -> bool:
        """Whether the loss's own gradient is the signal."""
        return self.options.fisher_type is FisherType.EMPIRICAL

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
        self.tapes.num_samples += num_samples
        self.edges.clear()
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                self.tapes.batch_statistics.add(module.training or module.running_mean is None)

    def _end(self, _model: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        noise, current = self.tapes.root_noise, self._pass
        if noise and current and isinstance(output, Tensor) and output.requires_grad:
            listener = noise.listener(output, current.denominator)
            self._on_grad(output, lambda grad: None if self._sweep else listener(grad))

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
            if name in self.tapes and torch._C._current_graph_task_id() != -1:
                return  # an activation checkpoint computes again what was heard
            tape, current = self.tapes[name], self._pass
            with torch.no_grad():
                use = tape.forward((args[0] if args else kwargs["input"]).detach(), output, current)
            if tape.listens_to_gradients:
                # On the tensor, not on the module: an in-place activation may follow.
                self._on_grad(output, partial(self._on_output_grad, tape, current, use))
                if not self._hears_the_loss:
                    self.edges.setdefault(name, []).append(get_gradient_edge(output))

        return hook

    def _on_output_grad(
        self, tape: LayerStatistics, current: ForwardPass, use: int, grad: Tensor
    ) -> None:
        if self._hears_the_loss:
            tape.backward(grad, current, use)
        elif self._sweep is not None and tape.name in self._sweep.names:
            signal = replace(current, denominator=1.0, num_signals=self._sweep.num_signals)
            tape.backward(grad, signal, use)

    def _on_weight_grad(self, name: str) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            if self._pass is not None and name in self.tapes and self._sweep is None:
                self.tapes[name].weight_backward(grad, self._pass)

        return hook
