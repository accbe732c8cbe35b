"""What the matrices of all layers together are like, in a line each."""

from collections.abc import Sequence

from rich.text import Text

from condexp.analysis.vocabulary import CURVATURE_MATRICES, NETWORK_CLOSENESS
from condexp.results.layer_measures import LayerMeasures
from condexp.results.tables.numbers import Mark, format_number
from condexp.store.schema.fields import COVERAGE_NAMES

CURVATURE_SYMBOLS = {
    "λ_max": "lambda_max",
    "λ_min": "lambda_min",
    "trace": "trace",
    "‖·‖_F": "frobenius_norm",
    "negative share": "negative_share",
}


def short_measures(data: LayerMeasures, matrices: Sequence[str]) -> list[str]:
    """Return λ_max and κ at the first p of matrices.

    Args:
        data: The measures.
        matrices: The matrices.

    Returns:
        Names of measures.
    """
    suffixes = ["lambda_max", *(f"kappa_{p}" for p in data.fractions[:1])]
    return [f"{matrix}_{suffix}" for matrix in matrices for suffix in suffixes]


def network_line(network: LayerMeasures, row: int) -> Text:
    """Say what the Fisher matrix of all layers together is like.

    Args:
        network: Its measures, as those of one layer.
        row: The snapshot.

    Returns:
        λ_max and κ at the first p, and of what share of the network.
    """
    symbols = ["λ_max", *(f"κ_{p}" for p in network.fractions[:1])]
    parts = []
    for symbol, name in zip(symbols, short_measures(network, ("fisher",)), strict=True):
        value, mark = network.values(name)[row, 0], network.marks(name)[row, 0]
        sign = "" if mark in {Mark.AT_LEAST, Mark.ESTIMATED} else "= "
        parts.append(f"{symbol} {sign}{format_number(value, mark)}")
    if "block_diagonal_cosine" in network.measures:
        numbers = (float(network.values(name)[row, 0]) for name in NETWORK_CLOSENESS)
        cosine, error = map(format_number, numbers)
        parts.append(f"its diagonal blocks alone: cosine {cosine}, relative error {error}")
    return Text(f"network: Fisher {', '.join(parts)}{_covered(network, row)}")


def curvature_lines(network: LayerMeasures, row: int) -> list[Text]:
    """Say what the Hessian and the Gauss–Newton matrix of all parameters are like.

    Args:
        network: The network's measures, as those of one layer.
        row: The snapshot.

    Returns:
        A line each, with the errors of its numbers.
    """
    lines = []
    for matrix in CURVATURE_MATRICES:
        parts = []
        for symbol, measure in CURVATURE_SYMBOLS.items():
            if f"{matrix}_{measure}" in network.measures:
                value = float(network.values(f"{matrix}_{measure}")[row, 0])
                error = float(network.values(f"{matrix}_{measure}_error")[row, 0])
                parts.append(f"{symbol} = {value:.4g} ± {format_number(error)}")
        if parts:
            lines.append(Text(f"network: {matrix} {', '.join(parts)}"))
    return lines


def _covered(network: LayerMeasures, row: int) -> str:
    """Return what share of the network this is, where it is not all of it."""
    shares = [network.arrays.get(name) for name in COVERAGE_NAMES]
    texts = [
        f"{100 * float(share[row]):.3g} % of the {of}"
        for share, of in zip(shares, ("parameters", "squared gradient"), strict=True)
        if share is not None and share[row] < 1
    ]
    return f"; of {' and '.join(texts)}" if texts else ""
