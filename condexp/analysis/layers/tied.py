"""Weights that several modules share: measured once, under the first one's name, with all uses."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from condexp.analysis.layers.info import NotAnalysed
from condexp.analysis.layers.kinds import Layer
from condexp.analysis.options import AnalysisOptions
from condexp.analysis.vocabulary import CURVATURE_MATRICES, OF_FACTORS, SINGULAR_VALUES, Matrix


def united(selected: Mapping[str, Layer]) -> tuple[dict[str, Layer], dict[str, str]]:
    """Unite the layers that share a weight.

    Args:
        selected: Layers by name.

    Returns:
        The layers of different weights, each with the other ways in which its weight is used; and
        for each name that is left out the one under which it is measured.
    """
    first_of: dict[int, str] = {}
    layers: dict[str, Layer] = {}
    shared: dict[str, str] = {}
    for name, layer in selected.items():
        first = first_of.setdefault(id(layer.weight), name)
        if first == name:
            layers[name] = layer
            continue
        shared[name] = first
        before = layers[first]
        if layer.function not in {kind.function for kind in before.kinds}:
            # A bias of one way of use is no part of the weight.
            operation = replace(before.operation, has_bias=False)
            layers[first] = replace(before, operation=operation, also=(*before.also, layer))
    return layers, shared


def has_matrices(layer: Layer, options: AnalysisOptions) -> bool:
    """Return whether a layer has one of the matrices that are asked for."""
    if layer.has_factors or options.wants(Matrix.FISHER, *CURVATURE_MATRICES):
        return True
    return not layer.operation.is_scale and options.wants(*SINGULAR_VALUES)


def without_factors(
    selected: Mapping[str, Layer], layers: Mapping[str, Layer], options: AnalysisOptions
) -> Iterator[NotAnalysed]:
    """List what is not measured of weights that are used in several ways.

    Args:
        selected: All layers by name, those that share a weight too.
        layers: Those of different weights, as :func:`united` returns them.
        options: What is measured.

    Yields:
        The entries.
    """
    for first, layer in layers.items():
        if not layer.also:
            continue
        if options.wants(*OF_FACTORS):
            ways = " and ".join(kind.function for kind in layer.kinds)
            reason = f"its weight is used by {ways}, whose sum is no Kronecker product"
            yield NotAnalysed(first, f"{reason}: only 'fisher' and 'weight' matrices are measured")
        for name, other in selected.items():
            if other.weight is layer.weight and other.operation.has_bias:
                yield NotAnalysed(f"{name}.bias", "a bias beside a weight of several uses")
