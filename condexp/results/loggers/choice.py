"""Which numbers of which layers a logger gets: ``logger.layers`` and ``logger.measures``."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from condexp.analysis.vocabulary import (
    CLOSENESS,
    CURVATURE_MATRICES,
    CURVATURE_MEASURES,
    LAYER_MEASURES,
    NETWORK_CLOSENESS,
    SPECTRUM_MEASURES,
    has_closeness,
)
from condexp.errors import InputError, choose, suggestion
from condexp.store.schema.matrices import KAPPAS, NETWORK

DEFAULT_P = 0.5


def chosen_layers(
    patterns: Sequence[str], layers: Sequence[str], types: Sequence[str]
) -> list[str]:
    """Find the layers that are meant.

    Args:
        patterns: Globs of names, ``first``, ``last_linear``, ``all``, or ``network``: all layers
            together.
        layers: The names of the measured layers, in execution order.
        types: Their types.

    Returns:
        Names of layers in their order, then ``network``.

    Raises:
        InputError: If a pattern means none; names the nearest.
    """
    linear = [name for name, kind in zip(layers, types, strict=True) if kind == "Linear"]
    meant: set[str] = set()
    for pattern in patterns:
        aliases = {
            "first": layers[:1],
            "last_linear": linear[-1:],
            "all": layers,
            NETWORK: [NETWORK],
        }
        found = aliases.get(pattern) or [name for name in layers if fnmatchcase(name, pattern)]
        if not found and pattern not in aliases:
            raise InputError(
                f"logger.layers has {pattern!r}, which is no measured layer's name: give globs of "
                f"names, first, last_linear, all, or network.{suggestion(pattern, layers)}"
            )
        meant.update(found)
    return [name for name in (*layers, NETWORK) if name in meant]


def chosen_measures(
    given: Sequence[str] | None, matrices: Sequence[str], fractions: Sequence[float]
) -> list[str]:
    """Find the measures that are meant.

    Args:
        given: ``logger.measures``; None: λ_max and one κ_p of each matrix, κ_0.5 where it is
            measured, and of ``hessian`` and ``ggn`` λ_max.
        matrices: The matrices measured.
        fractions: The fractions p measured.

    Returns:
        Names such as ``kfac_kappa_0.5``.

    Raises:
        InputError: If there is no such measure; names the nearest.
    """
    whole = [matrix for matrix in matrices if matrix not in CURVATURE_MATRICES]
    curvature = [matrix for matrix in matrices if matrix in CURVATURE_MATRICES]
    if given is None:
        p = DEFAULT_P if DEFAULT_P in fractions else next(iter(fractions), None)
        kinds = ["lambda_max", *([] if p is None else [f"kappa_{p}"])]
        usual = [f"{matrix}_{kind}" for matrix in whole for kind in kinds]
        return [*usual, *(f"{matrix}_lambda_max" for matrix in curvature)]
    kappas = [f"{kappa}_{float(p)}" for kappa in KAPPAS for p in fractions]
    known = [f"{matrix}_{kind}" for matrix in whole for kind in (*SPECTRUM_MEASURES, *kappas)]
    known += [f"{matrix}_{kind}" for matrix in curvature for kind in CURVATURE_MEASURES]
    known += (*CLOSENESS, *NETWORK_CLOSENESS) if has_closeness(matrices) else ()
    return [choose("logger.measures", name, (*known, *LAYER_MEASURES)) for name in given]
