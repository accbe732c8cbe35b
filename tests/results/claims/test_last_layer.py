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


def rows_of(numbers: pd.DataFrame, quantity: str) -> pd.DataFrame:
    return numbers[numbers["quantity"] == quantity]


def test_shown_by_the_deepest_resnet() -> None:
    shallow = planted(100.0, 12.0, depth=20)
    verdict = judge(pd.concat([shallow, planted(), planted(1.0, network="preresnet")]))
    assert (verdict.claim, verdict.shown) == (5, True)
    assert verdict.remarks == ("depth 110 decides, and shows the claim",)
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
        (1e4, 12.0, "test error"),  # 0, 0.1, 0.2: its interval holds 0
        (50.0, 11.0, "log₁₀ κ_0.5 and test error"),
    ],
)
def test_not_shown_where_either_fails(plain: float, error: float, reason: str) -> None:
    verdict = judge(planted(plain, error))
    assert verdict.shown is False
    assert verdict.remarks == (f"depth 110 decides, and does not show it: {reason}",)


def test_dead_nets_are_counted_and_a_shallower_net_may_show_it() -> None:
    dead = planted(math.inf, 89.0)
    verdict = judge(dead)
    assert verdict.shown is None
    lost, reason = verdict.remarks
    assert "model.depth=110: 3 plain net(s) have no finite log₁₀ κ_0.5" in lost
    assert reason == "depth 110 cannot decide: fewer than two pairs with finite values"
    error = rows_of(verdict.numbers, "test error")
    assert (error["pairs"].item(), error["difference"].item()) == (3, pytest.approx(77.1))
    assert judge(pd.concat([dead, planted(depth=56)])).shown is True
    # The shallower one cannot refute what is said of the deeper.
    unclear = judge(pd.concat([dead, planted(error=12.0, depth=20)]))
    assert unclear.shown is None
    assert unclear.remarks[-1].endswith("which says nothing of the deeper nets")


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
