"""Claim 4 from stored runs, and its verdict on planted numbers."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from condexp.errors import InputError
from condexp.results.claims.conditioning import judge, measure
from condexp.store.reader import open_run
from condexp.store.run_folder.status import State
from tests.results.stored import NUM_SAMPLES, write_run

LAYERS = ("a", "b", "c")


def planted(
    kappa: float = 10.0,
    condition: str = "mlp on digits",
    *,
    seeds: Sequence[int] = (0, 1, 2),
    spread: float = 0.1,
) -> pd.DataFrame:
    """Without a norm κ is 1000 in both hidden layers, with one `kappa`, a bit else each seed."""
    rows = [
        {
            "run": f"{condition}{norm}{seed}",
            "condition": condition,
            "seed": seed,
            "state": "complete",
            "norm": norm,
            "p": 0.5,
            "step": step,
            "layer": layer,
            "index": index,
            "hidden": layer != "c",
            "enough_rows": True,
            # The last layer would refute everything; step 0 as well.
            "kappa": 1.0
            if step == 0 or (norm == "none" and layer == "c")
            else 1000.0
            if norm == "none"
            else 1e9
            if layer == "c"
            else kappa * 10 ** (spread * seed),
        }
        for norm in ("none", "batch")
        for seed in seeds
        for step in (0, 7)
        for index, layer in enumerate(LAYERS)
    ]
    return pd.DataFrame(rows)


def test_shown_by_paired_seeds_at_the_last_snapshot() -> None:
    verdict = judge(planted())
    assert (verdict.claim, verdict.shown, verdict.remarks) == (4, True, ())
    last = verdict.numbers[verdict.numbers["snapshot"] == "last"].iloc[0]
    # Differences -2, -1.9, -1.8: mean -1.9, s = 0.1, and t_{0.975, 2} = 4.303.
    assert last["difference"] == pytest.approx(-1.9)
    assert last["high"] - last["difference"] == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert (last["log₁₀ κ none"], last["pairs"]) == (pytest.approx(3), 3)
    assert verdict.numbers["snapshot"].tolist() == ["last", "first"]


@pytest.mark.parametrize(("kappa", "spread"), [(1e5, 0.1), (500.0, 0.5)])
def test_not_shown_where_it_is_higher(kappa: float, spread: float) -> None:
    verdict = judge(planted(kappa, spread=spread))
    assert verdict.shown is False
    expected = "mlp on digits: κ_0.5 is not shown to be lower with batch normalisation"
    assert verdict.remarks == (expected,)


def test_an_interval_that_holds_0_decides_nothing() -> None:
    verdict = judge(planted(100.0, spread=0.5))  # differences -1, -0.5, 0
    assert verdict.shown is None
    expected = "two pairs of runs are needed, and an interval that excludes 0"
    assert verdict.remarks == (f"mlp on digits: {expected}",)


def test_other_fractions_stand_beside_and_decide_nothing() -> None:
    worse = planted(1e5).assign(p=0.2)
    verdict = judge(pd.concat([planted(), worse]))
    assert verdict.shown is True
    last = verdict.numbers[verdict.numbers["snapshot"] == "last"].set_index("p")["difference"]
    assert last.to_dict() == {0.2: pytest.approx(2.1), 0.5: pytest.approx(-1.9)}
    judged, beside, first = verdict.tables
    assert judged.rows["norm, p"].tolist() == ["batch, 0.5"]
    assert judged.rows["difference"].tolist() == ["−1.90 [−2.15, −1.65]"]
    assert beside.rows["norm, p"].tolist() == ["batch, 0.2"]
    assert first.rows["log₁₀ κ without"].tolist() == ["0.00"]
    assert all(len(table.rows.columns) <= 6 for table in verdict.tables)


def test_a_seed_that_another_condition_has_is_waited_for() -> None:
    after = planted(condition="mlp on digits, model.norm_position=after", seeds=[0, 1])
    verdict = judge(pd.concat([planted(), after]))
    assert verdict.shown is None
    remark = "mlp on digits, model.norm_position=after: no pair of runs that have ended of seed 2"
    assert verdict.remarks == (remark,)
    running = planted()
    running.loc[running["run"] == "mlp on digitsbatch2", "state"] = "running"
    assert judge(running).shown is None


def test_seeds_that_chose_the_settings_are_not_judged() -> None:
    chosen = planted(1e9, seeds=[101, 102])
    verdict = judge(pd.concat([planted(), chosen]))
    assert verdict.shown is True
    assert verdict.numbers["pairs"].tolist() == [3, 3]
    assert judge(chosen).shown is None


def test_every_condition_must_show_it() -> None:
    both = pd.concat([planted(), planted(1e5, "vgg on digits")])
    assert judge(both).shown is False
    assert judge(pd.concat([planted(), planted(20.0, "vgg on digits")])).shown is True
    # A condition of which nothing can be said leaves the claim open, and does not refute it.
    assert judge(pd.concat([planted(), planted(20.0, "vgg on digits", seeds=[0])])).shown is None


def test_one_seed_or_no_pair_says_nothing() -> None:
    verdict = judge(planted(seeds=[0]))
    assert verdict.shown is None
    assert verdict.remarks == (
        "mlp on digits: two pairs of runs are needed, and an interval that excludes 0",
    )
    frame = planted()
    verdict = judge(frame[frame["norm"] == "batch"])
    assert verdict.shown is None
    assert verdict.remarks == ("there are no runs with norm=none and norm=batch to compare",)


def test_infinite_layers_are_ranked_and_can_refute() -> None:
    frame = planted()
    chosen = (frame["layer"] == "a") & (frame["step"] == 7)
    frame.loc[chosen & (frame["norm"] == "none"), "kappa"] = np.inf
    verdict = judge(frame)
    last = verdict.numbers[verdict.numbers["snapshot"] == "last"].iloc[0]
    # Of -∞ and -1.9 in the middle, the one against the claim: seed by seed it is finite.
    assert verdict.shown is True
    assert (last["∞ only without"], last["difference"]) == (3, pytest.approx(-1.9))
    # The same with BN: what is left of the layers must not hide it.
    frame = planted()
    frame.loc[chosen & (frame["norm"] == "batch"), "kappa"] = np.inf
    assert judge(frame).shown is False


def test_a_lower_bound_speaks_against_the_claim() -> None:
    frame = planted(seeds=range(5)).assign(kappa_high=lambda f: 1.01 * f["kappa"])
    assert judge(frame).shown is True
    last = (frame["step"] == 7) & frame["hidden"]
    plain = last & (frame["norm"] == "none")
    # Without the norm κ is at least its bound, which is enough.
    bounds = frame.assign(kappa_high=frame["kappa_high"].mask(plain, np.inf))
    assert judge(bounds).shown is True
    # With it κ may be anything above.
    bounds = frame.assign(kappa_high=frame["kappa_high"].mask(last & ~plain, np.inf))
    assert judge(bounds).shown is False


@pytest.mark.parametrize(("num", "shown"), [(4, None), (5, True)])
def test_pairs_that_are_infinite_in_all_layers_are_not_dropped(
    num: int, shown: bool | None
) -> None:
    frame = planted(seeds=range(num))
    plain = (frame["norm"] == "none") & (frame["step"] == 7) & frame["hidden"]
    frame.loc[plain, "kappa"] = np.inf
    verdict = judge(frame)
    last = verdict.numbers[verdict.numbers["snapshot"] == "last"].iloc[0]
    assert (last["pairs"], last["difference"]) == (num, -np.inf)
    assert last["p (ranks)"] == 2.0**-num  # below 5 % from five pairs on
    assert verdict.shown is shown
    # One seed whose κ is infinite with the norm too is no difference, and the ranks know it.
    one = frame["run"].str.endswith("batch0") & (frame["step"] == 7) & frame["hidden"]
    assert judge(frame.assign(kappa=frame["kappa"].where(~one, np.inf))).shown is None


def test_layers_with_few_rows_are_left_out_and_named() -> None:
    frame = planted()
    frame["enough_rows"] = frame["layer"] != "a"
    frame.loc[(frame["layer"] == "a") & (frame["norm"] == "batch"), "kappa"] = 1e12
    verdict = judge(frame)
    assert verdict.shown is True
    (remark,) = verdict.remarks
    assert "left out are a, measured with fewer than 4 rows for each unit" in remark


def test_the_last_step_is_the_last_that_both_have() -> None:
    frame = planted()
    late = frame[(frame["step"] == 7) & (frame["norm"] == "none")].assign(step=9, kappa=1e-9)
    assert judge(pd.concat([frame, late])).shown is True


def test_the_stored_numbers(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / norm, model__norm=norm, state=state)
        for norm, state in (("none", State.DIVERGED), ("batch", State.COMPLETE))
    ]
    runs = [open_run(folder) for folder in folders]
    frame = measure(runs)
    assert frame["condition"].unique().tolist() == ["mlp on digits"]
    stored = runs[0].measures()["kfac_kappa"].sel(p=0.5, layer="hidden").to_numpy()
    own = frame[(frame["run"] == str(folders[0])) & (frame["layer"] == "hidden")]
    np.testing.assert_array_equal(own["kappa"].to_numpy(), stored)
    assert own["kappa_low"].tolist() == stored.tolist()
    first = frame.iloc[:4]
    assert first["hidden"].tolist() == [True, True, True, False]
    # The convolution has 16 positions a sample; the others one, fewer than 4 for each unit.
    assert first["enough_rows"].tolist() == [NUM_SAMPLES * 16 >= 4 * 9, False, False, False]
    assert "1 of 2 runs is diverged" in judge(frame).remarks


def test_runs_that_lack_kfac_are_refused(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "run", matrices=()))
    with pytest.raises(InputError, match=r"kfac_kappa_0\.5.*kfac in analysis\.matrices"):
        measure([run])
