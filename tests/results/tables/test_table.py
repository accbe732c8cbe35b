import math
import statistics
from pathlib import Path

import pandas as pd
import pytest

from condexp.errors import InputError
from condexp.results.collect import collect
from condexp.results.tables.cells import cell_entry
from condexp.results.tables.formats import render
from condexp.results.tables.numbers import Mark
from condexp.results.tables.table import describe_data, make_table
from tests.results.stored import grid_frame, write_run

INF, NAN = math.inf, math.nan


def frame(*runs: tuple[object, ...]) -> pd.DataFrame:
    """Runs as (depth, last_bn, seed, state, test_error)."""
    return grid_frame("model.last_bn", runs)


GRID = frame(
    (8, False, 1, "complete", 10.0),
    (8, False, 2, "complete", 13.0),
    (8, True, 1, "complete", 4.0),
    (8, True, 2, "diverged", 90.0),
    (8, True, 3, "failed", NAN),
    (14, False, 1, "running", 20.0),
    (14, False, 2, "complete", NAN),
    (110, True, 1, "complete", 7.0),
)


def test_mean_and_deviation_over_the_runs_of_a_cell() -> None:
    table = make_table(GRID, ["model.depth"], ["model.last_bn"], "test_error")
    assert table.row_keys == ((8,), (14,), (110,))  # by size, not by spelling
    assert table.col_keys == ((False,), (True,))
    cell = table.cells[(8,), (False,)]
    assert (cell.mean, cell.num, cell.num_runs) == (11.5, 2, 2)
    # Both are sums of two terms in float64.
    assert cell.std == pytest.approx(statistics.stdev([10.0, 13.0]), rel=1e-14)
    assert str(cell_entry(cell)) == "11.50 ± 2.12 (2)"


def test_what_is_not_in_the_mean_is_counted() -> None:
    table = make_table(GRID, ["model.depth"], ["model.last_bn"], "test_error")
    cell = table.cells[(8,), (True,)]
    assert (cell.mean, cell.num, dict(cell.missing)) == (4.0, 1, {"diverged": 1, "failed": 1})
    assert math.isnan(cell.std)
    assert str(cell_entry(cell)) == "4.00 (1 of 3: 1 diverged, 1 failed)"
    assert str(cell_entry(table.cells[(14,), (False,)])) == "– (0 of 2: 1 running, 1 without value)"
    assert str(cell_entry(table.cells.get(((14,), (True,))))) == "– (0)"  # no run, and it is said
    assert sum(cell.num_runs for cell in table.cells.values()) == len(GRID)


KAPPA, HIGH = "fc.input_kappa_0.5", "fc.input_kappa_high_0.5"


def of_kappas(*kappas: float, limits: tuple[float, ...] = ()) -> pd.DataFrame:
    runs = frame(*((8, False, seed, "complete", 1.0) for seed in range(len(kappas))))
    limit = list(limits) or [1.0] * len(kappas)
    return runs.assign(**{KAPPA: kappas, "fc.input_p_limit": limit})


@pytest.mark.parametrize(
    ("limits", "mark", "text"),
    [
        ((1.0, 0.25), Mark.ROWS, "rows (2)"),
        ((1.0, 0.5), Mark.INFINITE, "∞ (2)"),
        ((1.0, NAN), Mark.INFINITE, "∞ (2)"),
    ],
)
def test_an_infinite_condition_number_is_not_averaged_away(
    limits: tuple[float, float], mark: Mark, text: str
) -> None:
    runs = of_kappas(INF, INF, limits=(limits[1], limits[1]))
    table = make_table(runs, ["model.depth"], [], KAPPA)
    cell = table.cells[(8,), ()]
    assert (cell.mean, cell.mark) == (INF, mark)
    assert str(cell_entry(cell)) == text
    note = "fewer rows than p·d" if mark is Mark.ROWS else "the median stands, ∞ being the largest"
    assert note in str(render(table, "markdown"))


def test_condition_numbers_have_a_geometric_mean_and_a_factor() -> None:
    cell = make_table(of_kappas(1e3, 1e5), ["model.depth"], [], KAPPA).cells[(8,), ()]
    assert cell.mean == pytest.approx(1e4)
    assert cell.std == pytest.approx(math.sqrt(2))
    assert str(cell_entry(cell)) == "10000 ×/÷ 26 (2)"
    assert str(
        cell_entry(make_table(of_kappas(1e3), ["model.depth"], [], KAPPA).cells[(8,), ()])
    ) == ("1000 (1)")


