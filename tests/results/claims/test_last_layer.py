"""Claim 5 from stored runs, and its verdict on planted numbers."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from condexp.errors import InputError
from condexp.results.claims.last_layer import judge, measure
from condexp.store.reader import open_run
from tests.results.stored import LAYERS, write_run


def planted(
    plain: float = 1e4,
    error: float = 30.0,
    *,
    depth: int = 110,
    network: str = "resnet",
    seeds: int = 3,
) -> pd.DataFrame:
    """LastBN's κ is 100 and its error 12 %; plain nets differ from seed to seed."""
    rows = [
        {
            "run": f"{network}{depth}{last_bn}{seed}",
            "condition": f"{network} on digits, model.depth={depth}",
            "seed": seed,
            "state": "complete",
            "network": network,
            "depth": depth,
            "last_bn": last_bn,
            "test_error": 12.0 if last_bn else error + 0.1 * seed,
            "chance": 90.0,
            "layer": "fc",
            "step": step,
            # The first snapshot would refute it.
            "input_kappa_0.5": 1.0 if step == 0 and not last_bn else 100.0 if last_bn else plain,
        }
        for last_bn in (False, True)
        for seed in range(seeds)
        for step in (0, 9)
    ]
    return pd.DataFrame(rows)


DEEPEST = "resnet on digits, model.depth=110"


def rows_of(numbers: pd.DataFrame, quantity: str) -> pd.DataFrame:
    return numbers[numbers["quantity"] == quantity]


def test_shown_by_the_deepest_resnet() -> None:
    shallow = planted(100.0, 12.0, depth=20)
    verdict = judge(pd.concat([shallow, planted(), planted(1.0, network="preresnet")]))
    assert (verdict.claim, verdict.shown) == (5, True)
    assert verdict.remarks == (f"{DEEPEST}, the deepest: shows the claim",)
    deepest = verdict.numbers[verdict.numbers["condition"] == "resnet on digits, model.depth=110"]
    kappa, error = rows_of(deepest, "log₁₀ κ_0.5"), rows_of(deepest, "test error")
    assert kappa["difference"].tolist() == pytest.approx([2])
    assert (error["difference"].item(), error["pairs"].item()) == (pytest.approx(18.1), 3)
    # Student's t with two degrees of freedom: 4.303 · 0.1/√3.
    assert error["high"].item() - 18.1 == pytest.approx(0.2484, rel=1e-3)


@pytest.mark.parametrize(
    ("plain", "error", "reason"),
    [
        (300.0, 30.0, "log₁₀ κ_0.5"),  # log₁₀ 3 = 0.48 is too little
        (1e4, 11.5, "test error"),
        (50.0, 11.0, "log₁₀ κ_0.5 and test error"),
    ],
)
def test_not_shown_where_either_fails(plain: float, error: float, reason: str) -> None:
    verdict = judge(planted(plain, error))
    assert verdict.shown is False
    assert verdict.remarks == (f"{DEEPEST}, the deepest: does not show it: {reason}",)


def test_an_interval_that_holds_the_threshold_decides_nothing() -> None:
    verdict = judge(planted(error=12.0))  # differences 0, 0.1, 0.2
    assert verdict.shown is None
    (remark,) = verdict.remarks
    assert remark.endswith("cannot be said, as seeds differ too much or are too few: test error")


def test_a_shallower_depth_never_stands_in_for_the_deepest() -> None:
    """The deepest pairs do not suffice, or fail: what depth 56 shows does not matter."""
    shallow = planted(depth=56)
    for deepest, shown in (
        (planted(math.inf, 89.0), None),  # three infinite pairs: p = 1/8
        (planted(math.nan), None),
        (planted(error=12.0), None),
        (planted(error=11.0), False),
        (planted(100.0), False),
    ):
        assert judge(pd.concat([shallow, deepest])).shown is shown
        assert judge(deepest).shown is shown


def test_infinite_plain_nets_are_ranked_above_all_finite_ones() -> None:
    frame = planted(math.inf, 89.0, seeds=5)
    verdict = judge(frame)
    assert verdict.shown is True  # five of five: p = 1/32
    infinite, _ = verdict.remarks
    assert infinite == (
        f"{DEEPEST}: 5 plain net(s) have an infinite log₁₀ κ_0.5, ranked above every finite one "
        "(5 of them at chance: dead or diverged)"
    )
    kappa = rows_of(verdict.numbers, "log₁₀ κ_0.5").iloc[0]
    assert (kappa["pairs"], kappa["plain"], kappa["difference"]) == (5, math.inf, math.inf)
    assert kappa["p (ranks)"] == 1 / 32
    # One of the five the other way: p = 3/32.
    other = frame["run"].str.endswith("False4") & (frame["step"] == 9)
    assert judge(frame.assign(**{K: frame[K].where(~other, 120.0)})).shown is None
    # A LastBN net that is infinite as well is no difference, which is below 0.5.
    cured = frame["run"].str.endswith("True4") & (frame["step"] == 9)
    assert judge(frame.assign(**{K: frame[K].where(~cured, math.inf)})).shown is None
    assert judge(frame.assign(**{K: np.inf})).shown is False


K, HIGH = "input_kappa_0.5", "input_kappa_high_0.5"


def test_a_lower_bound_speaks_against_the_claim() -> None:
    frame = planted(seeds=5).assign(**{HIGH: lambda f: 1.01 * f[K]})
    plain = ~frame["last_bn"]
    bounds = frame.assign(**{HIGH: frame[HIGH].mask(plain, np.inf)})
    verdict = judge(bounds)
    assert verdict.shown is True
    assert rows_of(verdict.numbers, "log₁₀ κ_0.5")["plain"].tolist() == [4]
    bounds = frame.assign(**{HIGH: frame[HIGH].mask(~plain, np.inf)})
    assert judge(bounds).shown is False


