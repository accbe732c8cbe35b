"""Claim 3 from stored runs with known numbers, and its verdict both ways."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from condexp.analysis.vocabulary import Matrix
from condexp.errors import InputError
from condexp.results.claims.domination import judge, measure
from condexp.store.reader import open_run
from tests.results.stored import LAYERS, write_run

RELEASE = 30


def run_rows(
    factor: float,
    seed: int,
    *,
    plateau: float,
    recovered: float,
    domination: float,
    release: float = RELEASE,
) -> pd.DataFrame:
    """Evaluations at steps 20, 30, 40, 50 and snapshots at 0, 29, 30 (after the release), 40."""
    steps = [0, 20, 29, 30, 40, 50]
    nan = math.nan
    return pd.DataFrame({
        "factor": factor,
        "condition": "mlp on digits",
        "seed": seed,
        "run": f"{factor:g}-{seed}",
        "state": "complete",
        "release": release,
        "step": steps,
        "train_loss": [nan, 2.0, nan, plateau, recovered, 1e-9],  # step 50 comes too late
        "domination": [7.0, nan, domination, 99.0, 99.0, nan],
        "effective_lr": nan,
    })


def planted(
    plateau: float = 1.0,
    recovered: float = 0.2,
    domination: float = 9e-5,
    seeds: tuple[int, ...] = (1, 2),
    *,
    of_ten: tuple[float, float, float] = (0.6, 0.15, 3e-3),
    **options: Any,
) -> pd.DataFrame:
    """An unscaled net of loss 0.1 twice and domination 0.1, one times 10 and one times 100."""
    parts = [
        run_rows(factor, seed, plateau=a * seed, recovered=b, domination=c, **options)
        for factor, a, b, c in (
            (1.0, 0.1, 0.1, 0.1),
            (10.0, *of_ten),
            (100.0, plateau, recovered, domination),
        )
        for seed in seeds
    ]
    return pd.concat(parts, ignore_index=True)


def test_shown_by_every_factor() -> None:
    verdict = judge(planted())
    assert (verdict.claim, verdict.shown, verdict.remarks) == (3, True, ())
    numbers = verdict.numbers.set_index("factor")
    assert numbers["shown"].tolist() == [True, True]
    np.testing.assert_allclose(numbers["loss ratio"], [6, 10])
    np.testing.assert_allclose(numbers["domination ratio"], [0.03, 9e-4])
    np.testing.assert_allclose(numbers["loss ratio after release"], [1.5, 2])
    assert numbers["pairs"].tolist() == [2, 2]


@pytest.mark.parametrize(
    "changes",
    [
        {"plateau": 0.49},
        {"recovered": 0.31},
        {"domination": 1.1e-4},
        {"of_ten": (0.49, 0.15, 3e-3)},
        {"of_ten": (0.6, 0.31, 3e-3)},
        {"of_ten": (0.6, 0.15, 3.2e-3)},
    ],
    ids=str,
)
def test_not_shown_where_one_part_fails_for_one_factor(changes: dict[str, Any]) -> None:
    assert judge(planted(**changes)).shown is False


def test_a_recovery_whose_interval_reaches_above_3_decides_nothing() -> None:
    frame = planted(seeds=(1, 2, 3))
    # 1, 2 and 4 times the unscaled net's loss: two on average, up to 11 by the interval.
    after = (frame["step"] == 40) & (frame["factor"] == 10)
    frame.loc[after, "train_loss"] = [0.1, 0.2, 0.4]
    verdict = judge(frame)
    row = verdict.numbers.set_index("factor").loc[10.0]
    assert row["loss ratio after release"] == pytest.approx(2)
    assert row["after high"] == pytest.approx(
        2 * math.exp(4.3027 * math.log(2) / math.sqrt(3)), 1e-4
    )
    assert verdict.shown is None
    (remark,) = verdict.remarks
    assert remark == (
        "mlp on digits, α = 10: the interval of the loss after the release does not decide"
    )


def test_a_factor_is_not_left_out_and_others_do_not_count() -> None:
    frame = planted()
    verdict = judge(frame[frame["factor"] != 10])
    assert verdict.shown is None
    assert "mlp on digits, α = 10: 0 pairs of 2 seeds, of which it needs each and two at least" in (
        verdict.remarks
    )
    more = frame[frame["factor"] == 1].assign(factor=2.0)
    verdict = judge(pd.concat([frame, more], ignore_index=True))
    assert verdict.numbers["factor"].tolist() == [2, 10, 100]
    assert verdict.shown is True


def test_a_missing_seed_leaves_it_open_and_choosing_seeds_are_not_judged() -> None:
    frame = planted(seeds=(1, 2, 3))
    assert judge(frame).shown is True
    assert judge(frame[(frame["factor"] != 100) | (frame["seed"] != 3)]).shown is None
    running = frame.assign(state=np.where(frame["seed"] == 3, "running", "complete"))
    assert judge(running).shown is None
    chosen = planted(plateau=0.1, seeds=(101, 102))
    assert judge(pd.concat([frame, chosen], ignore_index=True)).shown is True
    assert judge(chosen).shown is None


def test_every_condition_must_hold() -> None:
    other = planted(plateau=0.1).assign(condition="mlp on digits, model.depth=20")
    assert judge(pd.concat([planted(), other], ignore_index=True)).shown is False


def test_what_does_not_suffice_is_said() -> None:
    assert judge(planted(seeds=(1,))).shown is None
    frame = planted()
    alone = judge(frame[frame["factor"] > 1])
    assert alone.shown is None
    assert "no run with trainer.rescale.factor other than 1 has a partner" in alone.remarks[0]
    held = judge(planted(release=math.nan))
    assert held.shown is None
    assert "runs without trainer.rescale.release_epoch do not say" in held.remarks[0]
    lost = judge(planted(plateau=math.inf, seeds=(1, 2, 3)))
    assert lost.shown is None
    assert lost.numbers["pairs"].tolist() == [3, 0]
    assert "3 of 6 pairs lack a finite loss or domination" in lost.remarks[0]


def test_the_measures_of_stored_runs(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "run",
        trainer__rescale={"factor": 10.0, "release_epoch": 2},
        layers=LAYERS[:2] + LAYERS[3:],
    )
    frame = measure([open_run(folder), open_run(write_run(tmp_path / "plain"))])
    scaled = frame[frame["factor"] == 10].set_index("step")
    assert scaled["release"].unique() == [4.0]  # two steps an epoch
    assert scaled.index.tolist() == [0, 1, 2, 4, 5, 6]
    losses = scaled["train_loss"].dropna()
    assert losses.to_dict() == {2: 1 / 2, 4: 1 / 4, 6: 1 / 6}
    # Of the hidden layers, 1/8 and 2/8; the last linear one, 4/8, is not scaled and not counted.
    assert scaled["domination"].dropna().to_dict() == dict.fromkeys((0, 1, 2, 5), 0.1875)
    plain = frame[frame["factor"] == 1]
    assert plain["release"].isna().all()
    assert set(frame["condition"]) == {"mlp on digits"}


def test_a_missing_measure_is_named_with_its_option(tmp_path: Path) -> None:
    without = open_run(write_run(tmp_path / "a", matrices=[Matrix.INPUT]))
    with pytest.raises(InputError, match=r"holds no domination: .* analysis=factors"):
        measure([without])
