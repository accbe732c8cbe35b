"""Claim 5: a very deep ResNet's last linear layer is ill-conditioned; one BatchNorm cures it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from condexp.errors import InputError
from condexp.results.claims.conditions import (
    CHOOSING_SEEDS,
    at_most,
    describe,
    judged,
    unfinished,
)
from condexp.results.claims.requires import require
from condexp.results.claims.verdict import ClaimTable, Verdict, every, fixed_text, with_interval
from condexp.results.config_keys import lookup
from condexp.results.layer_measures import LayerMeasures
from condexp.results.tables.paired import (
    LEVEL,
    POWER,
    median,
    paired_difference,
    pairs_needed,
    signed_rank_p,
)
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
OTHERS = (0.2, 0.8)  # p of the κ_p shown beside κ_0.5, where they were recorded
THRESHOLDS = {"log₁₀ κ_0.5": 0.5, "test error": 0.0}
"""What the criterion names, and what the difference has to be above."""
QUANTITIES = {
    "log₁₀ κ_0.5": "input_kappa_0.5",
    "test error": "test_error",
    **{f"log₁₀ κ_{p}": f"input_kappa_{p}" for p in OTHERS},
}
FLOW = ("first_grad_norm", "last_grad_norm", "dead_fraction")
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

REFUTED = (
    "at the deepest depth, a difference of log₁₀ κ_0.5 below 0.5, or a test error that is not "
    "higher without LastBN"
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
        among as many classes as the layer has outputs), ``layer``, ``step``, λ_max and κ_0.5 of
        ``input`` and ``grad_output``, called as in `LayerMeasures`, with the ends of κ's intervals
        (NaN where there are none), κ_0.2 and κ_0.8 where they were recorded; and of the gradient's
        way ``last_grad_norm`` and ``dead_fraction`` of the last linear layer, and
        ``first_grad_norm`` of the first layer (NaN where that was not measured).
    """
    parts = []
    for run, described in zip(runs, describe(runs, [FACTOR]), strict=True):
        measures = require(run, MEASURES, OPTION)
        layer = last_linear(measures, run)
        errors = run.metrics["test_error"].dropna()
        names = [*MEASURES, *(name for name in QUANTITIES.values() if name in measures.measures)]
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
                **{name: measures.values(name)[:, layer] for name in names},
                **{
                    name.replace("kappa", f"kappa_{end}"): ends[:, layer]
                    for name in names
                    if "kappa" in name
                    for end, ends in zip(("low", "high"), measures.interval(name), strict=True)
                },
                **_flow(measures, layer),
            })
        )
    return pd.concat(parts, ignore_index=True)


def _flow(measures: LayerMeasures, layer: int) -> dict[str, NDArray[np.float64] | float]:
    """Return how far the gradient comes: of the last linear layer, and of the first one."""
    first = measures.values("grad_norm")[:, 0] if len(measures.layers) > 1 else np.nan
    values = (first, *(measures.values(name)[:, layer] for name in ("grad_norm", "dead_fraction")))
    return dict(zip(FLOW, values, strict=True))


