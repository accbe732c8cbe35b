import math

import pandas as pd
import pytest
from scipy import stats

from condexp.errors import InputError
from condexp.results.tables.cells import lay_out
from condexp.results.tables.differences import (
    Contrast,
    Differences,
    make_differences,
)
from condexp.results.tables.paired import differences as pairwise
from condexp.results.tables.paired import paired_difference, signed_rank_p
from condexp.results.tables.table import make_table
from tests.results.stored import grid_frame

INF, NAN = math.inf, math.nan


def frame(*runs: tuple[object, ...]) -> pd.DataFrame:
    """Runs as (depth, norm, seed, state, test_error)."""
    return grid_frame("model.norm", runs)


GRID = frame(
    (8, "none", 1, "complete", 10.0),
    (8, "none", 2, "complete", 12.0),
    (8, "none", 3, "complete", 13.0),
    (8, "batch", 3, "complete", 10.0),
    (8, "batch", 1, "complete", 9.0),
    (8, "batch", 2, "complete", 10.0),
    (8, "scale", 1, "diverged", 90.0),
    (8, "scale", 2, "complete", 11.0),
    (14, "none", 1, "complete", 20.0),
)


def differences(runs: pd.DataFrame = GRID, paired: str = "model.norm=none") -> Differences:
    return make_differences(runs, ["model.depth"], ["model.norm"], "test_error", paired)


def test_runs_are_paired_by_seed_whatever_their_order() -> None:
    found = differences()
    assert (found.reference, found.others) == ("none", ("batch", "scale"))
    assert (found.rows, found.cols) == (("model.depth",), ())
    expected = paired_difference([10.0, 12.0, 13.0], [9.0, 10.0, 10.0])
    assert found.cells[(8,), (), "batch"] == Contrast(expected, 3)
    assert expected.mean == -2.0


def test_what_is_in_no_pair_is_counted() -> None:
    cells = differences().cells
    scale = cells[(8,), (), "scale"]
    assert (scale.difference.num, scale.num_pairs, scale.difference.mean) == (1, 3, -1.0)
    alone = cells[(14,), (), "batch"]
    assert (alone.difference.num, alone.num_pairs) == (0, 1)


def test_the_first_value_is_the_reference_where_none_is_named() -> None:
    found = differences(paired="model.norm")
    assert (found.reference, found.others) == ("batch", ("none", "scale"))
    assert found.cells[(8,), (), "none"].difference.mean == 2.0
    assert found.name("none") == "model.norm: none − batch"


def test_a_key_that_is_no_row_or_column_can_be_compared() -> None:
    found = make_differences(GRID, ["model.depth"], [], "test_error", "model.norm=none")
    assert found.cells == differences().cells
    rows = make_differences(GRID, ["model.norm"], ["model.depth"], "test_error", "model.norm")
    assert (rows.rows, rows.cols, rows.row_keys) == ((), ("model.depth",), ((),))


def test_how_it_is_written() -> None:
    table = make_table(
        GRID, ["model.depth"], ["model.norm"], "test_error", paired="model.norm=none", title="T"
    )
    main, layout = lay_out(table)
    assert layout.title == "T: paired differences"
    assert len(main.columns) == 3
    assert layout.columns == (("model.norm: batch − none",), ("model.norm: scale − none",))
    # Differences -1, -2, -3: s = 1, t_{0.975, 2} = 4.302653, half the interval is 2.484138.
    assert {keys: [str(entry) for entry in entries] for keys, entries in layout.body} == {
        ("8",): ["-2.00 [-4.48, 0.48] (3)", "-1.00 (1 of 3 pairs)"],
        ("14",): ["– (0 of 1 pairs)", "– (0 of 1 pairs)"],
    }
    assert layout.notes == (
        "test_error: mean difference [95 % t-interval] (n) over pairs of runs of one seed",
        "n of m: the other pairs lack a complete run with a value",
    )


def kappas(none: list[float], batch: list[float]) -> pd.DataFrame:
    runs = [(8, norm, seed, "complete", 1.0) for norm in ("none", "batch") for seed in range(5)]
    return frame(*runs).assign(**{"fc.input_kappa_0.5": [*none, *batch]})


def of_kappas(none: list[float], batch: list[float]) -> tuple[Contrast, str]:
    table = make_table(
        kappas(none, batch), ["model.depth"], ["model.norm"], "fc.input_kappa_0.5", paired=NORM
    )
    assert table.differences is not None
    (cell,) = table.differences.cells.values()
    _, layout = lay_out(table)
    return cell, str(layout.body[0][1][0])


NORM = "model.norm=none"


def test_condition_numbers_are_compared_in_decades() -> None:
    cell, text = of_kappas([1e3, 1e4, 1e5, 1e6, 1e7], [1e2, 1e2, 1e3, 1e4, 1e5])
    # Differences -1, -2, -2, -2, -2: s = √0.2, and t_{0.975, 4} = 2.776445.
    assert cell.difference.mean == pytest.approx(-1.8)
    assert cell.difference.high == pytest.approx(-1.8 + 2.776445 * math.sqrt(0.2 / 5), rel=1e-6)
    assert text == "-1.80 [-2.36, -1.24] (5)"


