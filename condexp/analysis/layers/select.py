"""Selection of the measured modules by names, globs and aliases; the others are given reasons."""

from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from condexp.analysis.layers.info import Catalogue, LayerInfo, NotAnalysed
from condexp.analysis.layers.rows import Layer, appends_one, check_rows, num_groups
from condexp.analysis.model_state import preserved_state
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import ConvInput
from condexp.errors import InputError, suggestion

ALIASES = ("first", "last_linear", "all")


def select_modules(
    model: nn.Module, options: AnalysisOptions
) -> tuple[dict[str, Layer], tuple[NotAnalysed, ...]]:
    """Pick the modules to analyse.

    The aliases ``first`` and ``last_linear`` go by the order of registration.

    Args:
        model: The network.
        options: ``layers`` and ``exclude`` are read.

    Returns:
        The selected modules by name, and every other module that owns parameters.

    Raises:
        InputError: If the model has no analysable layer or uninitialised parameters, a pattern
            matches nothing, or the exclusion leaves nothing.
    """
    candidates: dict[str, Layer] = {}
    others: list[NotAnalysed] = []
    for name, module in model.named_modules():
        label = name or type(module).__name__
        if any(is_lazy(p) for p in module.parameters(recurse=False)):
            raise InputError(
                f"layer {label!r} has uninitialised parameters: call the model once before."
            )
        # The parts of a parametrisation are listed with the layer they belong to.
        if ".parametrizations." in f".{name}.":
            continue
        if isinstance(module, nn.Linear | nn.Conv2d):
            obstacle = _obstacle(module)
            if obstacle is None:
                candidates[label] = module
            else:
                others.append(NotAnalysed(label, obstacle))
        elif own := [n for n, _ in module.named_parameters(recurse=False)]:
            others.append(NotAnalysed(label, _foreign(module, own)))
    if not candidates:
        raise InputError(
            f"{type(model).__name__} has no layer that can be analysed: "
            "only torch.nn.Linear and torch.nn.Conv2d with a plain weight are."
        )
    included = _matching("layers", options.layers, candidates)
    excluded = _matching("exclude", options.exclude, candidates)
    selected = {n: m for n, m in candidates.items() if n in included and n not in excluded}
    if not selected:
        raise InputError(
            f"exclude={list(options.exclude)} leaves nothing of layers={list(options.layers)}."
        )
    others += [NotAnalysed(n, "not selected") for n in candidates if n not in selected]
    return selected, tuple(others)


def trace_layers(model: nn.Module, inputs: Tensor, options: AnalysisOptions) -> Catalogue:
    """List what an analysis would measure, by one forward pass in eval mode without gradients.

    Args:
        model: The network; it is left exactly as found.
        inputs: A batch ``[N, ...]`` of the shape to come; one or two samples suffice.
        options: The choices of the analysis.

    Returns:
        The called layers in execution order, and what is not analysed with the reasons.
    """
    modules, not_analysed = select_modules(model, options)
    found: dict[str, LayerInfo] = {}

    def note(name: str, module: Layer, output: Tensor) -> None:
        if (before := found.get(name)) is not None:
            found[name] = replace(before, uses=before.uses + 1)
        else:
            num_rows = output.numel() // module.weight.shape[0]
            check_rows(name, num_rows, len(inputs))
            found[name] = describe(name, module, options, positions=num_rows // len(inputs))

    def hook(name: str) -> Any:
        return lambda module, _inputs, output: note(name, module, output)

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        with preserved_state(model), torch.no_grad():
            model.eval()
            model(inputs.clone())
    finally:
        for handle in handles:
            handle.remove()
    never = (
        NotAnalysed(name, "never called in the forward pass")
        for name in modules
        if name not in found
    )
    return Catalogue(tuple(found.values()), (*not_analysed, *never))


def describe(
    name: str, module: Layer, options: AnalysisOptions, *, positions: int, uses: int = 1
) -> LayerInfo:
    """Gather the sizes of one layer.

    Args:
        name: The layer's name.
        module: The layer.
        options: ``conv_input`` and ``bias`` are read.
        positions: Number of rows that a sample contributes in one call.
        uses: Number of calls of the module in one pass.

    Returns:
        The record.
    """
    weight = module.weight
    convolution = isinstance(module, nn.Conv2d)
    fan_in = weight[0].numel()
    channels = convolution and options.conv_input is ConvInput.CHANNELS
    one = appends_one(module, options)
    d_in = (weight.shape[1] if channels else fan_in) + one
    return LayerInfo(
        name=name,
        type="Conv2d" if convolution else "Linear",
        d_in=d_in,
        d_out=weight.shape[0],
        groups=num_groups(module),
        positions=positions,
        uses=uses,
        fan_in=None if fan_in == d_in else fan_in,
        num_weights=(fan_in + one) * weight.shape[0] if channels else None,
    )


def _obstacle(module: Layer) -> str | None:
    """Return why a Linear or Conv2d cannot be analysed; None where it can."""
    kind = nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d
    if "weight" not in module._parameters:
        return f"{kind.__name__}: its weight is computed from others (a parametrisation)"
    if type(module).forward is not kind.forward:
        return f"{type(module).__name__}: overrides the forward pass of {kind.__name__}"
    return None


def _foreign(module: nn.Module, parameters: Iterable[str]) -> str:
    """Return why a module that owns parameters is not analysed."""
    return f"{type(module).__name__}: not a Linear or Conv2d layer (owns {', '.join(parameters)})"


def _matching(option: str, patterns: Iterable[str], candidates: dict[str, Layer]) -> set[str]:
    linear = [name for name, module in candidates.items() if isinstance(module, nn.Linear)]
    everything = list(candidates)
    meant = {"all": everything, "first": everything[:1], "last_linear": linear[-1:]}
    found: set[str] = set()
    for pattern in patterns:
        matches = meant.get(pattern) or [n for n in everything if fnmatchcase(n, pattern)]
        if not matches:
            raise InputError(
                f"{option}={pattern!r} matches no Linear or Conv2d layer: give a name, a glob "
                f"like '*.conv1' or one of {', '.join(ALIASES)}; the layers are "
                f"{_shortened(everything)}.{suggestion(pattern, [*everything, *ALIASES])}"
            )
        found.update(matches)
    return found


def _shortened(names: list[str]) -> str:
    """Return names for a message; a deep network's are cut in the middle."""
    return ", ".join(names if len(names) <= 12 else [*names[:6], "…", *names[-3:]])
