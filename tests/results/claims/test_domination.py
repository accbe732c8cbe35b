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
    domination: float = 1e-4,
    seeds: tuple[int, ...] = (1, 2),
    **options: Any,
) -> pd.DataFrame:
    """An unscaled net of loss 0.1 twice and domination 0.1; one times 10 that falls behind none."""
    parts = [
        run_rows(factor, seed, plateau=a * seed, recovered=b, domination=c, **options)
        for factor, a, b, c in (
            (1.0, 0.1, 0.1, 0.1),
            (10.0, 0.2, 0.1, 1e-2),
            (100.0, plateau, recovered, domination),
        )
        for seed in seeds
    ]
    return pd.concat(parts, ignore_index=True)


def test_shown_by_one_factor() -> None:
    verdict = judge(planted())
    assert (verdict.claim, verdict.shown, verdict.remarks) == (3, True, ())
    numbers = verdict.numbers.set_index("factor")
    assert numbers["shown"].tolist() == [False, True]
    np.testing.assert_allclose(numbers["loss ratio"], [2, 10])
    np.testing.assert_allclose(numbers["domination ratio"], [0.1, 1e-3])
    np.testing.assert_allclose(numbers["loss ratio after release"], [1, 2])
    assert numbers["pairs"].tolist() == [2, 2]


@pytest.mark.parametrize(
    "changes", [{"plateau": 0.49}, {"recovered": 0.31}, {"domination": 1.1e-3}]
)
def test_not_shown_where_one_part_fails(changes: dict[str, Any]) -> None:
    assert judge(planted(**changes)).shown is False


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
