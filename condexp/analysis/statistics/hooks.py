"""Hooks on a model's forward and backward passes, which feed the statistics of its layers."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from condexp.analysis.communicator import SINGLE_PROCESS, Communicator
from condexp.analysis.layers.calls import ExtraBackward, ForwardPass, PassMode
from condexp.analysis.layers.compiled import compiled_parts
from condexp.analysis.layers.rows import Operation
from condexp.analysis.layers.samples import SampleTest, count_samples, tensors_in
from condexp.analysis.layers.select import select_layers
from condexp.analysis.layers.tables import OwnTables
from condexp.analysis.layers.use import WeightUse
from condexp.analysis.layers.uses import has_reentrant_checkpoint, watched
from condexp.analysis.linalg.norms import frobenius_norm
from condexp.analysis.linalg.precision import summable
from condexp.analysis.loss.rounding import logits_of
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import Snapshot
from condexp.analysis.statistics.layer import LayerStatistics
from condexp.analysis.statistics.network import NetworkStatistics
from condexp.analysis.vocabulary import SAMPLE_MATRICES, FisherType
from condexp.errors import InputError


class MeasurementHooks:
    """Measure the layers of a model during passes that somebody else runs inside a ``with``.

    Args:
        model: The network.
        options: What to measure.
        denominator: D of the loss; None for N. May be set between passes.
        learning_rate: For ``effective_lr``: lr / (1 − momentum).
        num_samples: N of each pass; None: see :func:`.count_samples`.
        runs_eagerly: Whether compiled parts are run as they were before.
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
        num_samples: int | None = None,
        runs_eagerly: bool = False,
        pass_mode: PassMode = PassMode.USER_PASSES,
        keep_weights: bool = True,
    ) -> None:
        self.model, self.options, self.denominator = model, options, denominator
        self.num_samples = num_samples
        self.edges: dict[str, list[GradientEdge]] = {}
        selection = select_layers(model, options)
        self._layers = selection.layers
        self.statistics = NetworkStatistics(
            model,
            selection,
            options,
            learning_rate=learning_rate,
            pass_mode=pass_mode,
            keep_weights=keep_weights,
        )
        self._handles: list[RemovableHandle] = []
        self._pass: ForwardPass | None = None
        self._extra: ExtraBackward | None = None
        self._test: SampleTest | None = None
        self._watch = ExitStack()
        self._tables = OwnTables(model)
        self._last_product: tuple[str | None, Callable[[], Tensor | None]] = None, lambda: None
        self._runs_eagerly = runs_eagerly
        self._reads_denominator = pass_mode is PassMode.USER_PASSES
        self._hides_uses = False
        self._early: dict[str, list[Tensor]] = {}
        self._on_root: Callable[[Tensor], None] | None = None
        self._hidden: dict[str, list[ForwardPass]] = {}
        self._recomputed: dict[str, list[tuple[ForwardPass, int | None]]] = {}
        self._num_recomputed: Counter[str] = Counter()
        self._num_uses: Counter[str] = Counter()

    @property
    def trained(self) -> list[Tensor]:
        """The parameters that are trained, each once."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def recomputes(self, loss: Tensor) -> bool:
        """Return whether a re-entrant checkpoint, which has to reach all parameters, hides uses.

        Args:
            loss: The loss, or an output, of the last forward pass.
        """
        return self._hides_uses and has_reentrant_checkpoint(loss)

    def __enter__(self) -> Self:
        self._refuse_compiled()
        self._keep(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
        self._keep(self.model.register_forward_hook(self._end))
        measured = {id(layer.weight): name for name, layer in self._layers.items()}
        for parameter in self.trained:
            self._on_grad(parameter, self._on_parameter_grad(measured.get(id(parameter))))
        self._watch.enter_context(watched(self._layers, self._on_use))
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.close()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.edges.clear()
        self._hidden.clear()

    @contextmanager
    def extra_backward(self, names: Iterable[str], num_signals: int) -> Iterator[None]:
        """Measure the cotangents that are back-propagated inside, through the last pass.

        Args:
            names: Names of the layers that measure them.
            num_signals: Number of cotangents; together they make one matrix.

        Yields:
            Nothing.
        """
        self._extra = ExtraBackward(frozenset(names), num_signals)
        try:
            yield
        finally:
            self._extra = None

    def next_backward(self) -> None:
        """Begin another backward pass of the same forward pass: it recomputes the same uses."""
        self._num_recomputed.clear()

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

    def _refuse_compiled(self) -> None:
        if parts := [] if self._runs_eagerly else compiled_parts(self.model):
            raise InputError(
                f"{', '.join(parts)}: compiled by torch.compile, whose code does not call what a "
                "Recorder watches: record the module that was compiled (its _orig_mod), or use "
                "condexp.analyze, which runs it uncompiled."
            )

    def set_denominator(self, denominator: float) -> None:
        """Set D of the pass under way, before its loss is back-propagated."""
        assert self._pass is not None
        self._pass.denominator = denominator

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        number = 0 if self._pass is None else self._pass.number + 1
        num_samples = self.num_samples or count_samples((args, kwargs))
        denominator = float(num_samples) if self.denominator is None else self.denominator
        self._pass = ForwardPass(number, num_samples, denominator)
        self.statistics.num_samples += num_samples
        self.edges.clear()
        self._recomputed.clear()
        self._num_recomputed.clear()
        self._num_uses.clear()
        self._tables = OwnTables(model, (args, kwargs), num_samples)
        self._hides_uses, self._on_root = False, None
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                self.statistics.batch_statistics.add(module.training or module.running_mean is None)

    def _end(self, _model: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        current = self._pass
        if current is None or not torch.is_grad_enabled():
            return
        logits = logits_of(output)
        if logits is not None and logits.requires_grad:
            name, product = self._last_product
            self.statistics.output_layer = name if product() is logits else None
            hook = self.statistics.loss_rounding.output_hook(logits, current)
            self._on_root = partial(self._on_root_grad, hook, current)
            self._on_grad(logits, self._on_root)
            self.statistics.compare_uses(logits, self._num_uses)
        for name, use, source, node in self._tables.of_samples(tensors_in(output)):
            self.statistics.of_tables.discard(name)
            self._measure(name, use, source, current, node)
        if self._needs_sample_test and current.num_samples > 1:
            self._test_samples(current, output)

    def _on_root_grad(
        self, hook: Callable[[Tensor], None], current: ForwardPass, grad: Tensor
    ) -> None:
        if not self._is_loss or self._on_root is None:
            return
        self._on_root = None
        rounding = self.statistics.loss_rounding
        rounding.scale = None
        hook(grad)
        if self._reads_denominator and self.denominator is None and rounding.scale is not None:
            measured = 1 / rounding.scale
            if abs(measured / current.denominator - 1) > 1e-3:  # else it is N, exactly
                current.denominator = measured

    @property
    def _needs_sample_test(self) -> bool:
        exact = self.options.fisher_type is FisherType.EXACT
        rows = self.options.wants(*SAMPLE_MATRICES) or self.options.reduces
        return rows or exact or bool(self._tables.doubtful)

    @property
    def _is_loss(self) -> bool:
        """Whether the backward pass under way is that of the data's loss."""
        return self._extra is None and self._test is None

    def _test_samples(self, current: ForwardPass, output: object) -> None:
        mixes = True in self.statistics.batch_statistics
        test = SampleTest.of(current.num_samples, mixes=mixes)
        parts = self.statistics.of_samples
        self._back_propagate_samples(test, output)
        if any(part.needs_another_test for part in parts):
            self._back_propagate_samples(test.complement, output)
        for alone in test.of_single_samples:
            self._back_propagate_samples(alone, output)
        for name in () if mixes else self._tables.doubtful:
            if self.statistics[name].mixes_samples:
                self.statistics.leave_out(name)
        for part in self.statistics.of_samples:
            part.tests_are_over()

    def _back_propagate_samples(self, test: SampleTest, output: object) -> None:
        self._test = test
        roots, signs = test.cotangents(tensors_in(output))
        edges = [edge for several in self.edges.values() for edge in several]
        try:
            if roots and edges:
                torch.autograd.grad(roots, edges, signs, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            if "checkpoint" not in str(error).lower():
                raise
            # Re-entrant checkpoints want a backward pass to all parameters.
            if not self._runs_eagerly:
                for part in self.statistics.of_samples:
                    part.refuse(
                        "whether its rows belong to samples cannot be seen through a re-entrant "
                        "activation checkpoint: take use_reentrant=False or condexp.analyze"
                    )
                return
            torch.autograd.backward(roots, signs, retain_graph=True)
        finally:
            self._test = None
            self.next_backward()

    def _on_use(self, name: str, use: WeightUse, source: Tensor) -> None:
        in_backward = torch._C._current_graph_task_id() != -1
        if not torch.is_grad_enabled():
            if self._pass is not None and not in_backward:
                self._hides_uses = True
                self.statistics.see(name)
                self._hidden.setdefault(name, []).append(self._pass)
                self.statistics.hidden.add(name)
            return
        if self._pass is None:
            raise InputError(
                f"layer {name!r} was called on its own: call the recorded model itself, "
                "which tells the number of samples."
            )
        if self._pass.num_samples == 0:
            return
        if in_backward:
            self._on_recomputed_use(name, use, source)
            return
        self._num_uses[name] += 1
        if self._tables.maps(name, use, source):
            self.statistics.of_tables.add(name)
            self.statistics.see(name)
            return
        self._measure(name, use, source, self._pass)

    def _measure(
        self, name: str, use: WeightUse, source: Tensor, current: ForwardPass, node: Any = None
    ) -> None:
        layer = self.statistics[name]
        with torch.no_grad():
            number = layer.forward(use, current)
        if number is None or not source.requires_grad:
            return
        hook = partial(self._on_output_grad, layer, use.operation, use.lay_out, current, number)
        if node is None:
            self._on_grad(source, hook)
            self._last_product = name, weakref.ref(source)
        else:
            self._keep(node.register_prehook(lambda grads: hook(grads[0])))
        if self._needs_sample_test or not self.options.is_empirical:
            self.edges.setdefault(name, []).append(get_gradient_edge(source))

    def _on_recomputed_use(self, name: str, use: WeightUse, source: Tensor) -> None:
        """Measure a use in the backward pass, of a re-entrant checkpoint, once its gradient comes.

        Others compute again what was measured; nothing is back-propagated through that.
        """
        use = use.detached()
        inputs, version = use.inputs, use.inputs._version

        def commit(grad: Tensor) -> None:
            if inputs._version != version:
                raise InputError(
                    f"the input of layer {name!r} was changed in place inside an activation "
                    f"checkpoint: leave it out with exclude=[{name!r}]."
                )
            place = self._num_recomputed[name]
            self._num_recomputed[name] += 1
            before = self._recomputed.setdefault(name, [])
            if place == len(before):
                hidden = self._hidden.get(name)
                current = hidden.pop() if hidden else self._pass
                assert current is not None
                layer = self.statistics[name]
                with torch.no_grad():
                    number = layer.forward(use, current, recomputed=True)
                before.append((current, number))
                for early in self._early.pop(name, ()):  # of uses outside the checkpoint
                    layer.weight_backward(early, current, in_parts=True)
            current, number = before[place]
            if number is not None:
                about = self.statistics[name], use.operation, use.lay_out, current
                self._on_output_grad(*about, number, grad)

        if source.requires_grad:
            self._on_grad(source, commit)

    def _on_output_grad(
        self,
        layer: LayerStatistics,
        operation: Operation,
        lay_out: Callable[[Tensor], Tensor],
        current: ForwardPass,
        number: int,
        grad: Tensor,
    ) -> None:
        if grad.numel() == 0 or layer.name not in self.statistics:
            return
        grad = lay_out(grad)
        if self._test is not None:
            layer.test_samples(self._test, operation, number, grad)
        elif self._extra is None:
            if layer.name == self.statistics.output_layer and self._on_root is not None:
                self._on_root(grad)  # whose own hook comes after this one
            layer.backward(operation, number, grad, current)
        elif layer.name in self._extra.names:
            extra = replace(current, denominator=1.0, num_signals=self._extra.num_signals)
            layer.backward(operation, number, grad, extra, of_loss=False)

    def _on_parameter_grad(self, name: str | None) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            if self._pass is None or not self._is_loss:
                return
            statistics = self.statistics
            if name is not None and name not in statistics and self._hidden.get(name):
                self._early.setdefault(name, []).append(grad.clone())
                return
            if name is None or name not in statistics:
                dense = grad.to_dense() if grad.is_sparse else grad
                statistics.unmeasured_norms.append(frobenius_norm(summable(dense)))
                if name is not None:
                    statistics.unexplained.add(name)
                return
            in_parts = name in self._recomputed
            statistics[name].weight_backward(grad, self._pass, in_parts=in_parts)

        return hook
