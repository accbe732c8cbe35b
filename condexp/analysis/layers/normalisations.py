"""Scales of normalisations: each feature of what was normalised is multiplied by a number."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from condexp.analysis.layers.rows import Operation
from condexp.analysis.layers.use import Listeners, WeightUse, gradient_source


@dataclass(frozen=True)
class _Kind:
    """How one of torch's functions is called.

    Args:
        weight: Place of the scale among its arguments.
        channels_first: Whether features are the second dimension; else they are the last ones.
        own_statistics: Name of the argument that has it normalise by the input's own statistics,
            where that is a choice.
    """

    weight: int
    channels_first: bool
    own_statistics: str | None = None


KINDS: Mapping[str, _Kind] = {
    "batch_norm": _Kind(3, channels_first=True, own_statistics="training"),
    "instance_norm": _Kind(3, channels_first=True, own_statistics="use_input_stats"),
    "group_norm": _Kind(2, channels_first=True),
    "layer_norm": _Kind(2, channels_first=False),
    "rms_norm": _Kind(2, channels_first=False),
}
"""The functions of ``torch.nn.functional``, by name."""

_CLASSES: dict[type[nn.Module], str] = {
    _BatchNorm: "batch_norm",
    _InstanceNorm: "instance_norm",
    nn.GroupNorm: "group_norm",
    nn.LayerNorm: "layer_norm",
}
if hasattr(nn, "RMSNorm"):  # PyTorch ≥ 2.4
    _CLASSES[nn.RMSNorm] = "rms_norm"


def normalisation_of(module: nn.Module) -> Operation | None:
    """Return what a normalisation computes with its scale; None of any other module."""
    for kind, function in _CLASSES.items():
        if isinstance(module, kind) and module._parameters.get("weight") is not None:
            has_bias = module._parameters.get("bias") is not None
            return Operation(None, has_bias, function=function, is_scale=True)
    return None


def as_column(scale: Tensor) -> Tensor:
    """Return a scale, or its gradient, as ``[c, 1]``: a weight of one input for each output."""
    return scale.reshape(-1, 1)


def watched_normalisation(
    name: str, listeners: Listeners, original: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """Return a normalisation with listeners, who are told what its scale multiplies.

    Args:
        name: Name of the function.
        listeners: Those who are to be told of a weight's use by a function.
        original: The function.

    Returns:
        The same function.
    """
    place, inside = KINDS[name].weight, False

    def normalisation(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal inside
        if inside:  # under a function mode torch calls it by its name once more
            return original(*args, **kwargs)
        inside = True
        try:
            output = original(*args, **kwargs)
            weight = args[place] if len(args) > place else kwargs.get("weight")
            if weight is not None and (telling := listeners(weight, name)):
                use = _use(name, original, args, kwargs, output)
                for tell in telling:
                    tell(use, gradient_source(output))
        finally:
            inside = False
        return output

    return normalisation


def _use(
    name: str,
    original: Callable[..., Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    output: Tensor,
) -> WeightUse:
    kind, bound = KINDS[name], inspect.signature(original).bind(*args, **kwargs)
    bound.apply_defaults()
    given, arguments = bound.arguments["input"], dict(bound.arguments)
    features = 1 if kind.channels_first else len(arguments["normalized_shape"])
    has_bias = arguments.get("bias") is not None
    plain = {"weight": None, "bias": None, "input": given.detach()}
    if kind.own_statistics and arguments[kind.own_statistics]:
        plain |= {"running_mean": None, "running_var": None}  # they are not to be updated again
    arguments |= {key: value for key, value in plain.items() if key in arguments}
    lay_out = partial(_by_part, shape=output.shape, features=0 if kind.channels_first else features)
    with torch.no_grad():
        normal = lay_out(original(**arguments))
    operation = Operation(None, has_bias, function=name, is_scale=True)
    return WeightUse(operation, given, normal, normal, normal.shape, output.dtype, lay_out)


def _by_part(tensor: Tensor, shape: torch.Size, features: int) -> Tensor:
    """Return a tensor as ``[parts, positions, c]``.

    Args:
        tensor: The tensor.
        shape: Its shape as an output.
        features: Number of its last dimensions that features are; 0 where they are the second one,
            so that a part is an image.

    Returns:
        The tensor.
    """
    tensor = tensor.reshape(shape)
    if features:
        return tensor.reshape(shape[: len(shape) - features].numel(), 1, -1)
    return tensor.reshape(*shape[:2], -1).transpose(1, 2)
