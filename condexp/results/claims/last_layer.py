"""Claim 5: a very deep ResNet's last linear layer is ill-conditioned; one BatchNorm cures it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from condexp.errors import InputError
from condexp.results.claims.conditions import (
    CHOOSING_SEEDS,
    at_most,
    describe,
    judged,
    unfinished,
)
from condexp.results.claims.requires import require
from condexp.results.claims.verdict import Verdict, every
from condexp.results.config_keys import lookup
from condexp.results.layer_measures import LayerMeasures
from condexp.results.tables.paired import LEVEL, median, paired_difference, signed_rank_p
from condexp.results.tables.paired import differences as pairwise
from condexp.store.reader import Run

FACTOR = "model.last_bn"
MEASURES = tuple(
    f"{matrix}_{name}"
    for matrix in ("input", "grad_output")
    for name in ("lambda_max", "kappa_0.5")
)
OPTION = "analysis=last_layer with 0.5 in analysis.kappa_p"
DECISIVE = "resnet"
QUANTITIES = {"log_kappa": "log₁₀ κ_0.5", "test_error": "test error"}
THRESHOLDS = {"log₁₀ κ_0.5": 0.5, "test error": 0.0}
COLUMNS = (
    *("condition", "quantity", "network", "depth", "plain", "LastBN"),
    *("difference", "low", "high", "p (ranks)", "pairs", "plain not finite", "LastBN not finite"),
)
AT_CHANCE = 0.95  # a test error of this share of guessing's is that of a net that learned nothing
STATEMENT = (
    "A very deep ResNet's last linear layer is ill-conditioned; one BatchNorm before it cures that "
    "and lowers the test error."
)
CRITERION = (
    "for the deepest ResNet of the grid and every seed, plain minus LastBN, paired over seeds: the "
    "difference of log₁₀ κ_0.5(input) of the last linear layer at the last snapshot is at least "
    "0.5, that of the test error above 0, and the 95 % t-intervals exclude those values. An "
    "infinite κ is larger than every finite one: where a pair has one, Wilcoxon's signed ranks "
    "(one-sided, 5 %) stand for the interval and the median for the mean"
)


def last_linear(measures: LayerMeasures, run: Run) -> int:
    """Find the last linear layer among the analysed ones.

    Args:
        measures: The run's measures.
        run: The run.

    Returns:
        Its index among the layers.

    Raises:
        InputError: If no linear layer was analysed.
    """
    linear = np.flatnonzero(measures.arrays["type"] == "Linear")
    if not len(linear):
        raise InputError(f"{run.path} holds no linear layer: recorded with analysis=last_layer.")
    return int(linear[-1])


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Read the last linear layer's factors at every snapshot, and the final test error.

    Args:
        runs: Runs that measured them.

    Returns:
        One row a run and snapshot: ``run``, ``condition``, ``seed``, ``state``, ``network``,
        ``depth``, ``last_bn``, ``test_error`` (final, percent), ``chance`` (the error of guessing
        among as many classes as the layer has outputs), ``layer``, ``step``, and λ_max and κ_0.5 of
        ``input`` and ``grad_output``, called as in `LayerMeasures`, with the ends of κ's intervals
        (NaN where there are none).
    """
    parts = []
    for run, described in zip(runs, describe(runs, [FACTOR]), strict=True):
        measures = require(run, MEASURES, OPTION)
        layer = last_linear(measures, run)
        errors = run.metrics["test_error"].dropna()
        parts.append(
            pd.DataFrame({
                "run": str(run.path),
                **described,
                "network": str(lookup(run.config, "model.name")),
                "depth": lookup(run.config, "model.depth"),
                "last_bn": bool(lookup(run.config, FACTOR)),
                "test_error": errors.iloc[-1] if len(errors) else np.nan,
                "chance": 100 * (1 - 1 / int(measures.arrays["d_out"][layer])),
                "layer": measures.layers[layer],
                "step": measures.steps,
                **{name: measures.values(name)[:, layer] for name in MEASURES},
                **{
                    name.replace("kappa", f"kappa_{end}"): ends[:, layer]
                    for name in MEASURES
                    if "kappa" in name
                    for end, ends in zip(("low", "high"), measures.interval(name), strict=True)
                },
            })
        )
    return pd.concat(parts, ignore_index=True)


