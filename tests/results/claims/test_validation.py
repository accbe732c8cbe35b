"""Claim 1 from stored runs, and its verdict on planted numbers."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from condexp.analysis.vocabulary import Matrix
from condexp.errors import InputError
from condexp.results.claims.validation import correlations, judge, measure
from condexp.store.reader import open_run
from tests.results.stored import write_run


def planted(
    noise: float = 0.0, kappa_noise: float = 0.0, *, seeds: int = 2, full: bool = True
) -> pd.DataFrame:
    """Twelve points a seed: kfac's λ_max is half of fisher's, a factor 10^±noise off in turn."""
    parts = []
    for seed in range(seeds):
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
                "kfac_lambda_max": 0.5 * 10 ** (truth + noise * off),
                "kfac_kappa_0.5": 10 ** (truth + kappa_noise * off),
                "fisher_lambda_max": 10**truth,
                "fisher_kappa_0.5": 10**truth,
            })
        )
    return pd.concat(parts, ignore_index=True)


def test_shown_where_the_points_lie_on_a_line() -> None:
    verdict = judge(planted())
    assert (verdict.claim, verdict.shown, verdict.answer) == (1, True, "shown")
    (row,) = verdict.numbers.to_dict("records")
    assert row["r of log λ_max"] == pytest.approx(1)
    assert row["median λ_max ratio fisher / kfac"] == pytest.approx(2)
    assert (row["seeds"], row["points of λ_max"], row["points of κ_0.5"]) == (2, 24, 24)


@pytest.mark.parametrize("noise", [(1.0, 0.0), (0.0, 1.0)])
def test_not_shown_where_either_correlation_is_too_small(noise: tuple[float, float]) -> None:
    # Var(truth) = 143/12/16 = 0.745, and a shift of ±1 has variance 1: r is about 0.65.
    verdict = judge(planted(*noise))
    assert (verdict.shown, verdict.answer) == (False, "not shown at this size")
    means = verdict.numbers[["r of log λ_max", "r of log κ_0.5"]].to_numpy()
    assert 0.5 < means.min() < 0.75
    (remark,) = [each for each in verdict.remarks if "below 0.9" in each]
    assert "in a, " in remark
    assert remark.startswith("mlp on digits: a correlation")


def test_one_condition_is_enough_to_refute() -> None:
    bad = planted(noise=1.0, seeds=2)
    bad = bad.assign(condition="other", run="other " + bad["run"])
    assert judge(pd.concat([planted(), bad])).shown is False


def test_nothing_is_said_of_one_seed_or_of_too_few_gradients() -> None:
    verdict = judge(planted(seeds=1))
    assert (verdict.shown, verdict.answer) == (None, "cannot be said")
    assert "fewer than two seeds: mlp on digits" in verdict.remarks
    verdict = judge(planted(full=False))
    assert verdict.shown is None
    assert math.isnan(verdict.numbers["r of log κ_0.5"][0])
    assert any("more weights than gradients" in remark for remark in verdict.remarks)


def test_infinite_values_are_left_out_and_counted() -> None:
    frame = planted()
    frame.loc[0, "kfac_kappa_0.5"] = np.inf
    verdict = judge(frame)
    assert verdict.shown
    assert verdict.numbers["points of κ_0.5"].tolist() == [23]
    assert "1 of 24 values of κ_0.5 are zero or infinite and left out" in verdict.remarks


def test_the_stored_numbers(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / f"{norm}{seed}", matrices=tuple(Matrix), seed=seed, model__norm=norm)
        for norm in ("none", "batch")
        for seed in (1, 2)
    ]
    runs = [open_run(folder) for folder in folders]
    frame = measure(runs)
    assert frame["condition"].unique().tolist() == [
        "mlp on digits, model.norm=none",
        "mlp on digits, model.norm=batch",
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
    assert correlations(frame)["points of λ_max"].tolist() == [24, 24]


def test_runs_that_lack_fisher_are_refused(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "run"))
    with pytest.raises(InputError, match=r"fisher_lambda_max.*analysis=fisher"):
        measure([run])


def test_the_same_experiment_twice_is_refused(tmp_path: Path) -> None:
    runs = [open_run(write_run(tmp_path / n, matrices=tuple(Matrix))) for n in ("a", "b")]
    with pytest.raises(InputError, match="the same experiment"):
        measure(runs)
