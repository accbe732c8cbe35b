"""Selection of the measured modules by names, globs and aliases; the others are given reasons."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from condexp.analysis.layers.info import Catalogue, LayerInfo, NotAnalysed
from condexp.analysis.layers.kinds import Layer, is_quantised, kind_of, layers_of
from condexp.analysis.layers.samples import tensors_in
from condexp.analysis.layers.tables import OwnTables
from condexp.analysis.layers.tied import has_matrices, united, without_factors
from condexp.analysis.layers.use import WeightUse
from condexp.analysis.layers.uses import watched
from condexp.analysis.model_state import preserved_state
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import ConvInput
from condexp.errors import InputError, suggestion

ALIASES = ("first", "last_linear", "all", "norms")
_OF_SCALES = "a scale has a Fisher block alone: ask for 'fisher' and for layers 'norms'"


@dataclass(frozen=True)
class Selection:
    """What is to be measured of a network.

    Attributes:
        layers: The layers by name; of those that share a weight, the first.
        shared: Other names of layers, by which a weight of ``layers`` goes too.
        not_analysed: Every other module that owns parameters, with the reason.
    """

    layers: dict[str, Layer]
    shared: dict[str, str]
    not_analysed: tuple[NotAnalysed, ...]


def select_layers(model: nn.Module, options: AnalysisOptions) -> Selection:
    """Pick the layers to analyse.

    The aliases ``first`` and ``last_linear`` go by the order of registration, unless a layer has
    that name. Frozen layers have no gradient: where one is needed, they are left out.

    Args:
        model: The network.
        options: ``layers``, ``exclude`` and ``matrices`` are read.

    Returns:
        The selection.

    Raises:
        InputError: If the model has no analysable layer or uninitialised parameters, a pattern
            matches nothing, frozen layers alone are asked for, or the exclusion leaves nothing.
    """
    candidates: dict[str, Layer] = {}
    others: list[NotAnalysed] = []
    for name, module in model.named_modules():
        label = name or type(module).__name__
        if any(map(is_lazy, module._parameters.values())):
            raise InputError(
                f"layer {label!r} has uninitialised parameters: call the model once before."
            )
        # The parts of a parametrisation are listed with the layer they belong to.
        if ".parametrizations." in f".{name}.":
            continue
        found = dict(layers_of(label, module))
        candidates |= found
        measured = {id(layer.weight) for layer in found.values()}
        rest = [n for n, p in module._parameters.items() if not (p is None or id(p) in measured)]
        if reason := _why_not(module, rest, has_layers=bool(found)):
            others.append(NotAnalysed(label, reason))
    scales_alone = all(layer.operation.is_scale for layer in candidates.values())
    if scales_alone and options.layers == ("all",):
        raise InputError(
            f"{type(model).__name__} has no layer that can be analysed: only linear maps, "
            "convolutions, embeddings and the projections of attention are, with a plain weight."
        )
    included = _matching("layers", options.layers, candidates)
    excluded = _matching("exclude", options.exclude, candidates)
    selected = {n: m for n, m in candidates.items() if n in included and n not in excluded}
    if not selected:
        raise InputError(
            f"exclude={list(options.exclude)} leaves nothing of layers={list(options.layers)}."
        )
    for name, layer in candidates.items():
        if name not in selected:
            scale = f"{layer.type}: {_OF_SCALES}"
            others.append(NotAnalysed(name, scale if layer.operation.is_scale else "not selected"))
    selected = _without_scales(selected, options, others)
    if options.needs_gradients:
        selected = _without_frozen(selected, options, others)
    layers, shared = united(selected)
    reason = "shares the weight of {!r}, measured there"
    others += [NotAnalysed(name, reason.format(first)) for name, first in shared.items()]
    others += without_factors(selected, layers, options)
    layers = {name: layer for name, layer in layers.items() if has_matrices(layer, options)}
    if not layers:
        raise InputError(
            f"{_shortened([repr(name) for name in selected])}: used in several ways, so without "
            "the matrices asked for: ask for matrices=('fisher',) or ('weight',) too."
        )
    return Selection(layers, shared, tuple(others))


def _without_scales(
    selected: dict[str, Layer], options: AnalysisOptions, others: list[NotAnalysed]
) -> dict[str, Layer]:
    """Return the layers without scales of normalisations, where no Fisher block is asked for.

    Raises:
        InputError: If only they are selected.
    """
    measured = {name: layer for name, layer in selected.items() if has_matrices(layer, options)}
    scales = [name for name in selected if name not in measured]
    if not measured:
        raise InputError(f"{_shortened([repr(name) for name in scales])}: {_OF_SCALES}.")
    others += [NotAnalysed(name, f"{selected[name].type}: {_OF_SCALES}") for name in scales]
    return measured


def _without_frozen(
    selected: dict[str, Layer], options: AnalysisOptions, others: list[NotAnalysed]
) -> dict[str, Layer]:
    """Return the layers that have a gradient, and list the others with their reason.

    Raises:
        InputError: If frozen layers are asked for by name, or there are no others.
    """
    frozen = [name for name, module in selected.items() if not module.weight.requires_grad]
    if not frozen:
        return selected
    named = {pattern for pattern in options.layers if pattern in selected}
    asked_for = sorted(named.intersection(frozen))
    if asked_for or len(frozen) == len(selected):
        what = asked_for or frozen
        raise InputError(
            f"{_shortened([repr(name) for name in what])}: frozen (requires_grad=False), so without"
            f" a gradient: leave {'it' if len(what) == 1 else 'them'} out with exclude="
            f"{_pattern(what, selected)}, or ask for matrices=('input', 'weight') only."
        )
    others += [NotAnalysed(name, "frozen (requires_grad=False)") for name in frozen]
    return {name: module for name, module in selected.items() if name not in frozen}


def trace_layers(
    model: nn.Module,
    inputs: Tensor,
    options: AnalysisOptions,
    *,
    training: bool | None = False,
) -> Catalogue:
    """List what an analysis would measure, by one forward pass.

    Args:
        model: The network; it is left exactly as found.
        inputs: A batch ``[N, ...]`` of the shape to come; one or two samples suffice.
        options: The choices of the analysis.
        training: Mode in which the analysis will run the network; None: the modules' own modes.

    Returns:
        The used layers in execution order, and what is not analysed with the reasons.

    Raises:
        InputError: If the outputs do not depend on a layer whose gradient is needed.
    """
    selection = select_layers(model, options)
    layers, found = selection.layers, dict[str, LayerInfo]()
    products: dict[str, list[Tensor]] = {}
    tables = OwnTables(model, inputs, len(inputs))
    of_tables, unseen, order = set[str](), set[str](), list[str]()

    def note(name: str, use: WeightUse, source: Tensor) -> None:
        if not torch.is_grad_enabled():
            unseen.add(name)
            return
        if name not in order:
            order.append(name)
        if tables.maps(name, use, source):
            of_tables.add(name)
            return
        products.setdefault(name, []).append(source)
        if (before := found.get(name)) is not None:
            found[name] = replace(before, uses=before.uses + 1)
        else:
            positions = max(1, use.num_rows // len(inputs))
            found[name] = describe(name, layers[name], options, positions=positions)

    with preserved_state(model), torch.inference_mode(False), torch.enable_grad():
        if training is not None:
            model.train(training)
        with watched(layers, note):
            outputs = model(inputs.clone())
        for name, use, *_ in tables.of_samples(tensors_in(outputs)):
            of_tables.discard(name)
            found[name] = describe(
                name, layers[name], options, positions=use.num_rows // len(inputs)
            )
        if options.needs_gradients:
            _refuse_unused(outputs, products)
    never = (
        NotAnalysed(name, why_never(of_table=name in of_tables, hidden=name in unseen))
        for name in layers
        if name not in found
    )
    rest = (*selection.not_analysed, *never, *biases({n: layers[n] for n in found}, options))
    return Catalogue(tuple(sorted(found.values(), key=lambda one: order.index(one.name))), rest)


def biases(measured: Mapping[str, Layer], options: AnalysisOptions) -> Iterator[NotAnalysed]:
    """List the biases of measured layers, where they are not measured with the weights.

    Args:
        measured: The layers by name.
        options: ``bias`` is read.

    Yields:
        An entry for each bias.
    """
    for name, layer in measured.items():
        if layer.operation.has_bias and not options.bias:
            yield NotAnalysed(f"{name}.bias", "a bias: measured with bias=True")


def why_never(*, of_table: bool, hidden: bool) -> str:
    """Return why a layer was not measured in a forward pass.

    Args:
        of_table: Whether it maps a table of the model's own.
        hidden: Whether it was called without gradients.

    Returns:
        The reason.
    """
    if of_table:
        return "maps a table of the model's own, whose rows do not belong to samples"
    if hidden:
        return "called under torch.no_grad() alone, so no gradient reaches it"
    return "never called in the forward pass"


def _refuse_unused(outputs: object, products: Mapping[str, list[Tensor]]) -> None:
    """Refuse layers that the outputs do not depend on.

    Raises:
        InputError: If there are any.
    """
    roots = [output for output in tensors_in(outputs) if output.requires_grad]
    of_layers = [(n, p) for n, several in products.items() for p in several if p.requires_grad]
    if not roots or not of_layers:
        return
    signs = [torch.ones_like(root) for root in roots]
    edges = [get_gradient_edge(product) for _, product in of_layers]
    grads = torch.autograd.grad(roots, edges, signs, allow_unused=True)
    reached = {name for (name, _), grad in zip(of_layers, grads, strict=True) if grad is not None}
    if unused := [name for name in products if name not in reached]:
        raise InputError(
            f"no gradient reaches {_shortened([repr(name) for name in unused])}, for the outputs do"
            f" not depend on it: leave it out with exclude={_pattern(unused, products)}, or ask "
            "for matrices=('input', 'weight') only."
        )


def describe(
    name: str, layer: Layer, options: AnalysisOptions, *, positions: int, uses: int = 1
) -> LayerInfo:
    """Gather the sizes of one layer.

    Args:
        name: The layer's name.
        layer: The layer.
        options: ``conv_input`` and ``bias`` are read.
        positions: Number of rows that a sample contributes in one call.
        uses: Number of calls of the module in one pass.

    Returns:
        The record.
    """
    operation, fan_in, d_out = layer.operation, layer.fan_in, layer.d_out
    channels = operation.window is not None and options.conv_input is ConvInput.CHANNELS
    one = operation.appends_one(options)
    d_in = (layer.channels if channels else fan_in) + one
    return LayerInfo(
        name=name,
        type=layer.type,
        d_in=d_in,
        d_out=d_out,
        groups=operation.groups,
        positions=positions,
        uses=uses,
        fan_in=None if fan_in == d_in else fan_in,
        num_weights=(fan_in + one) * d_out if channels else None,
        has_factors=layer.has_factors,
        is_reduced=options.reduces,
    )


def _why_not(module: nn.Module, rest: Iterable[str], *, has_layers: bool) -> str | None:
    """Return why some parameters of a module are not analysed; None where there is nothing to say.

    Args:
        module: The module.
        rest: Its own parameters but for weights that are measured.
        has_layers: Whether there are such weights; their biases are told of layer by layer.

    Returns:
        The reason.
    """
    kind, owned = kind_of(module), ", ".join(rest)
    if is_quantised(module):
        return f"{kind}: quantised, so its weight has no gradient"
    if has_layers:
        keys = {"bias_k", "bias_v"} & set(rest)
        return f"{kind}: vectors that are appended to the keys and values" if keys else None
    if isinstance(module, nn.Embedding) and module.scale_grad_by_freq:
        return f"{kind}: scale_grad_by_freq divides its gradient, which then is none of the loss"
    if isinstance(module, nn.Linear | _ConvNd | nn.Embedding):
        return f"{kind}: its weight is computed from others (a parametrisation)"
    if not owned:
        return None
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return f"{kind}: multiplied inside a fused kernel that shows no rows (owns {owned})"
    return f"{kind}: not a linear map, convolution, embedding or attention (owns {owned})"


def _matching(option: str, patterns: Iterable[str], candidates: dict[str, Layer]) -> set[str]:
    linear = [name for name, layer in candidates.items() if layer.type == "Linear"]
    layers = [name for name, layer in candidates.items() if not layer.operation.is_scale]
    scales = [name for name in candidates if name not in layers]
    meant = {"all": layers, "first": layers[:1], "last_linear": linear[-1:], "norms": scales}
    meant = {alias: names for alias, names in meant.items() if alias not in candidates}
    found: set[str] = set()
    for pattern in patterns:
        matches = meant.get(pattern) or [n for n in layers if fnmatchcase(n, pattern)]
        # Scales are meant where nothing else can be.
        matches = matches or [name for name in scales if fnmatchcase(name, pattern)]
        if not matches:
            raise InputError(
                f"{option}={pattern!r} matches no layer: give a name, a glob "
                f"like '*.conv1' or one of {', '.join(ALIASES)}; the layers are "
                f"{_shortened(layers)}.{suggestion(pattern, [*candidates, *ALIASES])}"
            )
        found.update(matches)
    return found


def _shortened(names: list[str]) -> str:
    """Return names for a message; a deep network's are cut in the middle."""
    return ", ".join(names if len(names) <= 12 else [*names[:6], "…", *names[-3:]])


def _pattern(names: list[str], everything: Iterable[str]) -> list[str]:
    """Return patterns that match these names and no others: one glob if possible."""
    if len(names) == 1:
        return names
    length = next(i for i, letters in enumerate(zip_longest(*names)) if len(set(letters)) > 1)
    glob = f"{names[0][:length]}*"
    others = (name for name in everything if name not in names)
    return names if any(fnmatchcase(name, glob) for name in others) else [glob]
