import math
import statistics

import pandas as pd
import pytest

from condexp.errors import InputError
from condexp.results.cells import format_cell
from condexp.results.marks import Mark
from condexp.results.tables import make_table, render
from tests.results.stored import text_of

INF, NAN = math.inf, math.nan


def frame(*runs: tuple[object, ...]) -> pd.DataFrame:
    """Runs as (depth, last_bn, seed, state, test_error)."""
    names = ["model.depth", "model.last_bn", "seed", "state", "test_error"]
    table = pd.DataFrame(list(runs), columns=names)
    table.attrs["identity_keys"] = ("model.depth", "model.last_bn", "seed", "optimizer.lr")
    return table


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
    assert format_cell(cell) == "11.50 ± 2.12 (2)"


def test_what_is_not_in_the_mean_is_counted() -> None:
    table = make_table(GRID, ["model.depth"], ["model.last_bn"], "test_error")
    cell = table.cells[(8,), (True,)]
    assert (cell.mean, cell.num, dict(cell.missing)) == (4.0, 1, {"diverged": 1, "failed": 1})
    assert math.isnan(cell.std)
    assert format_cell(cell) == "4.00 (1 of 3: 1 diverged, 1 failed)"
    assert format_cell(table.cells[(14,), (False,)]) == "– (0 of 2: 1 running, 1 without value)"
    assert format_cell(table.cells.get(((14,), (True,)))) == ""
    assert sum(cell.num_runs for cell in table.cells.values()) == len(GRID)


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
    runs = frame((8, False, 1, "complete", 10.0), (8, False, 2, "complete", 13.0))
    value = "fc.input_kappa_0.5"
    runs = runs.assign(**{value: [30.0, INF], "fc.input_p_limit": list(limits)})
    table = make_table(runs, ["model.depth"], [], value)
    cell = table.cells[(8,), ()]
    assert (cell.mean, cell.mark) == (INF, mark)
    assert format_cell(cell) == text
    note = "fewer rows than p·d" if mark is Mark.ROWS else "infinite in at least one run"
    assert note in str(render(table, "markdown"))


def test_rows_and_columns_of_several_keys_and_runs_without_them() -> None:
    runs = GRID.assign(**{"model.norm": pd.Series([None, *["batch"] * 7])})
    table = make_table(runs, ["model.norm", "model.depth"], ["model.last_bn", "seed"], "test_error")
    assert table.row_keys == (("batch", 8), ("batch", 14), ("batch", 110), (None, 8))
    assert table.col_keys[0] == (False, 1)
    text = str(render(table, "markdown"))
    assert "| model.norm | model.depth | model.last_bn=False, seed=1 |" in text
    assert "| –          | 8 " in text


def test_whole_numbers_stay_whole_where_a_run_lacks_the_key() -> None:
    runs = GRID.assign(**{"model.width": [64.0, NAN, *[64.0] * 6]})
    table = make_table(runs, ["model.width"], [], "test_error")
    lines = str(render(table, "markdown")).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["64", "–"]


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


def test_markdown_is_a_table_that_parses() -> None:
    table = make_table(GRID.assign(note="a|b"), ["note"], ["model.last_bn"], "test_error")
    lines = str(render(table, "markdown")).splitlines()
    cells = [[cell.strip() for cell in line.split(" | ")] for line in lines[:3]]
    assert cells == [
        ["| note", "model.last_bn=False", "model.last_bn=True |"],
        ["| ----", "-" * 48 + ":", "-" * 41 + ": |"],
        [
            r"| a\|b",
            "11.50 ± 2.12 (2 of 4: 1 running, 1 without value)",
            "5.50 ± 2.12 (2 of 4: 1 diverged, 1 failed) |",
        ],
    ]
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[4] == "test_error: mean ± standard deviation (n) over complete runs"


def test_rich_shows_the_same_cells() -> None:
    table = make_table(GRID, ["model.depth"], ["model.last_bn"], "test_error")
    text = text_of(render(table))
    for cell in table.cells.values():
        assert format_cell(cell) in text


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


def test_a_format_that_does_not_exist() -> None:
    table = make_table(GRID, ["seed"], [], "test_error")
    with pytest.raises(InputError, match=r"unknown table format 'markdwon'.*'markdown'"):
        render(table, "markdwon")
