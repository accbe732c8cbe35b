"""Claim 1: a layer's Fisher block is close to the Kronecker product of its factors."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from condexp.results.claims.conditions import (
    CHOOSING_SEEDS,
    at_most,
    describe,
    judged,
    lacking,
    unfinished,
)
from condexp.results.claims.requires import require
from condexp.results.claims.verdict import ClaimTable, Verdict, every, fixed_text, with_interval
from condexp.results.layer_measures import LayerMeasures
from condexp.results.tables.paired import differences, median, paired_difference
from condexp.store.reader import Run
from condexp.store.schema.matrices import NETWORK

THRESHOLD, LOWEST = 0.9, 0.8  # of the correlation, and of the low end of its interval
SLOPES = (0.8, 1.25)
FACTOR = 3.0
SYMBOLS = {"lambda_max": "λ_max", **{f"kappa_{p}": f"κ_{p}" for p in ("0.5", "0.2", "0.8")}}
MEASURES = ("lambda_max", "kappa_0.5")
"""Those that the criterion names; the others stand beside them where they were recorded."""
MATRICES, ENDS = ("kfac", "fisher"), ("low", "high")
OPTION = "analysis=fisher with 0.5 in analysis.kappa_p"
COLUMNS = (
    *("condition", "snapshots", "measure", "seeds", "points"),
    *("r", "r low", "r high", "slope", "ratio"),
)
MIN_POINTS = 3
ALMOST_ONE = 1 - 1e-12  # a correlation of 1 has no finite Fisher z
STATEMENT = "A layer's Fisher block is close to the Kronecker product Σ_x ⊗ Σ_∇h of its factors."
CRITERION = (
    "in every condition, over the snapshots and layers, for λ_max, and for κ_0.5 of layers with no "
    "more weights than gradients were measured: Pearson's correlation of the logarithms of kfac "
    "and fisher is at least 0.9, the low end of its 95 % interval (Fisher's z, over seeds) above "
    "0.8, the slope of log fisher on log kfac is between 0.8 and 1.25, and the median ratio is "
    "within a factor of 3; where a κ is infinite, correlation and ratio are of ranks and medians"
)
REFUTED = (
    "a correlation below 0.9, a slope outside 0.8 to 1.25, or a median ratio of more than 3 or "
    "less than 1/3, of either measure in any condition"
)


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Read both matrices of every layer at every snapshot.

    Args:
        runs: Runs that measured ``kfac`` and ``fisher``.

    Returns:
        One row a run, snapshot and layer: ``run``, ``condition``, ``seed``, ``state``, ``step``,
        ``layer``, ``full_rows`` (whether the Fisher block has a gradient for each weight), and
        ``<matrix>_<measure>`` of λ_max and κ_0.5, and of κ_0.2 and κ_0.8 where they were recorded,
        with the ends of κ's intervals. The layer
        ``network`` is of all layers together: the largest λ_max of a layer's ``kfac``, beside that
        of the network's ``fisher``.
    """
    parts = []
    for run, described in zip(runs, describe(runs), strict=True):
        layers = require(run, _columns(MEASURES), OPTION)
        network = LayerMeasures.read_network(run)
        own = {"run": str(run.path), **described}
        full = layers.arrays["n_fisher"] == layers.arrays["n_kfac"]
        names = [name for name in _columns(SYMBOLS) if name in layers.measures]
        ends = {
            name.replace("kappa", f"kappa_{end}"): values.ravel()
            for name in names
            if "kappa" in name
            for end, values in zip(ENDS, layers.interval(name), strict=True)
        }
        full_rows = np.tile(full, len(layers.steps))
        parts.append(layers.table(names).assign(full_rows=full_rows, **ends, **own))
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
    head = ["run", "condition", "seed", "state", "step", "layer", "full_rows"]
    return frame[[*head, *frame.columns.drop(head)]]


def _columns(measures: Iterable[str]) -> list[str]:
    return [f"{matrix}_{name}" for matrix in MATRICES for name in measures]


