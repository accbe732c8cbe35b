"""Selection of the measured modules by names, globs and aliases; the others are given reasons."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.parameter import is_lazy

from condexp.analysis.layers.info import Catalogue, LayerInfo, NotAnalysed
from condexp.analysis.layers.rows import Layer, operation_of
from condexp.analysis.layers.samples import tensors_in
from condexp.analysis.layers.tables import OwnTables
from condexp.analysis.layers.uses import WeightUse, watched
from condexp.analysis.model_state import preserved_state
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import ConvInput
from condexp.errors import InputError, suggestion

ALIASES = ("first", "last_linear", "all")


@dataclass(frozen=True)
class Selection:
    """What is to be measured of a network.

    Attributes:
        modules: The layers by name; of those that share a weight, the first.
        shared: Other names of layers, by which a weight of ``modules`` goes too.
        not_analysed: Every other module that owns parameters, with the reason.
    """

    modules: dict[str, Layer]
    shared: dict[str, str]
    not_analysed: tuple[NotAnalysed, ...]


def select_modules(model: nn.Module, options: AnalysisOptions) -> Selection:
    """Pick the modules to analyse.

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
        if isinstance(module, nn.Linear | nn.Conv2d):
            obstacle = _obstacle(module)
            if obstacle is None:
                candidates[label] = module
            else:
                others.append(NotAnalysed(label, obstacle))
        elif own := [n for n, parameter in module._parameters.items() if parameter is not None]:
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
    if options.needs_gradients:
        selected = _without_frozen(selected, options, others)
    first_of: dict[int, str] = {}
    shared: dict[str, str] = {}
    for name, module in selected.items():
        first = first_of.setdefault(id(module.weight), name)
        if first != name:
            shared[name] = first
            others.append(NotAnalysed(name, f"shares the weight of {first!r}, measured there"))
    modules = {name: module for name, module in selected.items() if name not in shared}
    return Selection(modules, shared, tuple(others))


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
    selection = select_modules(model, options)
    modules, found = selection.modules, dict[str, LayerInfo]()
    products: dict[str, list[Tensor]] = {}
    tables, of_tables, unseen = OwnTables(model), set[str](), set[str]()

    def note(name: str, use: WeightUse, source: Tensor) -> None:
        if not torch.is_grad_enabled():
            unseen.add(name)
            return
        if tables.maps(use, source):
            of_tables.add(name)
            return
        products.setdefault(name, []).append(source)
        if (before := found.get(name)) is not None:
            found[name] = replace(before, uses=before.uses + 1)
        else:
            positions = max(1, use.num_rows // len(inputs))
            found[name] = describe(name, modules[name], options, positions=positions)

    weights = {name: module.weight for name, module in modules.items()}
    with preserved_state(model), torch.inference_mode(False), torch.enable_grad():
        if training is not None:
            model.train(training)
        with watched(weights, note):
            outputs = model(inputs.clone())
        if options.needs_gradients:
            _refuse_unused(outputs, products)
    never = (
        NotAnalysed(name, why_never(of_table=name in of_tables, hidden=name in unseen))
        for name in modules
        if name not in found
    )
    rest = (*selection.not_analysed, *never, *biases({n: modules[n] for n in found}, options))
    return Catalogue(tuple(found.values()), rest)


def biases(measured: Mapping[str, Layer], options: AnalysisOptions) -> Iterator[NotAnalysed]:
    """List the biases of measured layers, where they are not measured with the weights.

    Args:
        measured: The layers by name.
        options: ``bias`` is read.

    Yields:
        An entry for each bias.
    """
    for name, module in measured.items():
        if module.bias is not None and not options.bias:
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
    operation = operation_of(module)
    one = operation.appends_one(options)
    d_in = (weight.shape[1] if channels else fan_in) + one
    return LayerInfo(
        name=name,
        type="Conv2d" if convolution else "Linear",
        d_in=d_in,
        d_out=weight.shape[0],
        groups=operation.groups,
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
    return None


def _foreign(module: nn.Module, parameters: Iterable[str]) -> str:
    """Return why a module that owns parameters is not analysed."""
    return f"{type(module).__name__}: not a Linear or Conv2d layer (owns {', '.join(parameters)})"


def _matching(option: str, patterns: Iterable[str], candidates: dict[str, Layer]) -> set[str]:
    linear = [name for name, module in candidates.items() if isinstance(module, nn.Linear)]
    everything = list(candidates)
    meant = {"all": everything, "first": everything[:1], "last_linear": linear[-1:]}
    meant = {alias: names for alias, names in meant.items() if alias not in candidates}
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


def _pattern(names: list[str], everything: Iterable[str]) -> list[str]:
    """Return patterns that match these names and no others: one glob if possible."""
    if len(names) == 1:
        return names
    length = next(i for i, letters in enumerate(zip_longest(*names)) if len(set(letters)) > 1)
    glob = f"{names[0][:length]}*"
    others = (name for name in everything if name not in names)
    return names if any(fnmatchcase(name, glob) for name in others) else [glob]