def test_the_median_stands_where_a_run_is_infinite() -> None:
    table = make_table(of_kappas(30.0, INF, 40.0), ["model.depth"], [], KAPPA)
    cell = table.cells[(8,), ()]
    assert (cell.mean, cell.num_infinite) == (40, 1)
    assert math.isnan(cell.std)
    assert str(cell_entry(cell)) == "median 40 (3, ∞ in 1)"


def test_a_lower_bound_makes_the_mean_one() -> None:
    runs = of_kappas(1e6, 4e6, 4e6).assign(**{HIGH: [1.01e6, INF, 4.1e6]})
    table = make_table(runs, ["model.depth"], [], KAPPA)
    cell = table.cells[(8,), ()]
    assert (cell.num_bounds, cell.num_infinite) == (1, 0)
    assert str(cell_entry(cell)) == "≥ 2.52e6 ×/÷ 2.23 (3)"
    assert "≥: a run's number is a lower bound" in str(render(table, "markdown"))
    assert r"$\geq  2.52 \cdot 10^{6} \times/\div 2.23$ (3)" in str(render(table, "latex"))
    # Exactly infinite is said as ever, and a file without intervals is as it was.
    exact = runs.assign(**{KAPPA: [INF] * 3, HIGH: [INF] * 3})
    assert str(cell_entry(make_table(exact, ["model.depth"], [], KAPPA).cells[(8,), ()])) == "∞ (3)"


def test_a_lower_bound_is_never_the_best() -> None:
    runs = pd.concat([errors(8, False, 5, 6, 7), errors(8, True, 3, 4, 5.1)], ignore_index=True)
    runs[KAPPA] = runs["test_error"]
    runs[HIGH] = [5.1, 6.1, 7.1, 3.1, 4.1, 5.2]
    assert make_table(runs, ["model.depth"], ["model.last_bn"], KAPPA).best
    runs.loc[3, HIGH] = INF
    assert not make_table(runs, ["model.depth"], ["model.last_bn"], KAPPA).best


def test_rows_and_columns_of_several_keys_and_runs_without_them() -> None:
    runs = GRID.assign(**{"model.norm": pd.Series([None, *["batch"] * 7])})
    table = make_table(runs, ["model.norm", "model.depth"], ["model.last_bn", "seed"], "test_error")
    assert table.row_keys == (("batch", 8), ("batch", 14), ("batch", 110), (None, 8))
    assert table.col_keys[0] == (False, 1)
    text = str(render(table, "markdown"))
    assert "| model.norm | model.depth | model.last_bn=false, seed=1 |" in text
    assert "| –          | 8 " in text


def test_whole_numbers_stay_whole_where_a_run_lacks_the_key() -> None:
    runs = GRID.assign(**{"model.width": [64.0, NAN, *[64.0] * 6]})
    table = make_table(runs, ["model.width"], [], "test_error")
    lines = str(render(table, "markdown")).splitlines()
    assert [line.split("|")[1].strip() for line in lines[4:6]] == ["64", "–"]


def test_a_cell_over_more_than_seeds_says_so() -> None:
    runs = GRID.copy()
    runs["optimizer.lr"] = [0.1, 0.2, *[0.1] * 6]
    runs["run.root"] = list("abcdefgh")
    runs.attrs = GRID.attrs
    table = make_table(runs, ["model.depth"], [], "test_error")
    assert table.varied == ("model.last_bn", "optimizer.lr")
    assert "runs in a cell also differ in model.last_bn, optimizer.lr" in str(
        render(table, "markdown")
    )
    assert make_table(GRID, ["model.depth"], ["model.last_bn"], "test_error").varied == ()


def errors(depth: int, last_bn: bool, *errors: float) -> pd.DataFrame:
    return frame(*((depth, last_bn, seed, "complete", e) for seed, e in enumerate(errors)))


def test_the_best_of_each_row_where_its_pairs_tell_it_from_the_others() -> None:
    runs = pd.concat(
        [
            *(errors(8, False, 10, 11, 12), errors(8, True, 8, 9, 10.1)),
            # Two decades apart on average, but the interval contains 0.
            *(errors(20, False, 10, 90, 10), errors(20, True, 9, 8, 10)),
            # A cell beside it with one run only cannot be told from it.
            *(errors(56, False, 10), errors(56, True, 1, 1.1, 1.2)),
            *(errors(110, False, 7), errors(110, True, 7)),
        ],
        ignore_index=True,
    )
    table = make_table(runs, ["model.depth"], ["model.last_bn"], "test_error")
    assert table.best == {((8,), (True,))}


