"""Claim 4: batch normalisation improves the conditioning of the hidden layers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

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
from condexp.results.config_keys import lookup
from condexp.results.tables.paired import LEVEL, median, paired_difference, signed_rank_p
from condexp.results.tables.paired import differences as pairwise
from condexp.store.reader import Run

FACTOR = "model.norm"
P = 0.5
OTHERS = (0.2, 0.8)  # shown beside it, where they were recorded
MEASURE = f"kfac_kappa_{P}"
OPTION = "kfac in analysis.matrices and 0.5 in analysis.kappa_p"
ROWS_PER_UNIT = 4  # with fewer, κ_p speaks of the sample, not of the network (docs/theory.md §1)
STATEMENT = "Batch normalisation improves the conditioning of the hidden layers."
CRITERION = (
    "in every condition, the mean over hidden layers (all but the last) of log₁₀ κ_0.5(kfac) at "
    "the last snapshot is lower with norm=batch than with norm=none: the 95 % t-interval of the "
    "difference, paired over seeds, excludes 0. Where a κ is infinite the median over layers "
    "stands for the mean, Wilcoxon's signed ranks (one-sided, 5 %) for an interval of infinite "
    "differences, and no more layers are infinite with it than without"
)

REFUTED = (
    "in some condition a κ_0.5 that is not lower with norm=batch at the last snapshot, or more "
    "layers whose κ is infinite with it"
)


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Read κ_0.5 of every layer's ``kfac`` at every snapshot, κ_0.2 and κ_0.8 where recorded.

    Args:
        runs: Runs that measured it.

    Returns:
        One row a run, p, snapshot and layer: ``run``, ``condition``, ``seed``, ``state``,
        ``norm``, ``p``, ``step``, ``layer``, ``index`` (of the layer, from 0), ``hidden`` (whether
        it is not the last), ``enough_rows`` (four at least for each unit of either factor's side),
        ``kappa`` and the ends of its interval, ``kappa_low`` and ``kappa_high`` (NaN where it has
        none).
    """
    parts = []
    for run, described in zip(runs, describe(runs, [FACTOR]), strict=True):
        layers = require(run, [MEASURE], OPTION)
        num_steps, num = len(layers.steps), len(layers.layers)
        d_in, d_out, groups, rows = (
            layers.arrays[name] for name in ("d_in", "d_out", "groups", "num_rows")
        )
        index = np.arange(num)
        shared = {
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
        }
        for p in (P, *OTHERS):
            name = f"kfac_kappa_{p}"
            if name in layers.measures:
                low, high = layers.interval(name)
                kappa = {"kappa": layers.values(name), "kappa_low": low, "kappa_high": high}
                own = {key: values.ravel() for key, values in kappa.items()}
                parts.append(pd.DataFrame(shared | {"p": p} | own))
    return pd.concat(parts, ignore_index=True)


