"""Builds and calls a network before its run, to see that it can be trained and measured."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from condexp.analysis.costs import Footprint, footprints
from condexp.analysis.layers.info import Catalogue
from condexp.analysis.layers.select import trace_layers
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.snapshot import Snapshot
from condexp.analysis.vocabulary import SAMPLE_MATRICES, FisherType, Matrix, Precision
from condexp.config import Config
from condexp.data.dataset import Dataset
from condexp.errors import InputError
from condexp.models.sync_batchnorm import convert_sync_batchnorm
from condexp.models.user_code import said_where, where
from condexp.runs.build import build_model, make_loss
from condexp.training.choices import ProbeMode, Source
from condexp.training.probe import draw_probe
from condexp.training.rescale import cancels_rescaling

CERTIFIED_SAMPLES = 8


@dataclass(frozen=True)
class ModelTrace:
    """A network that was tried out, not the one to be trained.

    Attributes:
        model: The network.
        catalogue: What will be measured of it.
        footprints: What it made of the rows of each layer.
    """

    model: nn.Module
    catalogue: Catalogue
    footprints: Mapping[str, Footprint]


def trace_model(config: Config, dataset: Dataset, options: AnalysisOptions) -> ModelTrace:
    """Build the model and call it on a batch of the data's shape.

    Args:
        config: The validated configuration.
        dataset: Its shapes are those to come.
        options: What is to be measured.

    Returns:
        The network, on the ``meta`` device where that suffices, and what will be measured.

    Raises:
        InputError: If it cannot be built or called, its outputs are not [N, num_outputs], or
            ``trainer.rescale`` would change what it computes, or several processes cannot share it.
    """
    # Two samples say all, but for normalisations that need more than one.
    num_samples = 1 if 1 in {config.trainer.batch_size, len(dataset.train)} else 2
    found = _try_out(config, dataset, options, num_samples)
    if isinstance(found, ModelTrace):
        if config.trainer.rescale.factor != 1:
            _check_rescaling(config, dataset)
        return found
    raise InputError(_why(config, dataset, options, num_samples, found)) from found


def _try_out(
    config: Config, dataset: Dataset, options: AnalysisOptions, num_samples: int
) -> ModelTrace | BaseException:
    """Call the model on some samples.

    Returns:
        What was found, or why the network fails.

    Raises:
        InputError: If it works, and cannot be trained or measured.
    """
    shape = (num_samples, *dataset.input_shape)
    # The meta device costs neither time nor memory, but has no values, which other people's code
    # may ask for: what fails there counts only if it fails with values too.
    for device in ("meta", "cpu"):
        try:
            return _attempt(config, dataset, options, shape, device)
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            failure = error
    return failure


def _why(
    config: Config,
    dataset: Dataset,
    options: AnalysisOptions,
    num_samples: int,
    failure: BaseException,
) -> str:
    """Say why a network cannot be called, and the way out.

    Returns:
        The message.
    """
    title, shape = config.model.title, [num_samples, *dataset.input_shape]
    if num_samples == 1 and isinstance(_try_out(config, dataset, options, 2), ModelTrace):
        single = config.trainer.batch_size == 1
        cause = "trainer.batch_size=1" if single else "the data set has one training sample"
        way_out = "trainer.batch_size=2 or more" if single else "more data (dataset.subset.train)"
        return (
            f"model={title} cannot be trained with one sample at a time, and {cause}: "
            f"{said_where(failure)} A batch's statistics (BatchNorm) take two: give {way_out}, "
            "or a model without (model.norm=none or layer)."
        )
    ways = ["dataset.image_size"] if len(dataset.input_shape) == 3 else []
    ways += ["another data set", "another model"]
    own = "Mend it there, or give " if where(failure) else "Give "
    return (
        f"model={title} fails on inputs {shape} of dataset={config.dataset.name} with "
        f"{dataset.num_outputs} outputs: {said_where(failure)} {own}{', '.join(ways[:-1])} or "
        f"{ways[-1]}."
    )


def certify_model(config: Config, dataset: Dataset, options: AnalysisOptions) -> Snapshot:
    """Measure the untrained network on a few training samples, to see what its snapshots certify.

    Args:
        config: The validated configuration.
        dataset: The data set.
        options: What is to be measured.

    Returns:
        A snapshot of the gradients, and of Fisher blocks where they are asked for: its records tell
        whose recorded rows reproduce the gradient of the weight, and whose belong to samples.
    """
    of_samples = options.wants(*SAMPLE_MATRICES)
    matrices = (Matrix.GRAD_OUTPUT, *((Matrix.FISHER,) if of_samples else ()))
    choices = replace(
        options,
        matrices=matrices,
        fisher_type=FisherType.EMPIRICAL,
        precision=Precision.FLOAT32,
        memory_limit=None,
    )
    size = min(CERTIFIED_SAMPLES, len(dataset.train))
    mode = ProbeMode.TRAIN if _trains(config) and size > 1 else ProbeMode.EVAL
    probe = draw_probe(dataset, size=size, batch_size=size, mode=mode, seed=config.seed)
    model = build_model(config, dataset)
    return probe.measure(model, make_loss(config, dataset), choices)


def _attempt(
    config: Config,
    dataset: Dataset,
    options: AnalysisOptions,
    shape: tuple[int, ...],
    device: str,
) -> ModelTrace:
    with torch.device(device):
        model, inputs = build_model(config, dataset), torch.zeros(shape)
        catalogue = trace_layers(model, inputs, options, training=_trains(config))
        with footprints(model, catalogue, options, len(inputs)) as found:
            outputs = model.train()(inputs)
    expected = [len(inputs), dataset.num_outputs]
    if not isinstance(outputs, Tensor) or list(outputs.shape) != expected:
        given = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InputError(
            f"model={config.model.title} returns {given} in training mode for inputs "
            f"{list(shape)}: it must return one tensor {expected}, a row of {dataset.num_outputs} "
            "outputs a sample."
        )
    if not outputs.requires_grad:
        raise InputError(f"model={config.model.title}: no parameter of it can be trained.")
    if config.trainer.num_processes > 1:
        _check_shared(config, model, outputs)
    return ModelTrace(model, catalogue, found)


def _trains(config: Config) -> bool:
    """Return whether snapshots are of the network in training mode."""
    analysis = config.analysis
    return analysis.source is Source.TRAIN_BATCH or analysis.probe.mode == "train"


def _check_shared(config: Config, model: nn.Module, outputs: Tensor) -> None:
    # What several processes cannot train together.
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(outputs.sum(), list(trained.values()), allow_unused=True)
    unused = [name for name, grad in zip(trained, grads, strict=True) if grad is None]
    if unused:
        raise InputError(
            f"model={config.model.title}: {', '.join(unused)} get no gradient, for the outputs do "
            "not depend on them, and several processes would wait for it: freeze them "
            "(requires_grad=False), or use trainer.num_processes=1."
        )
    if config.trainer.sync_batchnorm:
        convert_sync_batchnorm(model, lambda mean: mean, config.trainer.num_processes)


def _check_rescaling(config: Config, dataset: Dataset) -> None:
    if cancels_rescaling(lambda: build_model(config, dataset), dataset.input_shape):
        return
    raise InputError(
        f"trainer.rescale.factor={config.trainer.rescale.factor:g}: scaled hidden weights change "
        f"what model={config.model.title} computes, so a plateau would say nothing. Take a model "
        "with a normalisation straight behind every hidden layer (model=mlp model.norm=batch, or "
        "resnet), or trainer.rescale.factor=1."
    )
