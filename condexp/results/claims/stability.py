"""Claim 2: with BatchNorm λ_max stays bounded, whatever the initialization, lr and time."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from condexp.results.claims.conditions import CHOOSING_SEEDS, describe, judged, unfinished
from condexp.results.claims.requires import require
from condexp.results.claims.verdict import ClaimTable, Verdict, every, fixed_text
from condexp.results.config_keys import lookup
from condexp.results.tables.paired import PairedDifference, paired_difference
from condexp.store.reader import Run
from condexp.store.run_folder.status import State

MEASURE = "kfac_lambda_max"
FACTORS = ("model.norm", "model.init", "model.init_scale", "optimizer.lr")
CELL = ["condition", "init", "lr"]
PLAIN, NORMALIZED = "none", "batch"
DECADES = 2.0  # between the ranges, and the most that one may grow
NUMBERS = [
    *("condition", "seed", "cells", "step"),
    *(f"{what} {n}" for what in ("range", "finite") for n in (PLAIN, NORMALIZED)),
    *("growth batch", "growth of the largest batch"),
    *(f"{what} {n}" for what in ("halved", "diverged") for n in (PLAIN, NORMALIZED)),
]
STATEMENT = (
    "BatchNorm stabilises training: λ_max of the layers' K-FAC blocks stays bounded over "
    "initializations, learning rates and time."
)
CRITERION = (
    "in every condition, over the grid of initializations and learning rates, at the last step and "
    "among the cells that are finite there: the range of log₁₀ λ_max(kfac) of the median layer is "
    "smaller with BatchNorm by at least 2 (mean over seeds, paired); from the first snapshot to "
    "the last, with BatchNorm, neither the range nor the largest λ_max grows by 2 decades in any "
    "seed; and more cells at least halve the initial loss with BatchNorm than without (diverged "
    "cells count as not)"
)

REFUTED = (
    "in some condition a range that is not smaller with BatchNorm by 2 decades, a range or a "
    "largest λ_max that grows by 2 decades with it, or as many cells that halve the loss without it"
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
        is not finite; ``compared``: whether this is the last step of this seed, which a run that
        diverged does not have.

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
        The verdict; its numbers are a row a condition and seed. It needs two seeds and every cell
        of the grid, with and without BatchNorm, in every condition.
    """
    grid = frame[frame["norm"].isin([PLAIN, NORMALIZED]) & ~frame["seed"].isin(CHOOSING_SEEDS)]
    known = judged(grid)
    runs = cells(known)
    rows = [
        {"condition": condition, "seed": seed} | _row(own, known)
        for (condition, seed), own in runs.groupby(["condition", "seed"])
    ]
    numbers = pd.DataFrame(rows, columns=NUMBERS)
    missing = {str(name): _num_missing(own, runs) for name, own in grid.groupby("condition")}
    parts = {
        name: _parts(numbers[numbers["condition"] == name], num) for name, num in missing.items()
    }
    shown = every(part for found in parts.values() for part in found.values())
    remarks = tuple(_remarks(frame, runs, numbers, missing, parts))
    caption = "Mean (least to largest) over seeds; the range is of log₁₀ λ_max at the last step"
    tables = (ClaimTable(caption, _table(numbers)),)
    return Verdict(2, STATEMENT, CRITERION, REFUTED, shown, numbers, tables, remarks)


