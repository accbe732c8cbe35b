"""Claim 2 from stored runs with known numbers, and its verdict both ways."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from condexp.analysis.vocabulary import Matrix
from condexp.errors import InputError
from condexp.results.claims.requires import require
from condexp.results.claims.stability import cells, judge, measure
from condexp.store.reader import open_run
from condexp.store.run_folder.status import State
from tests.results.stored import LAYERS, write_run

CELLS = [("he", 0.1), ("he", 1.0), ("lecun", 0.1), ("lecun", 1.0)]
STEADY = {"conv": LAYERS[0], "hidden": LAYERS[1], "fc": LAYERS[3]}  # no layer of them dies


def planted(
    plain: Callable[[int, int], dict[str, Any]], normalized: Callable[[int, int], dict[str, Any]]
) -> pd.DataFrame:
    """Two seeds of four cells: what differs from λ_max = 1 and a loss that is halved."""
    rows = []
    for norm, changes in (("none", plain), ("batch", normalized)):
        for cell, (init, lr) in enumerate(CELLS):
            for seed in (1, 2):
                row: dict[str, Any] = {
                    "norm": norm,
                    "condition": "mlp on digits",
                    "init": init,
                    "lr": lr,
                    "seed": seed,
                    "run": f"{norm}-{cell}-{seed}",
                    "state": "complete",
                    "first_loss": 2.0,
                    "last_loss": 0.5,
                }
                last = {"step": 7, "log10_lambda_max": 0.0, "compared": True}
                first = {"step": 0, "log10_lambda_max": 0.0, "compared": False}
                changed = changes(cell, seed)
                at_first = {"log10_lambda_max": changed.pop("first", 0.0)}
                rows += [row | last | changed, row | changed | first | at_first]
    return pd.DataFrame(rows)


def wide(cell: int, seed: int) -> dict[str, Any]:
    """A range of 2.1 decades for the first seed and 3.1 for the second; cell 0 stays as it is."""
    loss = 1.9 if cell == 0 else 0.5
    return {"log10_lambda_max": (1.1 + seed) * cell / 3, "last_loss": loss}


def far(cell: int, seed: int) -> dict[str, Any]:
    return wide(cell, seed) | {"log10_lambda_max": 9.0 * cell}


def same(_cell: int, _seed: int) -> dict[str, Any]:
    return {}


def write(folder: Path, name: str, **options: Any) -> Path:
    given = {"model__norm": "batch", "model__init": "he", "layers": (*STEADY.values(),)}
    return write_run(folder / name, **(given | options))


def test_shown_where_the_range_shrinks_and_more_cells_learn() -> None:
    verdict = judge(planted(wide, same))
    assert verdict.claim == 2
    assert verdict.shown is True
    numbers = verdict.numbers.set_index("seed")
    np.testing.assert_allclose(numbers["range none"], [2.1, 3.1])
    assert numbers["range batch"].tolist() == [0, 0]
    assert numbers["halved none"].tolist() == [3, 3]
    assert numbers["halved batch"].tolist() == [4, 4]
    # 2.6 ± 12.706 · 0.7071 / √2 with one degree of freedom
    assert "by 2.60 decades (95 % interval -3.75 to 8.95, n = 2)" in verdict.remarks[0]
    assert verdict.remarks[1] == (
        "mlp on digits: without init=he, which widens the plain nets' range most, it is "
        "0.87 decades and 0.00 with BatchNorm"
    )


@pytest.mark.parametrize(
    ("plain", "normalized"),
    [
        (lambda c, s: wide(c, s) | {"log10_lambda_max": 1.9 * c / 3}, same),  # 1.9 decades
        (same, wide),
        (lambda c, s: wide(c, s) | {"last_loss": 0.5}, same),  # as many cells learn
        (wide, lambda c, _: {"state": "diverged", "last_loss": math.nan} if c > 2 else {}),
        (far, lambda c, _: {"log10_lambda_max": 2.1 * (c == 3)}),
        (far, lambda c, s: {"log10_lambda_max": 2.1 * (c == 3 and s == 2)}),
        (far, lambda _, __: {"log10_lambda_max": 2.1}),
        (wide, lambda c, _: {"log10_lambda_max": 20.0 * (-1) ** c}),
    ],
    ids=[
        "a smaller range",
        "the other way",
        "no more cells learn",
        "one diverges with it",
        "the range grows in time",
        "it grows for one seed",
        "all of them grow together",
        "it grows by 40 decades",
    ],
)
def test_not_shown(plain: Callable[..., Any], normalized: Callable[..., Any]) -> None:
    assert judge(planted(plain, normalized)).shown is False


def test_a_range_that_was_wide_from_the_start_or_shrinks_does_not_grow() -> None:
    def settled(cell: int, _seed: int) -> dict[str, Any]:
        return {"first": 3.0 * (cell == 3)}

    verdict = judge(planted(far, settled))
    assert verdict.shown is True
    assert verdict.numbers["growth batch"].tolist() == [-3, -3]


def test_a_plain_net_that_diverges_hides_no_growth_with_batchnorm() -> None:
    """One lost cell must not move the comparison of the others to an early step."""

    def lost(cell: int, seed: int) -> dict[str, Any]:
        gone = {"state": "diverged", "last_loss": math.nan, "log10_lambda_max": math.nan}
        return far(cell, seed) | (gone if cell == 3 else {})

    def grows(cell: int, _seed: int) -> dict[str, Any]:
        return {"log10_lambda_max": 20.0 * (cell == 1)}

    shown, refuted = judge(planted(lost, same)), judge(planted(lost, grows))
    assert (shown.shown, refuted.shown) == (True, False)
    assert shown.numbers["finite none"].tolist() == [3, 3]
    np.testing.assert_allclose(shown.numbers["range none"], [18, 18])

    # Of three lost cells one is left, which has no range.
    def lone(cell: int, seed: int) -> dict[str, Any]:
        return lost(3 if cell else 0, seed)

    alone = judge(planted(lone, same))
    assert alone.shown is None
    assert "too few cells are finite at the last step" in " ".join(alone.remarks)


def test_every_condition_must_hold() -> None:
    deeper = planted(same, wide).assign(condition="mlp on digits, model.depth=40")
    deeper["run"] = "deeper-" + deeper["run"]
    both = pd.concat([planted(wide, same), deeper], ignore_index=True)
    verdict = judge(both)
    assert verdict.shown is False
    assert len(verdict.numbers) == 4
    assert any(r.startswith("mlp on digits, model.depth=40: not met: a ") for r in verdict.remarks)


def test_missing_cells_are_waited_for_and_choosing_seeds_are_not_judged() -> None:
    frame = planted(wide, same)
    part = judge(frame[frame["run"] != "batch-3-2"])
    assert part.shown is None
    assert "mlp on digits: 1 runs of the grid are missing or have not ended" in part.remarks
    running = frame.assign(state=np.where(frame["run"] == "batch-3-2", "running", "complete"))
    assert judge(running).shown is None
    chosen = planted(same, wide).replace({"seed": {1: 101, 2: 102}})
    chosen["run"] = "chosen-" + chosen["run"]
    assert judge(pd.concat([frame, chosen], ignore_index=True)).shown is True
    assert judge(chosen).shown is None


def test_a_diverged_cell_counts_as_not_halved() -> None:
    def diverged(cell: int, seed: int) -> dict[str, Any]:
        return wide(cell, seed) | (
            {"state": "diverged", "last_loss": math.nan} if cell == 3 else {"last_loss": 0.5}
        )

    verdict = judge(planted(diverged, same))
    assert verdict.shown is True
    assert verdict.numbers["halved none"].tolist() == [3, 3]
    assert verdict.numbers["diverged none"].tolist() == [1, 1]
    assert "2 of 16 runs are diverged" in verdict.remarks


def test_what_does_not_suffice_is_said() -> None:
    frame = planted(wide, same)
    one_seed = judge(frame[frame["seed"] == 1])
    assert one_seed.shown is None
    name = "mlp on digits"
    assert f"{name}: seeds that compare the two norms: 1, where two are needed" in one_seed.remarks
    one_norm = judge(frame[frame["norm"] == "none"])
    assert one_norm.shown is None
    assert "mlp on digits: 8 runs of the grid are missing or have not ended" in one_norm.remarks
    one_cell = judge(frame[(frame["init"] == "he") & (frame["lr"] == 1)])
    assert one_cell.shown is None
    assert f"{name}: one initialization and learning rate alone have no range" in one_cell.remarks


def test_the_measures_of_stored_runs(tmp_path: Path) -> None:
    folders = [
        write(tmp_path, "b", model__init_scale=0.5, optimizer__lr=1.0),
        write(tmp_path, "a", model__norm="none", seed=2),
    ]
    frame = measure([open_run(folder) for folder in folders])
    assert frame["norm"].unique().tolist() == ["batch", "none"]
    normalized = frame[frame["norm"] == "batch"]
    assert normalized["init"].unique().tolist() == ["he × 0.5"]
    assert normalized["lr"].unique() == [1.0]
    assert normalized["step"].tolist() == [0, 1, 2, 5]
    # λ_max of both factors is 2^(place - step); the median layer is `hidden`, in place 1.
    expected = 2 * (1 - normalized["step"]) * math.log10(2)
    np.testing.assert_allclose(normalized["log10_lambda_max"], expected)
    assert normalized["first_loss"].unique() == [2.0]
    np.testing.assert_allclose(normalized["last_loss"], (2 / 5 + 2 / 6) / 2)
    assert normalized["compared"].tolist() == [False, False, False, True]


def test_the_last_step_is_that_of_the_runs_that_go_to_the_end(tmp_path: Path) -> None:
    dying = (LAYERS[2],)  # zero at step 0, unreliable at 1, not finite at 2 and 5
    folders = [
        write(tmp_path, "a", seed=1),
        write(tmp_path, "b", seed=1, model__norm="none", state=State.DIVERGED, steps_done=3,
              diverges_at=2),
        write(tmp_path, "c", seed=2),
        write(tmp_path, "d", seed=3),
        write(tmp_path, "e", seed=3, model__norm="none", layers=dying),
    ]  # fmt: skip
    frame = measure([open_run(folder) for folder in folders])
    compared = frame[frame["compared"]]
    assert compared.groupby("seed")["step"].unique().map(list).to_dict() == {
        seed: [5] for seed in (1, 2, 3)
    }
    lost = frame[frame["run"] == "b"]
    assert lost["state"].unique().tolist() == ["diverged"]
    assert lost["last_loss"].isna().all()
    zero = frame[(frame["run"] == "e") & (frame["step"] == 0)]
    assert zero["log10_lambda_max"].tolist() == [-math.inf]
    assert lost["compared"].sum() == 0
    at_last = cells(frame).set_index("run")["log10_lambda_max"]
    assert at_last.isna().tolist() == [name in {"b", "e"} for name in at_last.index]


def test_a_missing_measure_is_named_with_its_option(tmp_path: Path) -> None:
    without = open_run(write(tmp_path, "a", matrices=[Matrix.INPUT]))
    with pytest.raises(
        InputError, match=r"holds no kfac_lambda_max: .* analysis=factors\. .* are input\."
    ):
        measure([without])
    early = open_run(write(tmp_path, "b", steps_done=0, state=State.RUNNING))
    with pytest.raises(InputError, match=r"no snapshot yet: kfac_lambda_max .* analysis\.schedule"):
        require(early, ["kfac_lambda_max"], "analysis=factors")