def differences(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare each normalisation with none, seed by seed.

    A pair of runs is compared at the last snapshot that both have, and at their first; over hidden
    layers with enough rows. Where one of a condition's κ is infinite, a pair's difference is the
    median over its layers in place of the mean, of two in the middle the one against the claim.
    A κ that is known from below only counts as its bound without the norm, and as infinite with it.

    Args:
        frame: What :func:`measure` returned.

    Returns:
        One row a condition, normalisation, p and snapshot (``last``, ``first``), with the mean (or
        median) of log₁₀ κ over layers and seeds without and with it, their difference and its
        interval, the p-value of the signed ranks, how many layers have an infinite κ with only one
        of the two, and how many have none at all with one (dead layers) and are left out.
    """
    usable = frame[frame["hidden"] & frame["enough_rows"]]
    largest = at_most(usable, "kappa", "kappa_high")
    usable = usable.assign(kappa=usable["kappa"].where(usable["norm"] == "none", largest))
    keys = ["condition", "seed", "p", "step", "layer"]
    plain = usable.loc[usable["norm"] == "none", [*keys, "kappa"]]
    pairs = usable[usable["norm"] != "none"].merge(plain, on=keys, suffixes=("", "_none"))
    rows = []
    for (condition, norm, p), found in pairs.groupby(["condition", "norm", "p"]):
        steps = found.groupby("seed")["step"]
        for moment, chosen in (("last", steps.transform("max")), ("first", steps.transform("min"))):
            row = _row(found[found["step"] == chosen])
            rows.append({"condition": condition, "norm": norm, "p": p, "snapshot": moment} | row)
    return pd.DataFrame(rows, columns=["condition", "norm", "p", "snapshot", *_row(pairs)])


def judge(frame: pd.DataFrame) -> Verdict:
    """Say whether batch normalisation lowers κ.

    Args:
        frame: What :func:`measure` returned.

    Returns:
        The verdict: it needs a pair of runs of every seed, two at least, in every condition.
    """
    grid = frame[frame["norm"].isin(["none", "batch"]) & ~frame["seed"].isin(CHOOSING_SEEDS)]
    known = judged(grid)
    numbers = differences(judged(frame))
    last = numbers[(numbers["p"] == P) & (numbers["snapshot"] == "last")]
    decisive = last[last["norm"] == "batch"]
    norms = known.groupby(["condition", "seed"])["norm"].transform("nunique")
    missing = lacking(grid, known[norms == 2])
    found = {str(row["condition"]): row for row in decisive.to_dict("records")}
    parts = {
        str(condition): None if condition in missing else _lower(found.get(condition, {}))
        for condition in grid["condition"].unique()
    }
    remarks = [*unfinished(frame), *_remarks(frame, parts, missing)]
    shown = every(parts.values())
    tables = tuple(_tables(numbers))
    return Verdict(4, STATEMENT, CRITERION, REFUTED, shown, numbers, tables, tuple(remarks))


def _tables(numbers: pd.DataFrame) -> Iterator[ClaimTable]:
    """Yield κ_0.5 at the last snapshot, which is judged with norm=batch, and all that is not."""
    last = numbers["snapshot"] == "last"
    judged_rows = last & (numbers["p"] == P)
    for caption, chosen in (
        ("κ_0.5 at the last snapshot, in decades; norm=batch is judged", judged_rows),
        ("Other κ_p at the last snapshot, beside the criterion", last & ~judged_rows),
        ("κ_0.5 at the first snapshot, beside the criterion", ~last & (numbers["p"] == P)),
    ):
        rows = [
            {
                "condition": row["condition"],
                "norm, p": f"{row['norm']}, {row['p']:g}",
                "log₁₀ κ without": fixed_text(row["log₁₀ κ none"]),
                "with": fixed_text(row["log₁₀ κ with"]),
                "difference": with_interval(row["difference"], row["low"], row["high"]),
                "∞ only without, only with": f"{row['∞ only without']}, {row['∞ only with']}",
            }
            for row in numbers[chosen].to_dict("records")
        ]
        if rows:
            yield ClaimTable(caption, pd.DataFrame(rows))


def _lower(row: Mapping[Any, Any]) -> bool | None:
    """Return whether one condition's κ is lower with the norm, as far as its seeds tell."""
    if not row or row["pairs"] < 2 or np.isnan(row["difference"]):
        return None
    if row["difference"] >= 0 or row["∞ only with"] > row["∞ only without"]:
        return False
    decided = row["p (ranks)"] <= 1 - LEVEL if np.isnan(row["high"]) else row["high"] < 0
    return True if decided else None


def _row(pairs: pd.DataFrame) -> dict[str, object]:
    values = pairs[["kappa_none", "kappa"]]
    known = pairs[values.notna().all(axis=1) & (values > 0).all(axis=1)]
    infinite = np.isinf(values)
    ranked = bool(infinite.any(axis=None))
    logarithms = known[["kappa_none", "kappa"]].transform(np.log10)
    seeds = logarithms.groupby(known["seed"])
    means = seeds.agg(_against) if ranked else seeds.mean()
    changes = [
        _against(pairwise(own["kappa_none"].tolist(), own["kappa"].tolist())) for _, own in seeds
    ]
    if not ranked:
        changes = (means["kappa"] - means["kappa_none"]).tolist()
    found = paired_difference([0.0] * len(changes), changes)
    below = signed_rank_p([-change for change in changes], above=0.0)
    return {
        "pairs": found.num,
        "log₁₀ κ none": median(means["kappa_none"].tolist())
        if ranked
        else means["kappa_none"].mean(),
        "log₁₀ κ with": median(means["kappa"].tolist()) if ranked else means["kappa"].mean(),
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "p (ranks)": below if found.num else np.nan,
        "∞ only without": int((infinite["kappa_none"] & ~infinite["kappa"]).sum()),
        "∞ only with": int((infinite["kappa"] & ~infinite["kappa_none"]).sum()),
        "no number": len(pairs) - len(known),
    }


def _against(values: "pd.Series[float] | NDArray[np.float64]") -> float:
    """Return the median; of two in the middle the larger, which speaks against the claim."""
    return float(np.sort(np.asarray(values))[len(values) // 2])


def _remarks(
    frame: pd.DataFrame,
    parts: Mapping[str, bool | None],
    missing: Mapping[str, Sequence[object]],
) -> Iterator[str]:
    hidden = frame[frame["hidden"].astype(bool)]
    few = hidden[~hidden["enough_rows"].astype(bool)].groupby("condition")["layer"].unique()
    for condition, names in few.items():
        yield (
            f"{condition}: left out are {', '.join(names)}, measured with fewer than "
            f"{ROWS_PER_UNIT} rows for each unit of their side"
        )
    if not {"none", "batch"} <= set(frame["norm"]):
        yield "there are no runs with norm=none and norm=batch to compare"
        return
    for condition, lower in parts.items():
        if condition in missing:
            seeds = ", ".join(map(str, missing[condition]))
            yield f"{condition}: no pair of runs that have ended of seed {seeds}"
        elif lower is False:
            yield f"{condition}: κ_0.5 is not shown to be lower with batch normalisation"
        elif lower is None:
            yield f"{condition}: two pairs of runs are needed, and an interval that excludes 0"