def _table(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return a row a condition and norm: range, growth, and what became of the cells."""
    rows = []
    for (condition, norm), own in (
        ((condition, norm), own)
        for condition, own in numbers.groupby("condition")
        for norm in (PLAIN, NORMALIZED)
    ):
        ranges, growth = own[f"range {norm}"], own["growth of the largest batch"]
        cells_of = int(own["cells"].sum())
        rows.append({
            "condition": condition,
            "norm": norm,
            "range, decades": _mean_and_ends(ranges),
            "growth of the largest": _mean_and_ends(growth) if norm == NORMALIZED else "–",
            "loss halved": f"{own[f'halved {norm}'].sum():g} of {cells_of}",
            "diverged": f"{own[f'diverged {norm}'].sum():g} of {cells_of}",
        })
    return pd.DataFrame(rows)


def _mean_and_ends(values: "pd.Series[float]") -> str:
    known = values.dropna()
    if not len(known):
        return "–"
    mean, low, high = map(fixed_text, (known.mean(), known.min(), known.max()))
    return f"{mean} ({low} to {high})"


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Say of each run where it stood at the last step, and what became of its loss.

    Args:
        frame: What `measure` returned, or some of its rows.

    Returns:
        One row a run: the columns of `measure`, of them ``step`` and ``log10_lambda_max`` at the
        last step, NaN where it has no finite one; and ``halved``, ``diverged``.
    """
    finite = frame["compared"] & np.isfinite(frame["log10_lambda_max"])
    at = frame[["step", "log10_lambda_max"]].where(finite)
    runs = frame.assign(**at).groupby("run", sort=False).first().reset_index()
    return runs.assign(
        halved=runs["last_loss"] <= runs["first_loss"] / 2,
        diverged=runs["state"] == State.DIVERGED,
    )


def spread(values: "pd.Series[float]") -> float:
    """Measure the range of the cells that are finite.

    Args:
        values: log₁₀ λ_max of each cell.

    Returns:
        The largest minus the smallest; NaN where there are fewer than two.
    """
    finite = values[np.isfinite(values)]
    return float(finite.max() - finite.min()) if len(finite) > 1 else np.nan


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
    """Return which rows are at the last step of their seed: that of the runs that go to the end."""
    lasts = frame.groupby(["seed", "run"])["step"].max()
    # Runs of one seed may have schedules of their own: the last step that all of them can have.
    reached = {seed: of_seed.max() for seed, of_seed in lasts.groupby("seed")}
    complete = frame[frame["state"] == State.COMPLETE]
    for seed, of_seed in complete.groupby("seed"):
        counts = of_seed.groupby("step")["run"].nunique()
        common = counts.index[counts == of_seed["run"].nunique()]
        reached[seed] = common.max() if len(common) else np.nan
    return frame["step"] == frame["seed"].map(reached)


def _row(runs: pd.DataFrame, frame: pd.DataFrame) -> dict[str, object]:
    """Return the numbers of one condition and seed."""
    row: dict[str, object] = {
        "cells": len(runs[CELL].drop_duplicates()),
        "step": runs["step"].max(),
    }
    for norm, own in runs.groupby("norm"):
        row[f"range {norm}"] = spread(own["log10_lambda_max"])
        row[f"finite {norm}"] = int(own["log10_lambda_max"].notna().sum())
        row[f"halved {norm}"] = own["halved"].sum()
        row[f"diverged {norm}"] = own["diverged"].sum()
    normalized = runs[runs["norm"] == NORMALIZED]
    own = frame[frame["run"].isin(normalized["run"])]
    first = own.loc[own["step"] == own["step"].min(), "log10_lambda_max"]
    last = normalized["log10_lambda_max"]
    if len(normalized):
        row["growth batch"] = spread(last) - spread(first)
        row["growth of the largest batch"] = last.max() - first.max()
    return row


def _num_missing(grid: pd.DataFrame, runs: pd.DataFrame) -> int:
    """Return how many runs of one condition's grid have not ended, or were not made."""
    num_cells = len(grid[CELL].drop_duplicates())
    condition = grid["condition"].iloc[0]
    return num_cells * grid["seed"].nunique() * 2 - int((runs["condition"] == condition).sum())


def _parts(numbers: pd.DataFrame, num_missing: int) -> dict[str, bool | None]:
    """Return of each part of the criterion whether it holds in one condition."""
    difference = _difference(numbers)
    growth = numbers[["growth batch", "growth of the largest batch"]].to_numpy(dtype=float)
    more = numbers["halved batch"].sum() > numbers["halved none"].sum()
    whole = len(numbers) > 1 and difference.num == len(numbers)
    parts: dict[str, bool | None] = {
        "a range smaller by 2 decades": bool(difference.mean >= DECADES) if whole else None,
        "growth below 2 decades": None
        if np.isnan(growth).any()
        else bool((growth < DECADES).all()),
        "more cells that halve the loss": bool(more),
    }
    sufficient = len(numbers) > 1 and numbers["cells"].min() > 1 and not num_missing
    return parts if sufficient else dict.fromkeys(parts)


def _difference(numbers: pd.DataFrame) -> PairedDifference:
    return paired_difference(*(numbers[f"range {n}"].tolist() for n in (NORMALIZED, PLAIN)))


def _remarks(
    frame: pd.DataFrame,
    runs: pd.DataFrame,
    numbers: pd.DataFrame,
    missing: Mapping[str, int],
    parts: Mapping[str, Mapping[str, bool | None]],
) -> Iterator[str]:
    yield from unfinished(frame)
    for name, num in missing.items():
        own, held = numbers[numbers["condition"] == name], parts[name]
        if num:
            yield f"{name}: {num} runs of the grid are missing or have not ended"
        if len(own) < 2:
            yield f"{name}: seeds that compare the two norms: {len(own)}, where two are needed"
        elif own["cells"].min() < 2:
            yield f"{name}: one initialization and learning rate alone have no range"
        elif not num and None in held.values():
            yield f"{name}: too few cells are finite at the last step to compare their range"
        if failed := [part for part, value in held.items() if value is False]:
            yield f"{name}: not met: {', '.join(failed)}"
        found = _difference(own)
        if found.num:
            yield (
                f"{name}: the range is smaller with BatchNorm by {found.mean:.2f} decades "
                f"(95 % interval {found.low:.2f} to {found.high:.2f}, n = {found.num})"
            )
            yield from _without_extreme(name, runs[runs["condition"] == name])


def _without_extreme(name: str, runs: pd.DataFrame) -> Iterator[str]:
    # The initialization that widens the plain nets' range most is left out.
    means = {}
    for init in runs["init"].unique():
        rest = runs[runs["init"] != init].groupby(["norm", "seed"])["log10_lambda_max"].agg(spread)
        of_norm = rest.groupby("norm").mean()
        means[str(init)] = of_norm.get(PLAIN, np.nan), of_norm.get(NORMALIZED, np.nan)
    known = {init: pair for init, pair in means.items() if not np.isnan(pair).any()}
    if known:
        init = min(known, key=lambda each: known[each][0])
        plain, normalized = known[init]
        yield (
            f"{name}: without init={init}, which widens the plain nets' range most, it is "
            f"{plain:.2f} decades and {normalized:.2f} with BatchNorm"
        )
