"""Measurement of a network's curvature matrices: of the whole, and of each layer's block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from condexp.analysis.curvature.passes import CurvatureProducts, LossPass
from condexp.analysis.layers.kinds import Layer
from condexp.analysis.layers.select import select_layers
from condexp.analysis.linalg.curvature_spectrum import (
    CurvatureSpectrum,
    Searched,
    SearchEffort,
    search,
)
from condexp.analysis.loss.denominator import loss_denominator
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import CURVATURE_MATRICES, Matrix
from condexp.analysis.watch import tell
from condexp.errors import InputError

NETWORK = ""
"""The name of all parameters together, beside those of the layers."""
WHOLE_DTYPES = frozenset({torch.float32, torch.float64})
Vectors = Mapping[str, Tensor]
"""Vectors to start a search from, float32 ``[n, k + 1]``, by matrix and block: ``hessian/fc``."""


@dataclass(frozen=True, eq=False)
class Curvature:
    """What was measured of a network's curvature matrices.

    Attributes:
        network: The spectra of all trained parameters together, by matrix.
        layers: Those of the layers' blocks, by matrix and layer.
        vectors: The eigenvectors, from which the next search starts.
    """

    network: Mapping[Matrix, CurvatureSpectrum] = field(default_factory=dict)
    layers: Mapping[Matrix, Mapping[str, CurvatureSpectrum]] = field(default_factory=dict)
    vectors: Vectors = field(default_factory=dict)


def loss_passes(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Sequence[tuple[Tensor, Any]],
) -> list[LossPass]:
    """Return the passes of some batches, whose mean loss is Σ D_b L_b / Σ D_b.

    Args:
        model: The network.
        loss_fn: ``loss_fn(outputs, targets)``, a scalar.
        batches: Pairs of inputs ``[N_b, ...]`` and targets.

    Returns:
        A pass a batch.
    """
    denominators = [loss_denominator(loss_fn, targets, len(inputs)) for inputs, targets in batches]
    whole = sum(denominators) or 1.0

    def one(inputs: Tensor, targets: Any, denominator: float) -> LossPass:
        # A copy, because the first operation may work in place.
        return LossPass(
            lambda: model(inputs.clone()), lambda f: loss_fn(f, targets), denominator / whole
        )

    pairs = zip(batches, denominators, strict=True)
    return [one(inputs, targets, denominator) for (inputs, targets), denominator in pairs]


def measure_curvature(
    model: nn.Module,
    passes: Sequence[LossPass],
    options: AnalysisOptions,
    start: Vectors | None = None,
) -> Curvature:
    """Measure the Hessian and the Gauss–Newton matrix of a loss, as far as they are asked for.

    The network's are of all its trained parameters; a layer's block is of the weights that its
    ``fisher`` block is of. The caller preserves the model's state, and enables gradients.

    Args:
        model: The network.
        passes: The batches.
        options: ``matrices``, ``layers``, ``bias`` and the effort are read.
        start: Vectors of an earlier measurement, to start from.

    Returns:
        The spectra.

    Raises:
        InputError: If the network's precision is too low, or it cannot be differentiated twice.
    """
    matrices = [matrix for matrix in CURVATURE_MATRICES if matrix in options.matrices]
    trained = trained_parameters(model)
    blocks = dict(_blocks(model, options)) if options.layer_blocks else {}
    blocks = {NETWORK: trained, **blocks}
    products = CurvatureProducts(model, passes, trained, matrices)
    generator = torch.Generator().manual_seed(options.seed)
    effort = SearchEffort(
        options.top_k,
        options.eigenvalue_tolerance,
        options.num_random_vectors,
        options.num_lanczos_steps,
    )
    num_weights = sum(parameter.numel() for parameter in trained)
    needed = effort.num_bytes(num_weights)
    what, advice = "matrices 'hessian' and 'ggn'", ", or lower top_k or num_random_vectors"
    check_memory(what, needed, num_weights, options.memory_limit, advice)
    found: dict[Matrix, dict[str, CurvatureSpectrum]] = {matrix: {} for matrix in matrices}
    vectors: dict[str, Tensor] = {}
    todo = [(matrix, name) for matrix in matrices for name in blocks]
    for number, (matrix, name) in enumerate(todo):
        tell("block", number, len(todo))
        block, key = blocks[name], f"{matrix}/{name}"
        searched = _searched(products, matrix, block, effort, generator, (start or {}).get(key))
        found[matrix][name] = searched.spectrum
        if searched.vectors is not None:
            vectors[key] = searched.vectors.float().cpu()
    return Curvature(
        network={matrix: spectra.pop(NETWORK) for matrix, spectra in found.items()},
        layers=found,
        vectors=vectors,
    )


def _searched(
    products: CurvatureProducts,
    matrix: Matrix,
    block: Sequence[Tensor],
    effort: SearchEffort,
    generator: torch.Generator,
    start: Tensor | None,
) -> Searched:
    num_weights, like = sum(parameter.numel() for parameter in block), block[0]
    if start is not None and len(start) != num_weights:
        start = None  # of another network
    return search(
        products.of(matrix, block),
        num_weights,
        effort,
        like.dtype,
        generator=generator,
        start=start,
        device=on_device(like),
    )


def trained_parameters(model: nn.Module) -> list[Tensor]:
    """Return the parameters that are trained.

    Args:
        model: The network.

    Returns:
        The parameters.

    Raises:
        InputError: If there are none, or their numbers are too coarse to be differentiated twice.
    """
    found: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    if not found:
        raise InputError(
            f"{type(model).__name__}: no parameter requires a gradient, so there is no 'hessian' "
            "and no 'ggn' of its loss."
        )
    coarse = {str(p.dtype).removeprefix("torch.") for p in found if p.dtype not in WHOLE_DTYPES}
    if torch.is_autocast_enabled(found[0].device.type):
        coarse |= {"autocast"}
    if coarse:
        raise InputError(
            f"matrices 'hessian' and 'ggn' need a network in float32 or float64, this one computes "
            f"in {', '.join(sorted(coarse))}: use network_precision='float64'."
        )
    return found


def check_memory(
    what: str, needed: int, num_weights: int, limit: int | None, advice: str = ""
) -> None:
    """Refuse vectors that take more than may be used.

    Args:
        what: What they are of.
        needed: Their bytes.
        num_weights: The length of each.
        limit: Bytes that they may take; None: any.
        advice: What else helps, to follow the limit that would be enough.

    Raises:
        InputError: If they take more.
    """
    if limit is not None and needed > limit:
        raise InputError(
            f"{what} of {num_weights} weights take {needed / 1e9:.3g} GB of "
            f"vectors, and memory_limit is {limit / 1e9:.3g} GB: give memory_limit="
            f"{needed}{advice}."
        )


def on_device(parameter: Tensor) -> torch.device | str:
    """Return where the vectors of a search are kept: MPS has no float64.

    Args:
        parameter: One of the network's.
    """
    return "cpu" if parameter.device.type == "mps" else parameter.device


def _blocks(model: nn.Module, options: AnalysisOptions) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield each layer's weight, and its bias where that is measured with it."""
    for name, layer in select_layers(model, options).layers.items():
        block = [layer.weight, *_bias(model, name, layer, options)]
        if layer.weight.requires_grad and all(bias.numel() == layer.d_out for bias in block[1:]):
            yield name, block


def _bias(model: nn.Module, name: str, layer: Layer, options: AnalysisOptions) -> list[Tensor]:
    if not layer.operation.appends_one(options):
        return []
    modules = {label or type(model).__name__: module for label, module in model.named_modules()}
    if name in modules:
        bias = modules[name]._parameters.get("bias")
    else:  # a projection of an attention: three have one bias in common
        bias = modules[name.rpartition(".")[0]]._parameters.get("in_proj_bias")
    return [] if bias is None or not bias.requires_grad else [bias]