def differences(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare plain nets with those that have LastBN, seed by seed, at the last snapshot.

    Args:
        frame: What :func:`measure` returned.

    Returns:
        A row a condition that has both nets and quantity (log₁₀ κ_0.5, the test error, and log₁₀
        κ_0.2 and κ_0.8 where they were recorded), deepest last: the means over the seeds (medians
        where one is infinite), the difference plain − LastBN with its interval, the p-value of the
        signed ranks for its being above what the claim asks (0 where it asks nothing), the number
        of pairs, and how many nets of each kind have no finite value.
    """
    last = frame[frame["step"] == frame.groupby("run")["step"].transform("max")]
    known = {name: column for name, column in QUANTITIES.items() if column in last}
    values = {name: _values(last, column) for name, column in known.items()}
    keys, rows = ["network", "depth", "condition"], []
    for (network, depth, condition), own in last.assign(**values).groupby(keys, dropna=False):
        for quantity in known:
            found = own.pivot(index="seed", columns="last_bn", values=quantity)
            if len(found.columns) < 2:
                continue
            plain, cured = found[False], found[True]
            pairs = cured.tolist(), plain.tolist()
            difference = paired_difference(*pairs)
            ranks = signed_rank_p(pairwise(*pairs), above=THRESHOLDS.get(quantity, 0.0))
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
                "plain not finite": _num_lost(own, quantity, last_bn=False),
                "LastBN not finite": _num_lost(own, quantity, last_bn=True),
            })
    return pd.DataFrame(rows, columns=COLUMNS)


def _values(last: pd.DataFrame, column: str) -> "pd.Series[float]":
    """Return a quantity as it is compared: of κ the logarithm, a bound as what speaks against."""
    if "kappa" not in column:
        return last[column]
    # A bound is what LastBN's κ may be above, and plain's is at least.
    largest = at_most(last, column, column.replace("kappa", "kappa_high"))
    return last[column].where(~last["last_bn"].astype(bool), largest).transform(np.log10)


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
    remarks = [*unfinished(frame), *_lost(known, numbers), *reasons, *_plan(frame)]
    tables = tuple(_tables(numbers, known))
    numbers = numbers.drop(columns="network")
    return Verdict(5, STATEMENT, CRITERION, REFUTED, every(parts), numbers, tables, tuple(remarks))


def _tables(numbers: pd.DataFrame, known: pd.DataFrame) -> Iterator[ClaimTable]:
    """Yield the differences that are judged, those of other κ_p, and the gradient's way."""
    named = numbers["quantity"].isin(list(THRESHOLDS))
    for caption, chosen in (
        ("Plain − LastBN at the last snapshot; of ResNets the deepest is judged", named),
        ("Other κ_p, beside the criterion", ~named),
    ):
        rows = [
            {
                "condition": row["condition"],
                "quantity": row["quantity"],
                "plain": fixed_text(row["plain"]),
                "LastBN": fixed_text(row["LastBN"]),
                "plain − LastBN": with_interval(row["difference"], row["low"], row["high"]),
                "p by ranks, pairs": f"{fixed_text(row['p (ranks)'], 3)}, {row['pairs']}",
            }
            for row in numbers[chosen].to_dict("records")
        ]
        if rows:
            yield ClaimTable(caption, pd.DataFrame(rows))
    if set(FLOW) <= set(known) and known["first_grad_norm"].notna().any():
        yield ClaimTable(
            "The gradient's way: ‖∂L/∂W‖ of the first layer over the last's (median over seeds); "
            "dead: from a snapshot to the end all inputs of the last layer are 0, or no gradient "
            "reaches the first",
            pd.DataFrame(_flow_rows(known)),
        )


def _flow_rows(known: pd.DataFrame) -> Iterator[dict[str, object]]:
    """Yield a row a condition and net: how many learned nothing, are dead, and since when."""
    frame = known.sort_values(["network", "depth", "condition", "last_bn", "step"])
    for (_, _, condition, last_bn), own in frame.groupby(
        ["network", "depth", "condition", "last_bn"], dropna=False
    ):
        ratios = own["first_grad_norm"] / own["last_grad_norm"]
        first, last = (
            ratios[own["step"] == own.groupby("run")["step"].transform(end)].median()
            for end in ("min", "max")
        )
        since = [_dead_since(run) for _, run in own.groupby("run")]
        dead = [step for step in since if step is not None]
        last_rows = own.groupby("run").last()
        at_chance = int((last_rows["test_error"] >= AT_CHANCE * last_rows["chance"]).sum())
        yield {
            "condition": condition,
            "net": "LastBN" if last_bn else "plain",
            "at chance": f"{at_chance} of {len(since)}",
            "dead, since step": f"{len(dead)}: {', '.join(map(str, dead))}" if dead else "0",
            "first / last, at the start": f"{first:.2g}",
            "at the end": f"{last:.2g}",
        }


def _dead_since(run: pd.DataFrame) -> int | None:
    """Return the snapshot from which on a net is dead; None where it lives at the end."""
    dead = (run["dead_fraction"] == 1) | (run["first_grad_norm"] == 0)
    alive = run.loc[~dead, "step"]
    later = run.loc[run["step"] > (alive.max() if len(alive) else -1), "step"]
    return int(later.min()) if len(later) else None


def _plan(frame: pd.DataFrame) -> Iterator[str]:
    # How many seeds the test error takes, by the runs that chose the settings.
    choosing = frame[frame["seed"].isin(CHOOSING_SEEDS) & (frame["network"] == DECISIVE)]
    deepest = choosing[choosing["depth"] == choosing["depth"].max()].groupby("run").last()
    for condition, own in deepest.groupby("condition"):
        nets = own.groupby(["seed", "last_bn"])["test_error"].first().unstack()
        if len(nets.columns) < 2:
            continue
        found = (nets[False] - nets[True]).dropna()
        if len(found) > 1:
            mean, deviation = float(found.mean()), float(found.std(ddof=1))
            yield (
                f"{condition}: of seeds {' and '.join(map(str, found.index))}, which chose the "
                f"settings, plain − LastBN is {mean:.1f} points with a standard deviation of "
                f"{deviation:.1f}: were these the true ones, {pairs_needed(mean, deviation):g} "
                f"seeds would show it with probability {POWER}"
            )


def _decide(own: pd.DataFrame, missing: Sequence[object]) -> tuple[bool | None, str]:
    if missing:
        seeds = ", ".join(map(str, missing))
        return None, f"cannot be said, as seed {seeds} has no pair with both numbers"
    rows = own[own["quantity"].isin(list(THRESHOLDS))].to_dict("records")
    parts = {row["quantity"]: _above(row) for row in rows}
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
    for row in numbers[numbers["quantity"].isin(list(THRESHOLDS))].to_dict("records"):
        own = last[last["condition"] == row["condition"]]
        values = own[QUANTITIES[row["quantity"]]]
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
