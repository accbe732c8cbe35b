"""Measurement of batches: the passes of the loss, and extra backward passes of other labels."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from condexp.analysis.communicator import SINGLE_PROCESS, Communicator
from condexp.analysis.curvature.certificate import (
    NUM_SAMPLES,
    WrongDerivativeError,
    certify_products,
)
from condexp.analysis.curvature.measure import (
    Curvature,
    Vectors,
    loss_passes,
    measure_curvature,
)
from condexp.analysis.curvature.passes import LossPass
from condexp.analysis.curvature.sharpness import SHARPNESS, Sharpness, measure_sharpness
from condexp.analysis.fisher.memory import Memory
from condexp.analysis.float64_network import float64_network, refuse_rounding, widened
from condexp.analysis.layers.calls import PassMode
from condexp.analysis.layers.compiled import run_uncompiled
from condexp.analysis.loss.calls import ObservedLoss, measured_denominator
from condexp.analysis.loss.cotangents import Cotangents, FisherLabels, refuse_batch_statistics
from condexp.analysis.model_state import preserved_state
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import Snapshot
from condexp.analysis.statistics.hooks import MeasurementHooks
from condexp.analysis.vocabulary import CURVATURE_MATRICES, SIGNAL_MATRICES, Matrix
from condexp.analysis.watch import tell
from condexp.errors import InputError

LossFunction = Callable[[Any, Any], Tensor]
logger = logging.getLogger("condexp")


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run passes of an analysis: with gradients, uncompiled, and the model is left as found.

    Args:
        model: The network.

    Yields:
        Nothing.
    """
    with (
        preserved_state(model),
        torch.inference_mode(False),
        torch.enable_grad(),
        run_uncompiled(model),
    ):
        yield


def back_propagate_loss(
    hooks: MeasurementHooks, loss: Tensor, *, retain_graph: bool = False
) -> None:
    """Back-propagate the loss of the last pass to all that is trained.

    Args:
        hooks: Measure the pass.
        loss: The loss.
        retain_graph: Whether other back-propagations through the pass follow.
    """
    if hooks.recomputes(loss):  # such a checkpoint refuses autograd.grad; .grad is set aside
        loss.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]
    else:  # touches no .grad, and calls no hook of an optimizer
        torch.autograd.grad(loss, hooks.trained, retain_graph=retain_graph, allow_unused=True)


def certify_few(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Any,
    matrices: Sequence[Matrix],
    seed: int,
) -> None:
    """Certify the products of curvature matrices in float64, on the first samples of a batch.

    Args:
        model: The network.
        loss_fn: The loss.
        inputs: ``[N, ...]``.
        targets: Targets of these.
        matrices: Which.
        seed: Of the certificate's vector.
    """
    few = slice(NUM_SAMPLES)
    if isinstance(targets, Tensor) and targets.ndim and len(targets) == len(inputs):
        inputs, targets = inputs[few], targets[few]
    inputs, targets = widened(inputs), widened(targets)
    one = LossPass(lambda: model(inputs.clone()), lambda f: loss_fn(f, targets))
    certify(model, loss_fn, one, matrices, seed)


def certify(
    model: nn.Module, loss_fn: object, batch: LossPass, matrices: Sequence[Matrix], seed: int
) -> None:
    """Certify the products of curvature matrices in float64.

    A network that has no float64 pass has no certificate, and the log says so.

    Args:
        model: The network.
        loss_fn: The loss.
        batch: A pass of the network on widened inputs and targets.
        matrices: Which.
        seed: Of the certificate's vector.

    Raises:
        WrongDerivativeError: If a product is wrong.
    """
    try:
        with float64_network(model, loss_fn), undisturbed(model):
            certify_products(model, batch, matrices, seed)
    except WrongDerivativeError:
        raise
    except (InputError, RuntimeError) as error:  # what is wrong beside it, the search says
        said = (str(error).splitlines() or [type(error).__name__])[0]
        logger.info("second derivatives are not certified, for want of a float64 pass: %s", said)


@dataclass(frozen=True)
class _Run:
    """State of one run through the batches."""

    hooks: MeasurementHooks
    memory: Memory


