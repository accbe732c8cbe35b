"""Claim 3: BatchNorm can give the false impression of a local minimum: weight domination."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from condexp.results.claims.conditions import CHOOSING_SEEDS, describe, judged, unfinished
from condexp.results.claims.requires import require
from condexp.results.claims.verdict import ClaimTable, Verdict, every, fixed_text, with_interval
from condexp.results.config_keys import lookup
from condexp.results.tables.paired import PairedDifference, paired_difference
from condexp.store.reader import Run

FACTOR, RELEASE = "trainer.rescale.factor", "trainer.rescale.release_epoch"
MEASURES = ("domination", "effective_lr")
OPTION = "analysis=factors"
FACTORS = (10.0, 100.0)  # each of them has to show it
PLATEAU, DOMINATED_POWER, RECOVERED = 5.0, 1.5, 3.0
MOMENTS = ("loss", "domination", "last loss")
COLUMNS = [
    *("condition", "factor", "pairs", "loss ratio", "loss low", "loss high"),
    *("domination ratio", "loss ratio after release", "after low", "after high", "shown"),
]
STATEMENT = (
    "BatchNorm can give the false impression of a local minimum: large weights dominate their "
    "gradients, and the loss stays where it is although the function could be learned."
)
CRITERION = (
    "hidden weights × α, function unchanged, for α = 10 and for α = 100, in every condition: after "
    "the same steps the loss is at least 5 × the unscaled net's, the median domination below "
    "1/α^1.5 of its; once the weights are divided by α again, the loss comes within 3 × the "
    "unscaled net's in a third of the steps, the upper end of the 95 % interval included "
    "(geometric means over seeds, paired)"
)

REFUTED = (
    "for α = 10 or α = 100, in some condition, a loss below 5 × the unscaled net's, a domination "
    "of 1/α^1.5 of its or more, or a loss that is still more than 3 × its after the release"
)


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Read loss, domination and effective learning rate over training.

    Args:
        runs: Runs over ``trainer.rescale.factor``, 1 among its values, and seeds.

    Returns:
        One row a run and step that has an evaluation or a snapshot, sorted: ``factor``,
        ``condition``, ``seed``, ``run``, ``state``; ``release``, the step at which the weights are
        divided by the factor again (NaN: never); ``step``; ``train_loss`` after that many updates;
        ``domination`` and ``effective_lr``, medians over the hidden layers. NaN where a step lacks
        the one or the other.

    Raises:
        InputError: If a run did not record it.
    """
    parts = []
    for run, described in zip(runs, describe(runs, [FACTOR, RELEASE]), strict=True):
        layers = require(run, MEASURES, OPTION)
        linear = np.flatnonzero(layers.arrays["type"] == "Linear")
        hidden = [i for i in range(len(layers.layers)) if i not in linear[-1:]]
        medians = pd.DataFrame(
            {name: np.median(layers.values(name)[:, hidden], axis=1) for name in MEASURES},
            index=layers.steps,
        )
        table = run.metrics[["train_loss"]].dropna().join(medians, how="outer")
        head = {
            "factor": float(lookup(run.config, FACTOR) or 1),
            **described,
            "run": run.path.name,
            "release": _release(run),
        }
        parts.append(pd.DataFrame(head, index=table.index).join(table).rename_axis("step"))
    frame = pd.concat(parts).reset_index()
    columns = [*frame.columns.drop(["step", "train_loss", *MEASURES]), "step", "train_loss"]
    frame = frame[[*columns, *MEASURES]]
    return frame.sort_values(["factor", "condition", "seed", "step"], ignore_index=True)


def judge(frame: pd.DataFrame) -> Verdict:
    """Compare scaled nets with unscaled ones at the release and a third of the steps later.

    Args:
        frame: What `measure` returned.

    Returns:
        The verdict; its numbers are a row a condition and factor, ratios to the unscaled net. It
        needs both factors, and a pair of every seed of the condition.
    """
    grid = frame[~frame["seed"].isin(CHOOSING_SEEDS)]
    pairs = _pairs(judged(grid))
    rows = []
    for condition, own in grid.groupby("condition"):
        seeds = own["seed"].nunique()
        factors = {*FACTORS, *own["factor"].unique()} - {1.0}
        for factor in sorted(factors):
            found = pairs[(pairs["condition"] == condition) & (pairs["factor"] == factor)]
            rows.append({"condition": condition, "factor": factor} | _compare(found, factor, seeds))
    numbers = pd.DataFrame(rows, columns=COLUMNS)
    decisive = numbers[numbers["factor"].isin(FACTORS)]
    remarks = tuple(_remarks(frame, pairs, decisive))
    shown = every(decisive["shown"].tolist())
    caption = "Ratios to the unscaled net: geometric means over seeds"
    tables = (ClaimTable(caption, _table(numbers)),)
    return Verdict(3, STATEMENT, CRITERION, REFUTED, shown, numbers, tables, remarks)


