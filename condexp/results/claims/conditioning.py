"""Claim 4: batch normalisation improves the conditioning of the hidden layers."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from condexp.results.claims.conditions import describe, unfinished
from condexp.results.claims.requires import require
from condexp.results.claims.verdict import Verdict
from condexp.results.config_keys import lookup
from condexp.results.tables.differences import paired_difference
from condexp.store.reader import Run

FACTOR = "model.norm"
MEASURE = "kfac_kappa_0.5"
OPTION = "kfac in analysis.matrices and 0.5 in analysis.kappa_p"
ROWS_PER_UNIT = 4  # with fewer, κ_p speaks of the sample, not of the network (docs/theory.md §1)
STATEMENT = "Batch normalisation improves the conditioning of the hidden layers."
CRITERION = (
    "the mean over hidden layers (all but the last) of log₁₀ κ_0.5(kfac) at the last snapshot is "
    "lower with norm=batch than with norm=none: the 95 % t-interval of the difference, paired over "
    "seeds, excludes 0, in every condition"
)


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Read κ_0.5 of every layer's ``kfac`` at every snapshot.

    Args:
        runs: Runs that measured it.

    Returns:
        One row a run, snapshot and layer: ``run``, ``condition``, ``seed``, ``state``, ``norm``,
        ``step``, ``layer``, ``index`` (of the layer, from 0), ``hidden`` (whether it is not the
        last), ``enough_rows`` (four at least for each unit of either factor's side) and ``kappa``.
    """
    parts = []
    for run, described in zip(runs, describe(runs, [FACTOR]), strict=True):
        layers = require(run, [MEASURE], OPTION)
        num_steps, num = len(layers.steps), len(layers.layers)
        d_in, d_out, groups, rows = (
            layers.arrays[name] for name in ("d_in", "d_out", "groups", "num_rows")
        )
        index = np.arange(num)
        parts.append(
            pd.DataFrame({
                "run": str(run.path),
                **described,
                "norm": str(lookup(run.config, FACTOR)),
                "step": np.repeat(layers.steps, num),
                "layer": list(layers.layers) * num_steps,
                "index": np.tile(index, num_steps),
                "hidden": np.tile(index < num - 1, num_steps),
                "enough_rows": np.tile(
                    rows >= ROWS_PER_UNIT * np.maximum(d_in, d_out // groups), num_steps
                ),
                "kappa": layers.values(MEASURE).ravel(),
            })
        )
    return pd.concat(parts, ignore_index=True)


def differences(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare each normalisation with none, seed by seed.

    A pair of runs is compared at the last snapshot that both have, and at their first; over hidden
    layers with enough rows whose κ is finite in both.

    Args:
        frame: What :func:`measure` returned.

    Returns:
        One row a condition, normalisation and snapshot (``last``, ``first``), with the mean of
        log₁₀ κ over layers and seeds without and with it, their difference and its interval, and
        how many layers have an infinite κ with only one of the two.
    """
    usable = frame[frame["hidden"] & frame["enough_rows"]]
    keys = ["condition", "seed", "step", "layer"]
    plain = usable.loc[usable["norm"] == "none", [*keys, "kappa"]]
    pairs = usable[usable["norm"] != "none"].merge(plain, on=keys, suffixes=("", "_none"))
    rows = []
    for (condition, norm), found in pairs.groupby(["condition", "norm"]):
        steps = found.groupby("seed")["step"]
        for moment, chosen in (("last", steps.transform("max")), ("first", steps.transform("min"))):
            row = _row(found[found["step"] == chosen])
            rows.append({"condition": condition, "norm": norm, "snapshot": moment} | row)
    return pd.DataFrame(rows, columns=["condition", "norm", "snapshot", *_row(pairs)])


def judge(frame: pd.DataFrame) -> Verdict:
    """Say whether batch normalisation lowers κ.

    Args:
        frame: What :func:`measure` returned.

    Returns:
        The verdict: it needs two pairs of runs in every condition that has ``norm=batch``. Where
        more layers are infinite with it than without, the finite ones do not show the claim.
    """
    numbers = differences(frame)
    decisive = numbers[(numbers["norm"] == "batch") & (numbers["snapshot"] == "last")]
    lower = (decisive["high"] < 0) & (decisive["∞ only with"] <= decisive["∞ only without"])
    known = decisive["high"].notna()
    shown: bool | None = None
    if (known & ~lower).any():
        shown = False
    elif len(decisive) and known.all():
        shown = True
    remarks = [*unfinished(frame), *_remarks(frame, decisive[known & ~lower], decisive[~known])]
    return Verdict(4, STATEMENT, CRITERION, shown, numbers, tuple(remarks))


def _row(pairs: pd.DataFrame) -> dict[str, object]:
    values = pairs[["kappa_none", "kappa"]]
    finite = pairs[np.isfinite(values).all(axis=1)]
    logarithms = finite[["kappa_none", "kappa"]].transform(np.log10)
    means = logarithms.groupby(finite["seed"]).mean()
    found = paired_difference(means["kappa_none"].tolist(), means["kappa"].tolist())
    infinite = np.isinf(values)
    return {
        "pairs": found.num,
        "log₁₀ κ none": means["kappa_none"].mean(),
        "log₁₀ κ with": means["kappa"].mean(),
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "∞ only without": int((infinite["kappa_none"] & ~infinite["kappa"]).sum()),
        "∞ only with": int((infinite["kappa"] & ~infinite["kappa_none"]).sum()),
    }


def _remarks(frame: pd.DataFrame, failed: pd.DataFrame, unknown: pd.DataFrame) -> Iterator[str]:
    hidden = frame[frame["hidden"]]
    few = hidden[~hidden["enough_rows"]].groupby("condition")["layer"].unique()
    for condition, names in few.items():
        yield (
            f"{condition}: left out are {', '.join(names)}, measured with fewer than "
            f"{ROWS_PER_UNIT} rows for each unit of their side"
        )
    for condition in failed["condition"]:
        yield f"{condition}: κ_0.5 is not shown to be lower with batch normalisation"
    for condition in unknown["condition"]:
        yield f"{condition}: fewer than two pairs of runs with norm=none and norm=batch"
    compared = {*failed["condition"], *unknown["condition"]}
    if not {"none", "batch"} <= set(frame["norm"]) and not compared:
        yield "there are no runs with norm=none and norm=batch to compare"
