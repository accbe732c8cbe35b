"""Claim 1: a layer's Fisher block is close to the Kronecker product of its factors."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from condexp.results.claims.conditions import describe, unfinished
from condexp.results.claims.requires import require
from condexp.results.claims.verdict import Verdict
from condexp.results.layer_measures import LayerMeasures
from condexp.store.reader import Run
from condexp.store.schema.matrices import NETWORK

THRESHOLD = 0.9
SYMBOLS = {"lambda_max": "λ_max", "kappa_0.5": "κ_0.5"}
MEASURES = tuple(SYMBOLS)
MATRICES = ("kfac", "fisher")
OPTION = "analysis=fisher with 0.5 in analysis.kappa_p"
STATEMENT = "A layer's Fisher block is close to the Kronecker product Σ_x ⊗ Σ_∇h of its factors."
CRITERION = (
    "over the snapshots and layers of a run, Pearson's correlation of log λ_max(kfac) with log "
    "λ_max(fisher) is at least 0.9, and that of log κ_0.5 on layers with no more weights than "
    "gradients were measured; mean over seeds, in every condition"
)


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Read both matrices of every layer at every snapshot.

    Args:
        runs: Runs that measured ``kfac`` and ``fisher``.

    Returns:
        One row a run, snapshot and layer: ``run``, ``condition``, ``seed``, ``state``, ``step``,
        ``layer``, ``full_rows`` (whether the Fisher block has a gradient for each weight), and
        ``<matrix>_<measure>`` of λ_max and κ_0.5. The layer ``network`` is of all layers together:
        the largest λ_max of a layer's ``kfac``, beside that of the network's ``fisher``.
    """
    names = [f"{matrix}_{name}" for matrix in MATRICES for name in MEASURES]
    parts = []
    for run, described in zip(runs, describe(runs), strict=True):
        layers = require(run, names, OPTION)
        network = LayerMeasures.read_network(run)
        own = {"run": str(run.path), **described}
        full = layers.arrays["n_fisher"] == layers.arrays["n_kfac"]
        full_rows = np.tile(full, len(layers.steps))
        parts.append(layers.table(names).assign(full_rows=full_rows, **own))
        parts.append(
            pd.DataFrame({
                "step": network.steps,
                "layer": NETWORK,
                "full_rows": False,
                "kfac_lambda_max": np.fmax.reduce(layers.values("kfac_lambda_max"), axis=1),
                "fisher_lambda_max": network.values("fisher_lambda_max")[:, 0],
            }).assign(**own)
        )
    frame = pd.concat(parts, ignore_index=True)
    return frame[["run", "condition", "seed", "state", "step", "layer", "full_rows", *names]]