def points(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Take the logarithms that can be drawn.

    Args:
        frame: What :func:`measure` returned.
        name: ``lambda_max`` or ``kappa_0.5``.

    Returns:
        Rows of the frame where both numbers are positive and finite, for κ of layers with a
        gradient for each weight, with the columns ``kfac`` and ``fisher``: log₁₀ of each; and
        ``bound``: whether one is known from below only.
    """
    pairs = _pairs(frame, name)
    stored = {matrix: np.log10(pairs[f"{matrix}_{name}"]) for matrix in MATRICES}
    bound = (pairs["kfac"] == np.inf) | (pairs["fisher"] == np.inf)
    pairs = pairs.assign(bound=bound, **stored)
    return pairs[(pairs["kfac"] < np.inf) & (pairs["fisher"] < np.inf)]


def correlations(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare the two matrices over the snapshots and layers of each run.

    Args:
        frame: What :func:`measure` returned.

    Returns:
        One row a condition, choice of ``snapshots`` and ``measure`` (its symbol): of ``all``, of
        the ``early`` half and of the ``late`` one (a middle snapshot belongs to neither); the
        ``seeds``, the ``points``, the correlation ``r`` (the mean of Fisher's z over seeds,
        transformed back) with its 95 % interval ``r low`` to ``r high``, the mean ``slope`` of log
        fisher on log kfac, and the median ``ratio`` fisher / kfac; NaN where a run has fewer than
        three points.
    """
    layers = frame[frame["layer"] != NETWORK].reset_index(drop=True)
    rank = layers.groupby("run")["step"].rank("dense")
    last = rank.groupby(layers["run"]).transform("max")
    chosen = {"all": rank > 0, "early": rank <= last // 2, "late": rank > (last + 1) // 2}
    known = [name for name in SYMBOLS if set(_columns([name])) <= set(frame.columns)]
    rows = []
    for condition, own in layers.groupby("condition", sort=True):
        for when, name in product(chosen, known):
            part = own[chosen[when][own.index]]
            found = _closeness(_pairs(part, name), own)
            head = (condition, when, SYMBOLS[name], own["seed"].nunique())
            rows.append(dict(zip(COLUMNS, (*head, *found), strict=True)))
    return pd.DataFrame(rows, columns=COLUMNS)


def judge(frame: pd.DataFrame) -> Verdict:
    """Compare correlation, slope and ratio of both measures with their bounds.

    Args:
        frame: What :func:`measure` returned.

    Returns:
        The verdict: it needs two seeds, and as many as its other conditions, in every condition.
    """
    runs = judged(frame)
    numbers = correlations(runs)
    missing = lacking(frame[~frame["seed"].isin(CHOOSING_SEEDS)], runs)
    parts = [part for row in _decisive(numbers) for part in _parts(row, missing).values()]
    parts += [None for condition in missing if condition not in set(numbers["condition"])]
    remarks = tuple(_remarks(frame, runs, numbers, missing))
    tables = tuple(_tables(numbers, missing))
    return Verdict(1, STATEMENT, CRITERION, REFUTED, every(parts), numbers, tables, remarks)


def _decisive(numbers: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows that the criterion names."""
    named = numbers["measure"].isin([SYMBOLS[name] for name in MEASURES])
    rows = numbers[named & (numbers["snapshots"] == "all")].to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


def _tables(numbers: pd.DataFrame, missing: Mapping[str, object]) -> Iterator[ClaimTable]:
    """Yield the criterion's numbers, the other κ_p, and the two halves of the training."""
    rows = []
    for row in numbers[numbers["snapshots"] == "all"].to_dict("records"):
        parts = _parts(row, missing)
        failed = [name for name, held in parts.items() if held is False]
        rest = "nothing" if all(parts.values()) else "undecided"
        rows.append({
            "condition": row["condition"],
            "measure": row["measure"],
            "r of the logarithms": with_interval(row["r"], row["r low"], row["r high"]),
            "slope": fixed_text(row["slope"]),
            "fisher / kfac": fixed_text(row["ratio"]),
            "out of bounds": ", ".join(failed) or rest,
        })
    table = pd.DataFrame(rows)
    if not rows:
        return
    named = table["measure"].isin([SYMBOLS[name] for name in MEASURES])
    yield ClaimTable("All snapshots and layers: what the criterion is about", table[named])
    if not named.all():
        yield ClaimTable("Other κ_p, beside the criterion", table[~named])
    halves = numbers.pivot(index=["condition", "measure"], columns="snapshots")
    named_halves = halves[halves.index.isin([SYMBOLS[name] for name in MEASURES], level="measure")]
    both = {
        f"{label}, {when}": named_halves[(column, when)].map(fixed_text)
        for column, label in (("r", "r"), ("ratio", "fisher / kfac"))
        for when in ("early", "late")
    }
    yield ClaimTable(
        "The first and the second half of the snapshots", pd.DataFrame(both).reset_index()
    )


def _pairs(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows that have both logarithms; of κ they may be infinite, as bounds are."""
    rows = frame if name == "lambda_max" else frame[frame["full_rows"].astype(bool)]
    columns = {
        matrix: at_most(rows, f"{matrix}_{name}", f"{matrix}_{name}".replace("kappa", "kappa_high"))
        for matrix in MATRICES
    }
    both = pd.DataFrame(columns)
    usable = (both > 0).all(axis=1)
    if name == "lambda_max":
        usable = usable & (both < np.inf).all(axis=1)
    return rows[usable].assign(**{name: np.log10(both.loc[usable, name]) for name in MATRICES})


def _closeness(pairs: pd.DataFrame, own: pd.DataFrame) -> tuple[float, ...]:
    """Return ``points``, ``r``, its interval, ``slope`` and ``ratio`` of one condition's pairs."""
    infinite = bool(np.isinf(pairs[list(MATRICES)]).any(axis=None))
    by_run = [pairs[pairs["run"] == run] for run in own["run"].unique()]
    r = [_correlation(used, ranks=infinite) for used in by_run]
    z = np.arctanh(np.clip(r, -ALMOST_ONE, ALMOST_ONE))
    # NaN stays: a run without a correlation is not left out of the mean.
    found = paired_difference([0.0] * len(z), z.tolist())
    lost = len(z) - found.num
    mean, low, high = np.tanh([found.mean, found.low, found.high]) if not lost else [np.nan] * 3
    ratios = differences(pairs["kfac"].tolist(), pairs["fisher"].tolist())
    slope = float(np.mean([_slope(used) for used in by_run]))
    return len(pairs), float(mean), float(low), float(high), slope, float(10 ** median(ratios))


def _parts(row: Mapping[Any, Any], missing: Mapping[str, object]) -> dict[str, bool | None]:
    """Return of each part of the criterion whether it holds of one condition and measure."""
    slope, ratio, r = row["slope"], row["ratio"], row["r"]
    parts = {
        "r": None if np.isnan(r) else bool(r >= THRESHOLD),
        "r's interval": True if row["r low"] > LOWEST else None,
        "slope": None if np.isnan(slope) else bool(SLOPES[0] <= slope <= SLOPES[1]),
        "ratio": None if np.isnan(ratio) else bool(1 / FACTOR <= ratio <= FACTOR),
    }
    if row["seeds"] < 2 or row["condition"] in missing:
        return dict.fromkeys(parts)
    return parts


def _correlation(used: pd.DataFrame, *, ranks: bool = False) -> float:
    values = used[list(MATRICES)].rank() if ranks else used[list(MATRICES)]
    if len(used) < MIN_POINTS or (values.nunique() < 2).any():
        return np.nan
    return float(np.corrcoef(values["kfac"], values["fisher"])[0, 1])


def _slope(used: pd.DataFrame) -> float:
    # Infinite ones are in the correlation and the ratio; a line leads through the others.
    finite = used[np.isfinite(used[list(MATRICES)]).all(axis=1)]
    if len(finite) < MIN_POINTS or finite["kfac"].nunique() < 2:
        return np.nan
    covariance = np.cov(finite["kfac"], finite["fisher"])
    return float(covariance[0, 1] / covariance[0, 0])


def _remarks(
    frame: pd.DataFrame,
    runs: pd.DataFrame,
    numbers: pd.DataFrame,
    missing: Mapping[str, Sequence[object]],
) -> Iterator[str]:
    yield from unfinished(frame)
    for condition, seeds in missing.items():
        yield f"{condition}: no run that has ended of seed {', '.join(map(str, seeds))}"
    if not len(numbers):
        return
    layers = runs[runs["layer"] != NETWORK]
    few = numbers[numbers["seeds"] < 2]["condition"].unique()
    if len(few):
        yield f"fewer than two seeds: {'; '.join(few)}"
    partial = layers[~layers["full_rows"].astype(bool)].groupby("condition")["layer"].unique()
    for group, names in partial.items():
        yield (
            f"{group}: κ_0.5 is not compared on {', '.join(names)}, which have more weights "
            "than gradients were measured"
        )
    whole = layers[layers["full_rows"].astype(bool)]
    for name, rows in zip(MEASURES, (layers, whole), strict=True):
        pairs, symbol = _pairs(layers, name), SYMBOLS[name]
        if lost := len(rows) - len(pairs):
            yield f"{lost} of {len(rows)} values of {symbol} are zero or no number: left out"
        if infinite := int(np.isinf(pairs[list(MATRICES)]).any(axis=1).sum()):
            yield f"{infinite} of {len(rows)} pairs of {symbol} are infinite: ranked as the largest"
    yield from _failures(layers, numbers, missing)
    pooled = [_correlation(points(layers, name)) for name in MEASURES]
    network = points(runs[runs["layer"] == NETWORK], "lambda_max")
    ratio = 10 ** (network["fisher"] - network["kfac"]).median()
    yield (
        f"beside the criterion: over all runs together r is {pooled[0]:.2f} for λ_max and "
        f"{pooled[1]:.2f} for κ_0.5; λ_max of the network's fisher is {ratio:.2f} times the "
        "largest of a layer's kfac (median)"
    )


def _failures(
    layers: pd.DataFrame, numbers: pd.DataFrame, missing: Mapping[str, object]
) -> Iterator[str]:
    found: dict[str, dict[str, bool | None]] = {}
    for row in _decisive(numbers):
        parts = {f"{name} of {row['measure']}": x for name, x in _parts(row, missing).items()}
        found.setdefault(row["condition"], {}).update(parts)
    seeds = dict(zip(numbers["condition"], numbers["seeds"], strict=True))
    for condition, parts in found.items():
        if failed := [name for name, held in parts.items() if held is False]:
            own = points(layers[layers["condition"] == condition], "lambda_max")
            ratios = 10 ** (own["fisher"] - own["kfac"]).groupby(own["layer"], sort=False).median()
            words = ", ".join(f"{ratio:.2g} in {layer}" for layer, ratio in ratios.items())
            yield (
                f"{condition}: out of bounds: {', '.join(failed)}; λ_max of fisher is, times "
                f"kfac's, {words} (median)"
            )
        open_ = [name for name, held in parts.items() if held is None]
        if open_ and condition not in missing and seeds[condition] > 1:
            yield f"{condition}: undecided: {', '.join(open_)}"