def _table(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return a row a condition and factor, each ratio beside what the claim asks of it."""
    rows = [
        {
            "condition": row["condition"],
            "α": f"{row['factor']:g}",
            "pairs": row["pairs"],
            "loss (≥ 5)": with_interval(row["loss ratio"], row["loss low"], row["loss high"]),
            "domination (below)": f"{fixed_text(row['domination ratio'], 5)} "
            f"({row['factor'] ** -DOMINATED_POWER:.5f})",
            "loss after the release (≤ 3)": with_interval(
                row["loss ratio after release"], row["after low"], row["after high"]
            ),
        }
        for row in numbers.to_dict("records")
    ]
    return pd.DataFrame(rows)


def _release(run: Run) -> float:
    epoch = lookup(run.config, RELEASE)
    return math.nan if epoch is None else float(epoch * int(run.attrs["steps_per_epoch"]))


def _pairs(frame: pd.DataFrame) -> pd.DataFrame:
    # A row for each scaled run, beside the unscaled one of its seed.
    runs = dict(iter(frame.groupby(["condition", "factor", "seed"])))
    rows = []
    for (condition, factor, seed), scaled in runs.items():
        unscaled = runs.get((condition, 1.0, seed))
        if factor != 1 and unscaled is not None:
            release = float(scaled["release"].iloc[0])
            row = {"condition": condition, "factor": factor, "seed": seed}
            row |= {f"scaled {name}": x for name, x in _moments(scaled, release).items()}
            row |= {f"unscaled {name}": x for name, x in _moments(unscaled, release).items()}
            rows.append(row)
    names = [f"{net} {name}" for net in ("scaled", "unscaled") for name in MOMENTS]
    return pd.DataFrame(rows, columns=["condition", "factor", "seed", *names])


def _moments(run: pd.DataFrame, release: float) -> dict[str, float]:
    # A snapshot at the release itself sees the weights after it.
    losses = run.dropna(subset="train_loss").set_index("step")["train_loss"]
    before = run.loc[run["step"] < release, "domination"].dropna()
    after = losses[(losses.index > release) & (losses.index <= release * 4 / 3)]
    values = (
        float(losses.get(release, math.nan)),
        float(before.iloc[-1]) if len(before) else math.nan,
        float(after.iloc[-1]) if len(after) else math.nan,
    )
    return dict(zip(MOMENTS, values, strict=True))


def _compare(pairs: pd.DataFrame, factor: float, num_seeds: int) -> dict[str, object]:
    loss, domination, last = (_ratio(pairs, name) for name in MOMENTS)
    recovered = bool(last.mean <= RECOVERED)
    parts = (
        bool(loss.mean >= PLATEAU),
        bool(domination.mean < factor**-DOMINATED_POWER),
        recovered and (last.high <= RECOVERED or None),
    )
    # A pair that is missing, or has no finite number, leaves it open.
    enough = min(ratio.num for ratio in (loss, domination, last)) == num_seeds > 1
    return {
        "pairs": loss.num,
        "loss ratio": loss.mean,
        "loss low": loss.low,
        "loss high": loss.high,
        "domination ratio": domination.mean,
        "loss ratio after release": last.mean,
        "after low": last.low,
        "after high": last.high,
        "shown": every(parts) if enough else None,
    }


def _ratio(pairs: pd.DataFrame, name: str) -> PairedDifference:
    # Geometric mean over seeds of scaled / unscaled, and its interval; of finite losses alone.
    values = pairs[[f"{net} {name}" for net in ("unscaled", "scaled")]].to_numpy(dtype=float)
    logarithms = np.log(values[np.isfinite(values).all(axis=1) & (values > 0).all(axis=1)])
    found = paired_difference(logarithms[:, 0].tolist(), logarithms[:, 1].tolist())
    mean, low, high = np.exp([found.mean, found.low, found.high]).tolist()
    return PairedDifference(found.num, mean, low, high)


def _remarks(frame: pd.DataFrame, pairs: pd.DataFrame, decisive: pd.DataFrame) -> Iterator[str]:
    yield from unfinished(frame)
    if not len(pairs):
        yield f"no run with {FACTOR} other than 1 has a partner with factor 1"
        return
    if frame.loc[frame["factor"] != 1, "release"].isna().any():
        yield f"runs without {RELEASE} do not say what dividing back would do"
    lost = int((~np.isfinite(pairs.select_dtypes(float))).any(axis=1).sum())
    if lost:
        yield f"{lost} of {len(pairs)} pairs lack a finite loss or domination at one of the steps"
    for row in decisive.to_dict("records"):
        if row["shown"] is None:
            where = f"{row['condition']}, α = {row['factor']:g}"
            seeds = frame.loc[frame["condition"] == row["condition"], "seed"].nunique()
            few = row["pairs"] < max(2, seeds)
            yield f"{where}: " + (
                f"{row['pairs']} pairs of {seeds} seeds, of which it needs each and two at least"
                if few
                else "the interval of the loss after the release does not decide"
            )