@dataclass(frozen=True)
class Measurement:
    """The batches of one analysis, and the passes that are run on each.

    Args:
        model: The network; it is left exactly as found.
        loss_fn: ``loss_fn(outputs, targets)``, a scalar.
        batches: Pairs of inputs ``[N_b, ...]`` and targets.
        options: What to measure.
        learning_rate: For ``effective_lr``.
        denominator: D of the loss; None: see :func:`.loss_denominator`.
        communicator: The processes that take turns at the batches, which all of them have.
        start: Eigenvectors from which those of ``hessian`` and ``ggn`` are searched.
    """

    model: nn.Module
    loss_fn: LossFunction
    batches: Iterable[tuple[Tensor, Any]]
    options: AnalysisOptions
    learning_rate: float | None = None
    denominator: float | None = None
    communicator: Communicator = SINGLE_PROCESS
    start: Vectors | None = None

    def measure(self) -> Snapshot:
        """Measure all batches together.

        Returns:
            The snapshot; of several processes, rank 0 has it.
        """
        if self.options.in_float64:
            with float64_network(self.model, self.loss_fn):
                return self._measure()
        return self._measure()

    def _measure(self) -> Snapshot:
        hooks = self._run()
        if reused := hooks.statistics.reused_layers:
            hooks = replace(self, options=replace(self.options, float64=reused))._run()
        snapshot = hooks.snapshot(self.communicator)
        if self.options.wants_curvature:
            snapshot = snapshot.with_curvature(self.curvature())
        return snapshot

    def curvature(self) -> Curvature:
        """Measure the Hessian and the Gauss–Newton matrix of all batches together.

        Returns:
            Their spectra.

        Raises:
            InputError: If several processes take turns at the batches.
        """
        if self.communicator.world_size > 1:
            raise InputError(
                "matrices 'hessian' and 'ggn' are measured by one process alone, and "
                f"{self.communicator.world_size} train together."
            )
        wanted = [matrix for matrix in CURVATURE_MATRICES if self.options.wants(matrix)]
        self._certify(wanted)
        with undisturbed(self.model):
            return measure_curvature(self.model, self._loss_passes(), self.options, self.start)

    def sharpness(self) -> Sharpness:
        """Measure λ_max of the Hessian of all batches together, by a few products.

        Returns:
            λ_max and its error.
        """
        self._certify([Matrix.HESSIAN])
        in_float64 = float64_network(self.model, self.loss_fn)
        start = (self.start or {}).get(SHARPNESS)
        with in_float64 if self.options.in_float64 else nullcontext(), undisturbed(self.model):
            return measure_sharpness(self.model, self._loss_passes(), self.options, start)

    def _certify(self, matrices: Sequence[Matrix]) -> None:
        """Certify the products of a few samples; once, as long as searches go on from vectors."""
        names = [name.partition("/")[0] for name in self.start or ()]
        known = {Matrix.HESSIAN if name == SHARPNESS else Matrix(name) for name in names}
        batch = next(iter(self.batches), None)
        todo = [matrix for matrix in matrices if matrix not in known]
        if batch is not None and todo:
            certify_few(self.model, self.loss_fn, *batch, todo, self.options.seed)

    def _loss_passes(self) -> list[LossPass]:
        batches = [(inputs, targets) for inputs, targets in self.batches]
        if self.options.in_float64:
            batches = [(widened(inputs), widened(targets)) for inputs, targets in batches]
        return loss_passes(self.model, self.loss_fn, batches)

    @property
    def _pass_mode(self) -> PassMode:
        # ONE_PASS may run the batch a second time, so an iterator is never asked for that.
        one = isinstance(self.batches, Sequence) and len(self.batches) == 1
        if one and self.communicator.world_size == 1:
            return PassMode.ONE_PASS
        return PassMode.SEVERAL_PASSES

    def _run(self) -> MeasurementHooks:
        if self._needs_labels:
            refuse_batch_statistics(self.model, self.options)
            if isinstance(self.loss_fn, _Loss):
                FisherLabels(self.loss_fn, self.options)  # what it refuses is refused beforehand
        run = _Run(self._hooks(), self._memory())
        num_batches = 0
        with undisturbed(self.model), run.hooks:
            for number, (inputs, targets) in enumerate(self.batches):
                tell("batch", number, self._num_batches)
                num_batches += 1
                if number % self.communicator.world_size == self.communicator.rank:
                    self._pass(run, number, inputs, targets)
        if num_batches == 0:
            raise InputError("there is no batch to analyse: give at least one (inputs, targets).")
        return run.hooks

    @property
    def _num_batches(self) -> int:
        return len(self.batches) if isinstance(self.batches, Sequence) else 0

    @property
    def _needs_labels(self) -> bool:
        return not self.options.is_empirical and self.options.wants(*SIGNAL_MATRICES)

    def _hooks(self) -> MeasurementHooks:
        return MeasurementHooks(
            self.model,
            self.options,
            learning_rate=self.learning_rate,
            denominator=self.denominator,
            runs_eagerly=True,
            pass_mode=self._pass_mode,
        )

    def _memory(self) -> Memory:
        num_samples = None
        if isinstance(self.batches, Sequence):
            num_samples = sum(len(inputs) for inputs, _ in self.batches if _has_samples(inputs))
        has_grams = self.options.wants(Matrix.FISHER)
        limit = self.options.memory_limit
        return Memory(limit, num_samples, self._pass_mode, has_grams=has_grams)

    def _pass(self, run: _Run, number: int, inputs: Tensor, targets: Any) -> None:
        if not _has_samples(inputs):
            raise InputError(
                "inputs must be a tensor [N, ...] with at least one sample, got "
                f"{_described(inputs)}; for other inputs put a Recorder around your own forward "
                "and backward pass."
            )
        hooks = run.hooks
        if self.options.in_float64:
            inputs, targets = widened(inputs), widened(targets)
            if number == self.communicator.rank:  # the first of this process
                refuse_rounding(self.model, inputs)
        # A copy, because the first operation may work in place.
        outputs = self.model(inputs.clone())
        hooks.statistics.loss_rounding.expect(self.loss_fn, outputs, targets)
        observed = ObservedLoss.of(self.loss_fn, outputs, targets)
        loss = observed.value
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise InputError(
                f"loss_fn must return a scalar tensor, got {_described(loss)}; "
                "take the mean over the samples."
            )
        if self.denominator is None:
            hooks.set_denominator(
                measured_denominator(self.loss_fn, observed, outputs, targets, len(inputs))
            )
        if not (loss.requires_grad and hooks.trained):
            return
        cotangents = None
        if self._needs_labels:
            _refuse_mixing(hooks)
            labels = FisherLabels(observed.plain(outputs) or self.loss_fn, self.options)
            cotangents = labels.cotangents(outputs, targets, len(inputs), number)
        count = 1 if cotangents is None else cotangents.count
        groups = run.memory.groups(
            hooks.statistics.blocks, count, len(inputs), hooks.statistics.num_samples
        )
        retain = cotangents is not None
        back_propagate_loss(hooks, loss, retain_graph=retain)
        if cotangents is not None:
            _back_propagate_cotangents(hooks, outputs, cotangents, groups or [list(hooks.edges)])
        for part in hooks.statistics.of_samples:
            part.close()  # also where some call got no gradient


