"""Claim 1 from stored runs, and its verdict on planted numbers."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from condexp.errors import InputError
from condexp.results.claims.validation import correlations, judge, measure
from condexp.store.reader import open_run
from tests.results.stored import WITH_BLOCKS, write_run


def planted(
    noise: float = 0.0,
    kappa_noise: float = 0.0,
    *,
    seeds: Sequence[int] = (1, 2),
    full: bool = True,
    power: float = 1.0,
    scale: float = 0.5,
) -> pd.DataFrame:
    """Twelve points a seed: kfac's λ_max is half of fisher's, a factor 10^±noise off in turn."""
    parts = []
    for seed in seeds:
        truth = np.arange(12.0) / 4
        off = np.tile([1.0, -1.0], 6)
        parts.append(
            pd.DataFrame({
                "run": f"run{seed}",
                "condition": "mlp on digits",
                "seed": seed,
                "state": "complete",
                "step": np.repeat([0, 1, 2], 4),
                "layer": ["a", "b", "c", "d"] * 3,
                "full_rows": full,
                "kfac_lambda_max": scale * 10 ** (power * truth + noise * off),
                "kfac_kappa_0.5": 10 ** (power * truth + kappa_noise * off),
                "fisher_lambda_max": 10**truth,
                "fisher_kappa_0.5": 10**truth,
            })
        )
    return pd.concat(parts, ignore_index=True)


def rows_of(numbers: pd.DataFrame, snapshots: str = "all") -> list[dict[Any, Any]]:
    """The rows of one condition, of λ_max first."""
    return numbers[numbers["snapshots"] == snapshots].to_dict("records")


def test_shown_where_the_points_lie_on_a_line() -> None:
    verdict = judge(planted())
    assert (verdict.claim, verdict.shown, verdict.answer) == (1, True, "shown")
    size, kappa = rows_of(verdict.numbers)
    assert (size["measure"], kappa["measure"]) == ("λ_max", "κ_0.5")
    assert [size[name] for name in ("r", "ratio", "slope")] == pytest.approx([1, 2, 1])
    assert (size["seeds"], size["points"], kappa["points"]) == (2, 24, 24)


@pytest.mark.parametrize("noise", [(1.0, 0.0), (0.0, 1.0)])
def test_not_shown_where_either_correlation_is_too_small(noise: tuple[float, float]) -> None:
    # Var(truth) = 143/12/16 = 0.745, and a shift of ±1 has variance 1: r is about 0.65.
    verdict = judge(planted(*noise))
    assert (verdict.shown, verdict.answer) == (False, "not shown at this size")
    assert 0.5 < min(row["r"] for row in rows_of(verdict.numbers)) < 0.75
    (remark,) = [each for each in verdict.remarks if "out of bounds" in each]
    assert "in a, " in remark
    assert remark.startswith("mlp on digits: out of bounds: r of ")


def test_one_condition_is_enough_to_refute() -> None:
    bad = planted(noise=1.0)
    bad = bad.assign(condition="other", run="other " + bad["run"])
    assert judge(pd.concat([planted(), bad])).shown is False


def test_nothing_is_said_of_one_seed_or_of_too_few_gradients() -> None:
    verdict = judge(planted(seeds=[1]))
    assert (verdict.shown, verdict.answer) == (None, "cannot be said")
    assert "fewer than two seeds: mlp on digits" in verdict.remarks
    verdict = judge(planted(full=False))
    assert verdict.shown is None
    assert math.isnan(rows_of(verdict.numbers)[1]["r"])
    assert any("more weights than gradients" in remark for remark in verdict.remarks)


@pytest.mark.parametrize(
    "changes", [{"power": 0.2}, {"power": 5.0}, {"scale": 0.3}, {"scale": 3.1}], ids=str
)
def test_alike_in_shape_is_not_close(changes: dict[str, Any]) -> None:
    """A correlation of 1 says nothing of the size: a fifth power, or a factor above 3."""
    verdict = judge(planted(**changes))
    assert rows_of(verdict.numbers)[0]["r"] == pytest.approx(1)
    assert verdict.shown is False


def test_kappa_is_judged_as_lambda_max_is() -> None:
    frame = planted()
    frame["kfac_kappa_0.5"] = frame["fisher_kappa_0.5"] ** 0.2
    verdict = judge(frame)
    assert verdict.shown is False
    # Over twelve points from 1 to 10^2.75 the median ratio, 10^(0.8·1.375), is above 3 as well.
    assert any("out of bounds: slope of κ_0.5, ratio of κ_0.5;" in each for each in verdict.remarks)


def test_seeds_that_disagree_decide_nothing() -> None:
    parts = [planted(noise=noise, seeds=[seed]) for seed, noise in ((1, 0.0), (2, 0.2))]
    verdict = judge(pd.concat(parts))
    row = rows_of(verdict.numbers)[0]
    # Two values of Fisher's z so far apart have an interval that reaches below 0.8.
    assert row["r"] > 0.99
    assert row["r low"] < 0.8
    assert verdict.shown is None
    assert "mlp on digits: undecided: r's interval of λ_max" in verdict.remarks


def test_the_interval_is_fishers_over_seeds() -> None:
    parts = [planted(noise=n, seeds=[s]) for s, n in ((1, 0.1), (2, 0.12), (3, 0.08))]
    row = rows_of(correlations(pd.concat(parts)))[0]
    logs = [np.log10(p[["kfac_lambda_max", "fisher_lambda_max"]].to_numpy()) for p in parts]
    r = [np.corrcoef(log.T)[0, 1] for log in logs]
    interval = stats.ttest_1samp(np.arctanh(r), 0).confidence_interval(0.95)
    assert row["r low"] == pytest.approx(np.tanh(interval.low), rel=1e-12)
    assert row["r high"] == pytest.approx(np.tanh(interval.high), rel=1e-12)


def test_early_and_late_snapshots_are_told_apart() -> None:
    """Of three snapshots the first is early, the last is late; other κ_p stand beside κ_0.5."""
    frame = planted()
    late = frame["step"] == 2
    frame.loc[late, "kfac_lambda_max"] /= 10
    for matrix in ("kfac", "fisher"):
        frame[f"{matrix}_kappa_0.2"] = frame["fisher_kappa_0.5"]
    verdict = judge(frame)
    ratios = {when: rows_of(verdict.numbers, when)[0]["ratio"] for when in ("early", "late")}
    assert ratios == {"early": pytest.approx(2), "late": pytest.approx(20)}
    assert {row["measure"] for row in rows_of(verdict.numbers)} == {"λ_max", "κ_0.5", "κ_0.2"}
    criterion, beside, halves = verdict.tables
    assert criterion.rows["measure"].tolist() == ["λ_max", "κ_0.5"]
    assert beside.rows["measure"].tolist() == ["κ_0.2"]
    assert halves.rows.loc[1, "fisher / kfac, late"] == "20.00"
    assert all(len(table.rows.columns) <= 6 for table in verdict.tables)


def test_infinite_values_are_ranked_and_counted() -> None:
    frame = planted()
    top = frame["fisher_kappa_0.5"] == frame["fisher_kappa_0.5"].max()
    frame.loc[top, ["kfac_kappa_0.5", "fisher_kappa_0.5"]] = np.inf
    verdict = judge(frame)
    assert verdict.shown
    assert rows_of(verdict.numbers)[1]["points"] == 24
    assert "2 of 24 pairs of κ_0.5 are infinite: ranked as the largest" in verdict.remarks
    # Infinite with one of the two only, where the other is smallest: not alike any more.
    frame = planted()
    lowest = frame["fisher_kappa_0.5"] == 1
    frame.loc[lowest, "kfac_kappa_0.5"] = np.inf
    assert judge(frame).shown is False


def test_a_lower_bound_is_ranked_as_infinite() -> None:
    frame = planted()
    lowest = frame["fisher_kappa_0.5"] == 1
    high = frame["kfac_kappa_0.5"].mask(lowest, np.inf)
    assert judge(frame.assign(**{"kfac_kappa_high_0.5": high})).shown is False


def test_a_seed_that_another_condition_has_is_waited_for() -> None:
    other = planted(seeds=[1, 2, 3]).assign(condition="mlp on digits, model.norm=batch")
    other["run"] = "batch" + other["run"]
    frame = planted().assign(condition="mlp on digits, model.norm=none")
    verdict = judge(pd.concat([frame, other]))
    assert verdict.shown is None
    remark = "mlp on digits, model.norm=none: no run that has ended of seed 3"
    assert remark in verdict.remarks
    # Of a run that goes on, nothing can be said yet either.
    running = frame.assign(state=np.where(frame["seed"] == 2, "running", "complete"))
    assert judge(running).shown is None


def test_seeds_that_chose_the_settings_are_not_judged() -> None:
    bad = planted(noise=1.0, seeds=[101, 102])
    verdict = judge(pd.concat([planted(), bad]))
    assert verdict.shown is True
    assert set(verdict.numbers["seeds"]) == {2}
    remark = "2 of 4 runs are of seeds 101 and 102, which choose settings: not judged"
    assert remark in verdict.remarks
    assert judge(planted(seeds=[101, 102])).shown is None


def test_the_stored_numbers(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / f"{norm}{seed}", matrices=WITH_BLOCKS, seed=seed, model__norm=norm)
        for norm in ("none", "batch")
        for seed in (1, 2)
    ]
    runs = [open_run(folder) for folder in folders]
    frame = measure(runs)
    assert frame["condition"].unique().tolist() == [
        "mlp on digits, norm=none",
        "mlp on digits, norm=batch",
    ]
    stored = runs[0].measures()
    own = frame[frame["run"] == str(folders[0])]
    for name in ("kfac_lambda_max", "fisher_lambda_max"):
        for layer in ("conv", "fc"):
            expected = stored[name].sel(layer=layer).to_numpy()
            values = own.loc[own["layer"] == layer, name]
            np.testing.assert_array_equal(values.to_numpy(), expected)
    # 16·2^-step; beside it the layers' largest: fc's (2^(3-step))². The dead layer hides nothing.
    network = own[own["layer"] == "network"]
    np.testing.assert_array_equal(network["fisher_lambda_max"], [16, 8, 4, 0.5])
    np.testing.assert_array_equal(network["kfac_lambda_max"], [64, 16, 4, 1 / 16])
    # Four samples' gradients are fewer than the 12 weights of fc.
    assert not frame["full_rows"].any()
    found = correlations(frame)
    of_all = found[(found["snapshots"] == "all") & (found["measure"] == "λ_max")]
    assert of_all["points"].tolist() == [24, 24]


def test_runs_that_lack_fisher_are_refused(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "run"))
    with pytest.raises(InputError, match=r"fisher_lambda_max.*analysis=fisher"):
        measure([run])


def test_the_same_experiment_twice_is_refused(tmp_path: Path) -> None:
    runs = [open_run(write_run(tmp_path / n, matrices=WITH_BLOCKS)) for n in ("a", "b")]
    with pytest.raises(InputError, match="the same experiment"):
        measure(runs)
