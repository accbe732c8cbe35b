"""Claim 2: with BatchNorm λ_max stays bounded, whatever the initialization, lr and time."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from condexp.results.claims.conditions import describe, unfinished
from condexp.results.claims.requires import require
from condexp.results.claims.verdict import Verdict
from condexp.results.config_keys import lookup
from condexp.results.tables.differences import PairedDifference, paired_difference
from condexp.store.reader import Run
from condexp.store.run_folder.status import State

MEASURE = "kfac_lambda_max"
FACTORS = ("model.norm", "model.init", "model.init_scale", "optimizer.lr")
CELL = ["condition", "init", "lr"]
PLAIN, NORMALIZED = "none", "batch"
DECADES = 2.0
NUMBERS = [
    *("seed", "cells", "step"),
    *(f"{what} {n}" for what in ("range", "halved", "diverged") for n in (PLAIN, NORMALIZED)),
]
STATEMENT = (
    "BatchNorm stabilises training: λ_max of the layers' K-FAC blocks stays bounded over "
    "initializations, learning rates and time."
)
CRITERION = (
    "over the grid of initializations and learning rates, the range of log₁₀ λ_max(kfac) of the "
    "median layer at the last common step is smaller with BatchNorm by at least 2 (mean over "
    "seeds, paired), and more cells at least halve the initial loss with BatchNorm than without "
    "(diverged cells count as not)"
)


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Read λ_max(Σ_x ⊗ Σ_∇h) of the median layer over training, and what became of the loss.

    Args:
        runs: A grid over ``model.norm``, ``model.init``, ``model.init_scale``, ``optimizer.lr`` and
            seeds.

    Returns:
        One row a run and snapshot, sorted: ``norm``, ``condition``, ``init`` (with its scale),
        ``lr``, ``seed``, ``run``, ``state``; ``first_loss`` of the first batch, ``last_loss`` the
        mean over the batches of the last epoch (NaN where the run diverged); ``step``;
        ``log10_lambda_max`` of the median layer, -inf where that is zero and NaN where a layer's
        is not finite; ``compared``: whether this is the last step at which every run of this seed
        has a finite one.

    Raises:
        InputError: If a run did not record it.
    """
    parts = []
    for run, described in zip(runs, describe(runs, FACTORS), strict=True):
        layers = require(run, [MEASURE], "analysis=factors")
        with np.errstate(divide="ignore"):
            median = np.log10(np.median(layers.values(MEASURE), axis=1))
        parts.append(
            pd.DataFrame({
                "norm": str(lookup(run.config, "model.norm")),
                "init": _init(run),
                "lr": float(lookup(run.config, "optimizer.lr")),
                **described,
                "run": run.path.name,
                **_losses(run),
                "step": layers.steps,
                "log10_lambda_max": median,
            })
        )
    frame = pd.concat(parts, ignore_index=True)
    frame = frame.sort_values(["norm", *CELL, "seed", "step"], ignore_index=True)
    return frame.assign(compared=_compared(frame))


def judge(frame: pd.DataFrame) -> Verdict:
    """Compare the range over initializations and learning rates with and without BatchNorm.

    Args:
        frame: What `measure` returned.

    Returns:
        The verdict; its numbers are a row a seed, of the cells that were run with both.
    """
    runs = cells(frame[frame["norm"].isin([PLAIN, NORMALIZED])])
    twice = runs[runs.groupby([*CELL, "seed"])["norm"].transform("nunique") == 2]
    rows = [_row(seed, of_seed) for seed, of_seed in twice.groupby("seed")]
    numbers = pd.DataFrame(rows, columns=NUMBERS)
    difference = paired_difference(*(numbers[f"range {n}"].tolist() for n in (NORMALIZED, PLAIN)))
    shown = None
    if difference.num > 1 and numbers["cells"].min() > 1:
        more = numbers["halved batch"].sum() > numbers["halved none"].sum()
        shown = bool(difference.mean >= DECADES and more)
    remarks = tuple(_remarks(frame, numbers, difference, len(runs) - len(twice)))
    return Verdict(2, STATEMENT, CRITERION, shown, numbers, remarks)


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Say of each run where it stood at the last common step, and what became of its loss.

    Args:
        frame: What `measure` returned, or some of its rows.

    Returns:
        One row a run: the columns of `measure`, of them ``step`` and ``log10_lambda_max`` at the
        last common step, NaN where there is none; and ``halved``, ``diverged``.
    """
    at = frame[["step", "log10_lambda_max"]].where(frame["compared"])
    runs = frame.assign(**at).groupby("run", sort=False).first().reset_index()
    return runs.assign(
        halved=runs["last_loss"] <= runs["first_loss"] / 2,
        diverged=runs["state"] == State.DIVERGED,
    )


def _init(run: Run) -> str:
    name, scale = (lookup(run.config, f"model.{key}") for key in ("init", "init_scale"))
    return str(name) if scale in {None, 1} else f"{name} × {scale:g}"


def _losses(run: Run) -> dict[str, float]:
    losses = run.metrics.dropna(subset="lr")["loss"].to_numpy()
    if not len(losses):  # it has only just begun
        return {"first_loss": np.nan, "last_loss": np.nan}
    num = int(run.attrs["steps_per_epoch"])
    return {"first_loss": float(losses[0]), "last_loss": float(losses[-num:].mean())}


def _compared(frame: pd.DataFrame) -> "pd.Series[bool]":
    # A run that diverged, or whose gradients are all zero, has no number to compare any more.
    finite = frame[np.isfinite(frame["log10_lambda_max"])]
    found = pd.Series(data=False, index=frame.index)
    for seed, of_seed in finite.groupby("seed"):
        num_runs = frame.loc[frame["seed"] == seed, "run"].nunique()
        counts = of_seed.groupby("step")["run"].nunique()
        common = counts.index[counts == num_runs]
        if len(common):
            found |= (frame["seed"] == seed) & (frame["step"] == common.max())
    return found


def _row(seed: object, runs: pd.DataFrame) -> dict[str, object]:
    row = {"seed": seed, "cells": len(runs) // 2, "step": runs["step"].max()}
    for norm, own in runs.groupby("norm"):
        row[f"range {norm}"] = np.ptp(own["log10_lambda_max"].to_numpy())
        row[f"halved {norm}"] = own["halved"].sum()
        row[f"diverged {norm}"] = own["diverged"].sum()
    return row


def _remarks(
    frame: pd.DataFrame, numbers: pd.DataFrame, difference: PairedDifference, alone: int
) -> Iterator[str]:
    yield from unfinished(frame)
    if alone:
        yield f"runs left out for want of a partner with the other norm: {alone}"
    if difference.num < 2:
        yield f"seeds that compare the two norms: {difference.num}, where two are needed"
    elif numbers["cells"].min() < 2:
        yield "one initialization and learning rate alone have no range"
    if difference.num:
        yield (
            f"the range is smaller with BatchNorm by {difference.mean:.2f} decades "
            f"(95 % interval {difference.low:.2f} to {difference.high:.2f}, n = {difference.num})"
        )
    last = frame["step"].max()
    steps = frame["step"].where(frame["compared"]).groupby(frame["seed"]).max()
    for seed, step in steps[steps != last].items():
        if np.isnan(step):
            yield f"seed {seed}: no step has a finite λ_max in all runs"
        else:
            yield f"seed {seed}: past step {step:.0f} of {last}, not all runs have a finite λ_max"
