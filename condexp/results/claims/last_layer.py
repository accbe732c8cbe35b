"""Claim 5: a very deep ResNet's last linear layer is ill-conditioned; one BatchNorm cures it."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from condexp.errors import InputError
from condexp.results.claims.conditions import describe, unfinished
from condexp.results.claims.requires import require
from condexp.results.claims.verdict import Verdict
from condexp.results.config_keys import lookup
from condexp.results.layer_measures import LayerMeasures
from condexp.results.tables.differences import paired_difference
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
    *("difference", "low", "high", "pairs", "plain not finite", "LastBN not finite"),
)
STATEMENT = (
    "A very deep ResNet's last linear layer is ill-conditioned; one BatchNorm before it cures that "
    "and lowers the test error."
)
CRITERION = (
    "for the deepest ResNet, plain minus LastBN, paired over seeds: the difference of log₁₀ "
    "κ_0.5(input) of the last linear layer at the last snapshot is at least 0.5, that of the test "
    "error above 0, and the 95 % t-intervals exclude those values"
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
        ``depth``, ``last_bn``, ``test_error`` (final, percent), ``layer``, ``step``, and λ_max and
        κ_0.5 of ``input`` and ``grad_output``, called as in `LayerMeasures`.
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
                "layer": measures.layers[layer],
                "step": measures.steps,
                **{name: measures.values(name)[:, layer] for name in MEASURES},
            })
        )
    return pd.concat(parts, ignore_index=True)


def differences(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare plain nets with those that have LastBN, seed by seed, at the last snapshot.

    Args:
        frame: What :func:`measure` returned.

    Returns:
        Two rows a condition that has both nets, for log₁₀ κ_0.5 and for the test error, deepest
        last: the means over the seeds that have a number, the difference plain − LastBN with its
        interval and the number of pairs, and how many nets of each kind have no finite value.
    """
    last = frame[frame["step"] == frame.groupby("run")["step"].transform("max")]
    last = last.assign(log_kappa=last["input_kappa_0.5"].transform(np.log10))
    keys, rows = ["network", "depth", "condition"], []
    for (network, depth, condition), own in last.groupby(keys, dropna=False):
        for column, quantity in QUANTITIES.items():
            found = own.pivot(index="seed", columns="last_bn", values=column)
            if len(found.columns) < 2:
                continue
            plain, cured = found[False], found[True]
            difference = paired_difference(cured.tolist(), plain.tolist())
            rows.append({
                "condition": condition,
                "network": network,
                "depth": depth,
                "quantity": quantity,
                "plain": plain[np.isfinite(plain)].mean(),
                "LastBN": cured[np.isfinite(cured)].mean(),
                "difference": difference.mean,
                "low": difference.low,
                "high": difference.high,
                "pairs": difference.num,
                "plain not finite": _num_lost(own, column, last_bn=False),
                "LastBN not finite": _num_lost(own, column, last_bn=True),
            })
    return pd.DataFrame(rows, columns=COLUMNS)


def judge(frame: pd.DataFrame) -> Verdict:
    """Say whether LastBN cures the deepest ResNet.

    Where the deepest plain nets are dead, their κ is infinite and has no difference: a shallower
    ResNet may then show the claim, but not refute it.

    Args:
        frame: What :func:`measure` returned.

    Returns:
        The verdict: it needs two pairs of ResNets of one depth whose κ is finite.
    """
    numbers = differences(frame)
    shown, reasons = _decide(numbers[numbers["network"] == DECISIVE])
    remarks = [*unfinished(frame), *_lost(numbers), *reasons]
    return Verdict(5, STATEMENT, CRITERION, shown, numbers.drop(columns="network"), tuple(remarks))


def _decide(numbers: pd.DataFrame) -> tuple[bool | None, list[str]]:
    reasons = []
    for depth, own in sorted(numbers.groupby("depth"), reverse=True):
        if own["low"].isna().any():
            reasons.append(f"depth {depth} cannot decide: fewer than two pairs with finite values")
            continue
        above = own["low"] > own["quantity"].map(THRESHOLDS)
        shown = bool(above.all())
        failed = own.loc[~above, "quantity"].unique()
        verb = "shows the claim" if shown else f"does not show it: {' and '.join(failed)}"
        if reasons and not shown:
            reasons.append(f"depth {depth} {verb}, which says nothing of the deeper nets")
            return None, reasons
        return shown, [*reasons, f"depth {depth} decides, and {verb}"]
    return None, reasons or [f"no pair of a {DECISIVE} with and without model.last_bn"]


def _num_lost(own: pd.DataFrame, column: str, *, last_bn: bool) -> int:
    return int((~np.isfinite(own.loc[own["last_bn"] == last_bn, column])).sum())


def _lost(numbers: pd.DataFrame) -> Iterator[str]:
    for row in numbers.to_dict("records"):
        lost = {net: row[f"{net} not finite"] for net in ("plain", "LastBN")}
        if any(lost.values()):
            nets = " and ".join(f"{num} {net}" for net, num in lost.items() if num)
            yield (
                f"{row['condition']}: {nets} net(s) have no finite {row['quantity']} (dead or "
                "diverged), and their pairs are left out of its difference"
            )