def test_the_best_of_the_only_column() -> None:
    runs = pd.concat([
        errors(8, True, 5, 6, 7),
        errors(14, True, 3, 4, 5.1),
        errors(20, True, 9, 8, 9),
    ])
    assert make_table(runs, ["model.depth"], [], "test_error").best == {((14,), ())}
    assert make_table(runs.iloc[:3], ["model.depth"], [], "test_error").best == frozenset()


def test_seeds_that_repeat_make_no_pairs() -> None:
    runs = pd.concat([errors(8, False, 5, 6, 7), errors(8, True, 3, 4, 5.1)])
    twice = pd.concat([runs, runs.assign(test_error=runs["test_error"] - 1)])
    assert make_table(runs, ["model.depth"], ["model.last_bn"], "test_error").best
    assert not make_table(twice, ["model.depth"], ["model.last_bn"], "test_error").best


@pytest.mark.parametrize("value", [KAPPA, "train_loss", "fc.trace"])
def test_only_where_less_is_better_is_there_a_best(value: str) -> None:
    runs = pd.concat([errors(8, False, 5, 6, 7), errors(8, True, 3, 4, 5.1)], ignore_index=True)
    runs[value] = runs["test_error"]
    table = make_table(runs, ["model.depth"], ["model.last_bn"], value)
    assert bool(table.best) == (value != "fc.trace")
    assert ("bold" in str(render(table, "markdown"))) == (value != "fc.trace")


def test_six_infinite_pairs_are_told_apart_by_their_ranks() -> None:
    runs = pd.concat([errors(8, False, *[1.0] * 6), errors(8, True, *[1.0] * 6)], ignore_index=True)
    runs[KAPPA] = [INF] * 6 + [10.0] * 6
    assert make_table(runs, ["model.depth"], ["model.last_bn"], KAPPA).best == {((8,), (True,))}
    few = runs[runs["seed"] < 5]  # p = 2/32
    assert not make_table(few, ["model.depth"], ["model.last_bn"], KAPPA).best


@pytest.mark.parametrize(
    ("rows", "value", "message"),
    [
        (["depth"], "test_error", r"unknown table key 'depth'.*Did you mean 'model.depth'\?"),
        (["model.dept"], "test_error", r"Did you mean 'model.depth'\?"),
        (["seed"], "test_eror", r"Did you mean 'test_error'\?"),
        (["seed"], "state", "cannot average 'state': its values are not numbers"),
        (["seed"], "model.last_bn", "cannot average 'model.last_bn'"),
    ],
)
def test_keys_that_do_not_exist(rows: list[str], value: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_table(GRID, rows, [], value)


SMALL = {
    "dataset.name": "fashion_mnist",
    "dataset.subset.train": 8000,
    "dataset.subset.test": None,
    "dataset.image_size": 14,
    "trainer.epochs": 8,
    "trainer.steps": None,
}
FULL = {
    "dataset.name": "cifar10",
    "dataset.subset.train": None,
    "dataset.image_size": None,
    "trainer.epochs": 160,
}


def test_a_small_grid_is_called_so() -> None:
    words = "fashion_mnist, 8000 training images, 14 px, 8 epochs"
    assert describe_data(pd.DataFrame([SMALL, SMALL])) == words


def test_what_is_as_the_data_set_has_it_is_not_said() -> None:
    assert describe_data(pd.DataFrame([FULL])) == "cifar10, 160 epochs"


def test_runs_that_differ_are_not_said_to_be_alike() -> None:
    words = "fashion_mnist and cifar10, all or 8000 training images, unchanged or 14 px"
    assert describe_data(pd.DataFrame([SMALL, FULL])) == f"{words}, 8 or 160 epochs"


def test_a_run_without_a_configuration_changes_nothing() -> None:
    unread = {"dataset.name": None}
    assert describe_data(pd.DataFrame([SMALL, unread])) == describe_data(pd.DataFrame([SMALL]))
    assert describe_data(pd.DataFrame({"state": ["pending"]})) == ""
    assert describe_data(pd.DataFrame([unread])) == ""


def test_steps_are_said_where_they_end_a_run() -> None:
    steps = FULL | {"trainer.steps": 100}
    assert describe_data(pd.DataFrame([steps])) == "cifar10, 160 epochs, at most 100 steps"


def test_runs_that_cannot_be_read_are_not_met_with_a_key_that_was_right(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text("model: [")
    with pytest.raises(InputError, match=r"none of 1 runs can be read.*'condexp status' says"):
        make_table(collect(run, ["seed", "test_error"]), ["seed"], [], "test_error")
    key = "last_linear.input_kappa_0.5"
    empty = write_run(tmp_path / "empty", snapshot_steps=())
    with pytest.raises(InputError, match="None of these runs has a snapshot"):
        make_table(collect(empty, ["seed", key]), ["seed"], [], key)