def test_dead_or_diverged_is_said_of_nets_at_chance_only() -> None:
    frame = pd.concat([planted(math.inf, 25.0, network="preresnet"), planted()])
    (remark, _) = judge(frame).remarks
    assert remark.endswith("ranked above every finite one")
    (remark, _) = judge(frame.drop(columns="chance")).remarks
    assert "dead" not in remark


def test_the_number_of_seeds_is_fixed_beforehand() -> None:
    """A depth that has been run with fewer seeds than another waits for the others."""
    verdict = judge(pd.concat([planted(depth=56, seeds=5), planted()]))
    assert verdict.shown is None
    assert verdict.remarks == (
        f"{DEEPEST}, the deepest: cannot be said, as seed 3, 4 has no pair with both numbers",
    )
    frame = planted(seeds=5)
    lost = frame["run"].str.endswith("False4")
    assert judge(frame.assign(test_error=frame["test_error"].where(~lost))).shown is None
    running = frame.assign(state=np.where(lost, "running", "complete"))
    assert judge(running).shown is None
    chosen = planted(1.0).replace({"seed": {0: 101, 1: 102, 2: 101}})
    assert judge(pd.concat([frame, chosen[chosen["seed"] > 100].iloc[:8]])).shown is True


def test_other_fractions_stand_beside_and_decide_nothing() -> None:
    frame = planted().assign(**{"input_kappa_0.2": 1.0, "input_kappa_0.8": math.inf})
    verdict = judge(frame)
    assert verdict.shown is True
    for p, difference in (("0.2", 0), ("0.8", 0)):  # both are infinite: no difference
        (row,) = rows_of(verdict.numbers, f"log₁₀ κ_{p}").to_dict("records")
        assert row["difference"] == difference
    named, beside = verdict.tables
    assert named.rows["quantity"].tolist() == ["log₁₀ κ_0.5", "test error"]
    assert named.rows["plain − LastBN"].tolist() == ["2.00 [2.00, 2.00]", "18.10 [17.85, 18.35]"]
    assert beside.rows["plain"].tolist() == ["0.00", "∞"]


def test_a_dead_net_is_told_and_since_when() -> None:
    """Seed 1's plain net dies between the snapshots; seed 2's first layer gets no gradient."""
    frame = planted().assign(last_grad_norm=2.0, first_grad_norm=1.0, dead_fraction=0.5)
    late = (frame["step"] == 9) & ~frame["last_bn"]
    frame.loc[late & (frame["seed"] == 1), "dead_fraction"] = 1.0
    frame.loc[~frame["last_bn"] & (frame["seed"] == 2), "first_grad_norm"] = 0.0
    flow = judge(frame).tables[-1].rows
    assert flow["net"].tolist() == ["plain", "LastBN"]
    assert flow["dead, since step"].tolist() == ["2: 9, 0", "0"]
    assert flow["at the end"].tolist() == ["0.5", "0.5"]
    # One that lives again at the end is not dead.
    frame.loc[~frame["last_bn"] & (frame["seed"] == 2) & late, "first_grad_norm"] = 1.0
    assert judge(frame).tables[-1].rows["dead, since step"].tolist() == ["1: 9", "0"]


def test_the_seeds_that_chose_say_how_many_are_needed() -> None:
    chosen = planted(seeds=2).assign(seed=lambda f: f["seed"] + 101, run=lambda f: "c" + f["run"])
    chosen.loc[(chosen["seed"] == 102) & ~chosen["last_bn"], "test_error"] += 9.9
    verdict = judge(pd.concat([planted(), chosen]))
    # 18 and 28 points: mean 23, s = 7.07, and d = 3.25 takes 4 pairs.
    (remark,) = [each for each in verdict.remarks if "were these the true ones" in each]
    assert "is 23.0 points with a standard deviation of 7.1" in remark
    assert ", 4 seeds would show it with probability 0.9" in remark
    assert verdict.shown is True


def test_one_pair_or_none_says_nothing() -> None:
    assert judge(planted(seeds=1)).shown is None
    frame = planted()
    for part in (frame[frame["last_bn"]], planted(network="preresnet")):
        verdict = judge(part)
        assert verdict.shown is None
        assert verdict.remarks == ("no pair of a resnet with and without model.last_bn",)


def test_the_stored_numbers(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / str(bn), model__last_bn=bn, test_errors=(90.0, 40.0, 20.0 + 5 * bn))
        for bn in (False, True)
    ]
    frame = measure([open_run(folder) for folder in folders])
    assert frame["condition"].unique().tolist() == ["mlp on digits"]
    assert frame["layer"].unique().tolist() == ["fc"]
    assert frame.groupby("last_bn")["test_error"].unique().explode().tolist() == [20.0, 25.0]
    # λ_1 = 2^(3-step) of both factors; fc's inputs are halved twice down to index k(0.5) = 2.
    np.testing.assert_array_equal(frame["input_lambda_max"][:4], [8, 4, 2, 0.25])
    np.testing.assert_array_equal(frame["input_kappa_0.5"][:4], [2, 2, 2, 2])


def test_runs_without_a_linear_layer_are_refused(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "run", layers=LAYERS[:1]))
    with pytest.raises(InputError, match=r"no linear layer.*analysis=last_layer"):
        measure([run])