def differences(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare plain nets with those that have LastBN, seed by seed, at the last snapshot.

    Args:
        frame: What :func:`measure` returned.

    Returns:
        Two rows a condition that has both nets, for log₁₀ κ_0.5 and for the test error, deepest
        last: the means over the seeds (medians where one is infinite), the difference plain −
        LastBN with its interval, the p-value of the signed ranks for its being above what the
        claim asks, the number of pairs, and how many nets of each kind have no finite value.
    """
    last = frame[frame["step"] == frame.groupby("run")["step"].transform("max")]
    # A bound is what LastBN's κ may be above, and plain's is at least.
    largest = at_most(last, "input_kappa_0.5", "input_kappa_high_0.5")
    kappa = last["input_kappa_0.5"].where(~last["last_bn"].astype(bool), largest)
    last = last.assign(log_kappa=kappa.transform(np.log10))
    keys, rows = ["network", "depth", "condition"], []
    for (network, depth, condition), own in last.groupby(keys, dropna=False):
        for column, quantity in QUANTITIES.items():
            found = own.pivot(index="seed", columns="last_bn", values=column)
            if len(found.columns) < 2:
                continue
            plain, cured = found[False], found[True]
            pairs = cured.tolist(), plain.tolist()
            difference = paired_difference(*pairs)
            ranks = signed_rank_p(pairwise(*pairs), above=THRESHOLDS[quantity])
            rows.append({
                "condition": condition,
                "network": network,
                "depth": depth,
                "quantity": quantity,
                "plain": _centre(plain),
                "LastBN": _centre(cured),
                "difference": difference.mean,
                "low": difference.low,
                "high": difference.high,
                "p (ranks)": ranks,
                "pairs": difference.num,
                "plain not finite": _num_lost(own, column, last_bn=False),
                "LastBN not finite": _num_lost(own, column, last_bn=True),
            })
    return pd.DataFrame(rows, columns=COLUMNS)


def judge(frame: pd.DataFrame) -> Verdict:
    """Say whether LastBN cures the deepest ResNet.

    Args:
        frame: What :func:`measure` returned.

    Returns:
        The verdict: it needs a pair of ResNets of the deepest depth for every seed of the grid,
        two at least. What shallower ones do stands in the numbers, and decides nothing.
    """
    known = judged(frame)
    grid = frame[(frame["network"] == DECISIVE) & ~frame["seed"].isin(CHOOSING_SEEDS)]
    deepest = grid[grid["depth"] == grid["depth"].max()]
    numbers = differences(known)
    parts: list[bool | None] = []
    reasons = []
    for condition in deepest["condition"].unique():
        own = numbers[numbers["condition"] == condition]
        missing = _missing(known[known["condition"] == condition], set(grid["seed"]))
        held, reason = _decide(own, missing)
        parts.append(held)
        reasons.append(f"{condition}, the deepest: {reason}")
    if not (numbers["network"] == DECISIVE).any():
        parts, reasons = [], [f"no pair of a {DECISIVE} with and without {FACTOR}"]
    remarks = [*unfinished(frame), *_lost(known, numbers), *reasons]
    numbers = numbers.drop(columns="network")
    return Verdict(5, STATEMENT, CRITERION, every(parts), numbers, tuple(remarks))


def _decide(own: pd.DataFrame, missing: Sequence[object]) -> tuple[bool | None, str]:
    if missing:
        seeds = ", ".join(map(str, missing))
        return None, f"cannot be said, as seed {seeds} has no pair with both numbers"
    parts = {row["quantity"]: _above(row) for row in own.to_dict("records")}
    shown = every(parts.values())
    failed = [name for name, part in parts.items() if part is False]
    unclear = [name for name, part in parts.items() if part is None]
    if shown:
        return True, "shows the claim"
    if shown is False:
        return False, f"does not show it: {' and '.join(failed)}"
    return None, f"cannot be said, as seeds differ too much or are too few: {' and '.join(unclear)}"


def _above(row: Mapping[Any, Any]) -> bool | None:
    """Return whether a difference is what the claim asks, as far as its seeds tell."""
    threshold = THRESHOLDS[row["quantity"]]
    if row["pairs"] < 2 or np.isnan(row["difference"]):
        return None
    if row["difference"] < threshold or (row["difference"] == 0 and threshold == 0):
        return False
    ranked = np.isnan(row["low"])
    decided = row["p (ranks)"] <= 1 - LEVEL if ranked else row["low"] > threshold
    return True if decided else None


def _missing(own: pd.DataFrame, seeds: Collection[object]) -> list[object]:
    """Return the seeds that lack one of the two nets, or one of its two numbers."""
    last = own[own["step"] == own.groupby("run")["step"].transform("max")]
    whole = last.dropna(subset=["input_kappa_0.5", "test_error"])
    nets = whole.groupby("seed")["last_bn"].nunique()
    return sorted(set(seeds) - set(nets.index[nets == 2]), key=str)


def _centre(values: "pd.Series[float]") -> float:
    known = values.dropna()
    return median(known.tolist()) if np.isinf(known).any() else float(known.mean())


def _num_lost(own: pd.DataFrame, column: str, *, last_bn: bool) -> int:
    return int((~np.isfinite(own.loc[own["last_bn"] == last_bn, column])).sum())


def _lost(frame: pd.DataFrame, numbers: pd.DataFrame) -> Iterator[str]:
    # Which nets have no finite number, and of how many of them that is no wonder.
    last = frame[frame["step"] == frame.groupby("run")["step"].transform("max")]
    for row in numbers.to_dict("records"):
        column = {name: key for key, name in QUANTITIES.items()}[row["quantity"]]
        own = last[last["condition"] == row["condition"]]
        values = own["input_kappa_0.5" if column == "log_kappa" else column]
        for last_bn, net in ((False, "plain"), (True, "LastBN")):
            these = own["last_bn"] == last_bn
            infinite, none = these & np.isinf(values), these & values.isna()
            if num := int(infinite.sum()):
                yield (
                    f"{row['condition']}: {num} {net} net(s) have an infinite {row['quantity']}, "
                    f"ranked above every finite one{_at_chance(own[infinite])}"
                )
            if num := int(none.sum()):
                yield f"{row['condition']}: {num} {net} net(s) have no {row['quantity']}" + (
                    _at_chance(own[none])
                )


def _at_chance(runs: pd.DataFrame) -> str:
    # A net that classifies is neither dead nor diverged, whatever its last layer's κ is.
    chance = runs.get("chance", np.nan)
    num = int((runs["test_error"] >= AT_CHANCE * chance).sum())
    return f" ({num} of them at chance: dead or diverged)" if num else ""