def points(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Take the logarithms that are compared.

    Args:
        frame: What :func:`measure` returned.
        name: ``lambda_max`` or ``kappa_0.5``.

    Returns:
        Rows of the frame where both numbers are positive and finite, for κ of layers with a
        gradient for each weight, with the columns ``kfac`` and ``fisher``: log₁₀ of each.
    """
    rows = frame if name == "lambda_max" else frame[frame["full_rows"]]
    both = rows[[f"{matrix}_{name}" for matrix in MATRICES]].set_axis(list(MATRICES), axis=1)
    usable = (np.isfinite(both) & (both > 0)).all(axis=1)
    return rows[usable].join(both[usable].transform(np.log10))


def correlations(frame: pd.DataFrame) -> pd.DataFrame:
    """Correlate the two matrices over the snapshots and layers of each run.

    Args:
        frame: What :func:`measure` returned.

    Returns:
        One row a condition: ``condition``, ``seeds``, ``layers`` (of them whole blocks for κ),
        and for each measure ``points`` of a run, the ``mean`` and ``lowest`` correlation over
        seeds, NaN where a run has fewer than three points; and the median ratio of fisher's λ_max
        to kfac's.
    """
    layers = frame[frame["layer"] != NETWORK]
    rows = []
    for condition, own in layers.groupby("condition", sort=True):
        row: dict[str, object] = {"condition": condition, "seeds": own["seed"].nunique()}
        for name, symbol in SYMBOLS.items():
            used = points(own, name)
            found = [_correlation(used[used["run"] == run]) for run in own["run"].unique()]
            row[f"points of {symbol}"] = len(used)
            row[f"r of log {symbol}"] = float(np.mean(found))
            row[f"lowest r of log {symbol}"] = float(np.min(found))
        used = points(own, "lambda_max")
        row["median λ_max ratio fisher / kfac"] = 10 ** (used["fisher"] - used["kfac"]).median()
        rows.append(row)
    return pd.DataFrame(rows)


def judge(frame: pd.DataFrame) -> Verdict:
    """Compare the correlations with the threshold.

    Args:
        frame: What :func:`measure` returned.

    Returns:
        The verdict: it needs two seeds and both correlations in every condition.
    """
    numbers = correlations(frame)
    means = numbers[["r of log λ_max", "r of log κ_0.5"]].to_numpy()
    enough = bool((numbers["seeds"] >= 2).all()) and not np.isnan(means).any()
    # One correlation that is too small refutes, whatever cannot be said of the others.
    refuted = bool((means < THRESHOLD).any()) and bool((numbers["seeds"] >= 2).all())
    shown = False if refuted else True if enough else None
    return Verdict(1, STATEMENT, CRITERION, shown, numbers, tuple(_remarks(frame, numbers)))


def _correlation(used: pd.DataFrame) -> float:
    if len(used) < 3 or (used[list(MATRICES)].nunique() < 2).any():
        return np.nan
    return float(np.corrcoef(used["kfac"], used["fisher"])[0, 1])


def _remarks(frame: pd.DataFrame, numbers: pd.DataFrame) -> Iterator[str]:
    yield from unfinished(frame)
    layers = frame[frame["layer"] != NETWORK]
    few = numbers[numbers["seeds"] < 2]["condition"]
    if len(few):
        yield f"fewer than two seeds: {'; '.join(few)}"
    partial = layers[~layers["full_rows"]].groupby("condition")["layer"].unique()
    for condition, names in partial.items():
        yield (
            f"{condition}: κ_0.5 is not compared on {', '.join(names)}, which have more weights "
            "than gradients were measured"
        )
    whole = layers[layers["full_rows"]]
    for (name, symbol), rows in zip(SYMBOLS.items(), (layers, whole), strict=True):
        lost = len(rows) - len(points(layers, name))
        if lost:
            yield f"{lost} of {len(rows)} values of {symbol} are zero or infinite and left out"
    yield from _failures(layers, numbers)
    pooled = [_correlation(points(layers, name)) for name in MEASURES]
    network = points(frame[frame["layer"] == NETWORK], "lambda_max")
    ratio = 10 ** (network["fisher"] - network["kfac"]).median()
    yield (
        f"beside the criterion: over all runs together r is {pooled[0]:.2f} for λ_max and "
        f"{pooled[1]:.2f} for κ_0.5; λ_max of the network's fisher is {ratio:.2f} times the "
        "largest of a layer's kfac (median)"
    )


def _failures(layers: pd.DataFrame, numbers: pd.DataFrame) -> Iterator[str]:
    failed = (numbers[["r of log λ_max", "r of log κ_0.5"]] < THRESHOLD).any(axis=1)
    for condition in numbers.loc[failed, "condition"]:
        own = points(layers[layers["condition"] == condition], "lambda_max")
        ratios = 10 ** (own["fisher"] - own["kfac"]).groupby(own["layer"], sort=False).median()
        words = ", ".join(f"{ratio:.2g} in {layer}" for layer, ratio in ratios.items())
        yield (
            f"{condition}: a correlation is below {THRESHOLD}; λ_max of fisher is, times kfac's, "
            f"{words} (median)"
        )