def _back_propagate_cotangents(
    hooks: MeasurementHooks,
    outputs: Tensor,
    cotangents: Cotangents,
    groups: Sequence[Sequence[str]],
) -> None:
    """Back-propagate all cotangents, as far as the layers of one group after another."""
    recomputes = hooks.recomputes(outputs)
    for names in groups:
        edges = [edge for name in names for edge in hooks.edges.get(name, ())]
        with hooks.extra_backward(names, cotangents.count):
            for number in range(cotangents.count):
                tell("back-propagation", number, cotangents.count)
                hooks.next_backward()
                made = cotangents.make(number)
                if recomputes:
                    torch.autograd.backward(outputs, made, retain_graph=True)
                else:
                    torch.autograd.grad(outputs, edges, made, retain_graph=True, allow_unused=True)


def _refuse_mixing(hooks: MeasurementHooks) -> None:
    """Refuse labels of the model's own where one sample's output depends on other samples.

    Raises:
        InputError: If a sample's gradient reaches other samples' rows.
    """
    for layer in hooks.statistics.layers:
        if layer.mixes_samples and True not in hooks.statistics.batch_statistics:
            raise InputError(
                f"fisher_type={str(hooks.options.fisher_type)!r} is not defined here: a sample's "
                f"output depends on other samples' rows in layer {layer.name!r}, so that batched "
                "back-propagation mixes them (own batch statistics in training mode?); measure in "
                "eval mode (model.eval()) or use fisher_type='empirical'."
            )


def _has_samples(inputs: object) -> bool:
    return isinstance(inputs, Tensor) and inputs.ndim > 0 and len(inputs) > 0


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return type(value).__name__
