"""Batches that are no pair of tensors: mappings, dataclasses, several inputs, losses of models."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from condexp.analysis.curvature.measure import measure_curvature
from condexp.analysis.curvature.passes import LossPass
from condexp.analysis.float64_network import widened
from condexp.analysis.layers.samples import count_samples
from condexp.analysis.measurement import back_propagate_loss, certify, undisturbed
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import Snapshot
from condexp.analysis.statistics.hooks import MeasurementHooks
from condexp.analysis.vocabulary import CURVATURE_MATRICES
from condexp.errors import InputError

AnyLoss = Callable[[Any, Any], Tensor]


def analyze_any(
    model: nn.Module,
    loss_fn: AnyLoss | None,
    batch: Any,
    options: AnalysisOptions,
    denominator: float | None,
    learning_rate: float | None,
) -> Snapshot:
    """Measure a model on one batch of any kind, in one pass, and leave it exactly as found.

    Args:
        model: Called as ``model(**batch)`` with a mapping, ``model(*batch[:-1])`` with a tuple or a
            list, and ``model(batch)`` with anything else.
        loss_fn: ``loss_fn(outputs, batch[-1])`` for a tuple or a list, else ``loss_fn(outputs,
            batch)``; None: the loss is ``outputs.loss`` or ``outputs["loss"]``.
        batch: The batch; N is the first dimension of its tensors.
        options: What to measure: of the data's labels, in the network's own precision.
        denominator: D of the loss; None: read off the gradient of a cross-entropy with respect to
            the output's ``logits``, of which ignored positions have none; else N.
        learning_rate: For ``effective_lr``.

    Returns:
        The snapshot.

    Raises:
        InputError: If an option needs other passes, or there is no sample or no loss.
    """
    if not options.is_empirical or options.in_float64:
        raise InputError(
            "fisher_type other than 'empirical' and network_precision='float64' take a batch "
            "of two tensors: condexp.analyze(model, loss_fn, inputs, targets)."
        )
    if denominator is None and getattr(loss_fn, "reduction", None) == "sum":
        denominator = 1.0
    own = _cloned(batch)  # the first operation may work in place
    hooks = MeasurementHooks(
        model,
        options,
        denominator=denominator,
        learning_rate=learning_rate,
        num_samples=count_samples(_parts(own)),
        runs_eagerly=True,
    )
    with undisturbed(model), hooks:
        loss = _loss(loss_fn, _outputs(model, own), own)
        if loss.requires_grad and hooks.trained:
            back_propagate_loss(hooks, loss)
    snapshot = hooks.snapshot()
    if not options.wants_curvature:
        return snapshot
    wide = widened(batch)
    certified = LossPass(lambda: _outputs(model, _cloned(wide)), lambda f: _loss(loss_fn, f, wide))
    wanted = [matrix for matrix in CURVATURE_MATRICES if options.wants(matrix)]
    certify(model, loss_fn, certified, wanted, options.seed)
    with undisturbed(model):
        one = LossPass(lambda: _outputs(model, _cloned(batch)), lambda f: _loss(loss_fn, f, batch))
        return snapshot.with_curvature(measure_curvature(model, [one], options))


def _outputs(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch[:-1]) if isinstance(batch, tuple | list) else model(batch)


def _loss(loss_fn: AnyLoss | None, outputs: Any, batch: Any) -> Tensor:
    if loss_fn is not None:
        loss = loss_fn(outputs, batch[-1] if isinstance(batch, tuple | list) else batch)
    else:
        loss = _loss_of(outputs)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = "the model's outputs have no loss" if loss_fn is None else "loss_fn gives no scalar"
        raise InputError(
            f"{what} (found {type(loss).__name__}): give labels in the batch and loss_fn=None "
            "for a model that returns its loss, or loss_fn(outputs, batch) that returns a scalar."
        )
    return loss


def _loss_of(outputs: Any) -> Any:
    return outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)


def _parts(batch: Any) -> Any:
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {item.name: getattr(batch, item.name) for item in dataclasses.fields(batch)}
    return batch


def _cloned(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.clone()
    if isinstance(batch, Mapping):
        return {key: _cloned(part) for key, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(_cloned, batch))
    if isinstance(batch, tuple | list):
        return type(batch)(map(_cloned, batch))
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        parts = {name: _cloned(part) for name, part in _parts(batch).items()}
        return dataclasses.replace(batch, **parts)
    return batch