def test_an_infinite_value_is_ranked_and_not_dropped() -> None:
    cell, text = of_kappas([1e3, INF, INF, INF, 1e5], [1e2] * 5)
    assert (cell.difference.num, cell.difference.num_infinite, cell.num_pairs) == (5, 3, 5)
    assert cell.difference.mean == -INF
    assert cell.difference.p_value == 2 / 32  # all five of one sign
    assert text == "-∞, p = 0.0625 (5)"
    assert not cell.difference.excludes_zero
    # The same infinity twice is no difference.
    both, text = of_kappas([INF] * 5, [INF, INF, INF, 1e2, INF])
    assert (both.difference.mean, both.difference.p_value) == (0, 1)


def test_signed_ranks_are_scipys_where_it_is_exact() -> None:
    values = [0.3, -0.1, 0.7, 1.1, 0.4, -0.2, 0.9]
    assert signed_rank_p(values) == pytest.approx(stats.wilcoxon(values).pvalue)
    above = stats.wilcoxon([v - 0.05 for v in values], alternative="greater").pvalue
    assert signed_rank_p(values, above=0.05) == pytest.approx(above)
    # An infinity is no more than the largest rank.
    assert signed_rank_p([*values, INF]) == signed_rank_p([*values, 5.0])
    assert signed_rank_p([0.0, 0.0]) == 1
    many = [*values * 3, INF]
    assert 0 < signed_rank_p(many) < 0.01


def test_runs_without_the_key_are_in_no_pair() -> None:
    runs = pd.concat([GRID, frame((8, None, 1, "failed", NAN))], ignore_index=True)
    assert differences(runs).others == ("batch", "scale")


@pytest.mark.parametrize(
    ("paired", "message"),
    [
        ("norm", r"unknown table key 'norm'.*Did you mean 'model.norm'\?"),
        ("model.norm=layer", "no run has model.norm=layer: model.norm is batch, none, scale"),
        ("state=running", "no run has state=running"),
        ("alike", "alike is 1 in all runs, and two values of it are needed"),
        ("empty", "no run has empty, and two values"),
    ],
)
def test_what_cannot_be_compared(paired: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        differences(GRID.assign(alike=1, empty=NAN), paired)


def test_two_runs_of_one_seed_are_not_mixed_up() -> None:
    runs = pd.concat([GRID, GRID.iloc[:1]], ignore_index=True).assign(**{"optimizer.lr": 0.1})
    runs.loc[len(runs) - 1, "optimizer.lr"] = 0.2
    runs.attrs = GRID.attrs
    message = (
        r"2 runs have model.norm=none and seed=1 in one cell\. They differ in optimizer.lr: put it "
        r"in --rows or --cols, or choose with --where"
    )
    with pytest.raises(InputError, match=message):
        differences(runs)
    keys = ["model.depth", "optimizer.lr"]
    apart = make_differences(runs, keys, [], "test_error", "model.norm=none")
    assert apart.cells[(8, 0.2), (), "batch"].num_pairs == 1
    assert apart.cells[(8, 0.1), (), "batch"].difference.num == 3


def test_the_interval_is_students() -> None:
    first, second = [10.0, 12.0, 9.0, 11.0], [9.0, 10.0, 8.5, 9.5]
    found = paired_difference(first, second)
    # Differences -1, -2, -1/2, -3/2: mean -5/4, Σ(d - m)² = 5/4, so s = √(5/12) and s/√n = √(5/48).
    # t_{0.975, 3} = 3.1824463052842638 (tables).
    half = 3.1824463052842638 * math.sqrt(5 / 48)
    assert (found.num, found.mean) == (4, -1.25)
    # A few roundings and scipy's quantile, which is good to some 1e-14.
    assert found.low == pytest.approx(-1.25 - half, rel=1e-12)
    assert found.high == pytest.approx(-1.25 + half, rel=1e-12)
    other = stats.ttest_rel(second, first).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((other.low, other.high), rel=1e-12)


def test_a_pair_without_a_number_is_left_out() -> None:
    whole = paired_difference([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert paired_difference([1.0, NAN, 2.0, 3.0], [2.0, 0.0, 4.0, 6.0]) == whole
    assert paired_difference([1.0, 0.0, 2.0, 3.0], [2.0, NAN, 4.0, 6.0]) == whole
    assert pairwise([INF, -INF, 1.0, -INF], [INF, 1.0, -INF, INF]).tolist() == [0, INF, -INF, INF]


def test_fewer_than_two_pairs_have_no_interval() -> None:
    one = paired_difference([1.0, NAN], [3.0, 0.0])
    assert (one.num, one.mean) == (1, 2.0)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert not one.excludes_zero
    none = paired_difference([], [])
    assert none.num == 0
    assert math.isnan(none.mean)


def test_pairs_have_two_members() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0], [1.0, 2.0])
