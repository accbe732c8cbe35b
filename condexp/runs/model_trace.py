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
from condexp.analysis.vocabulary import FisherType, Matrix, Precision
from condexp.config import Config
from condexp.data.dataset import Dataset
from condexp.errors import InputError
from condexp.models.sync_batchnorm import convert_sync_batchnorm
from condexp.models.user_code import said_where
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
    shape = (num_samples, *dataset.input_shape)
    # The meta device costs neither time nor memory, but has no values, which other people's code
    # may ask for: what fails there counts only if it fails with values too.
    for device in ("meta", "cpu"):
        try:
            found = _attempt(config, dataset, options, shape, device)
        except InputError:
            raise
        except Exception as error:
            failure = error
        else:
            if config.trainer.rescale.factor != 1:
                _check_rescaling(config, dataset)
            return found
    images = len(dataset.input_shape) == 3
    way_out = "dataset.image_size, another data set or another model" if images else "another model"
    raise InputError(
        f"model={config.model.title} fails on inputs {list(shape)} of dataset="
        f"{config.dataset.name} with {dataset.num_outputs} outputs: {said_where(failure)} "
        f"The way out is {way_out}."
    ) from failure


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
    matrices = {Matrix.GRAD_OUTPUT} | ({Matrix.FISHER} & set(options.matrices))
    choices = replace(
        options,
        matrices=tuple(matrices),
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
