import csv
import io
import math
import re

import pandas as pd
import pytest
from matplotlib.mathtext import MathTextParser
from rich.console import Console

from condexp.errors import InputError
from condexp.results.tables.cells import cell_entry
from condexp.results.tables.formats import Format, render
from condexp.results.tables.table import ResultTable, make_table
from tests.results.stored import text_of

KAPPA = "fc.input_kappa_0.5"


def grid() -> pd.DataFrame:
    """Complete, incomplete, empty and infinite cells; keys with every letter that needs care."""
    runs: list[tuple[object, ...]] = [
        ("a|b", False, 1, "complete", 10.0, 3.5e7),
        ("a|b", False, 2, "complete", 13.0, 4.5e7),
        ("a|b", True, 1, "complete", 4.0, 2.0),
        ("a|b", True, 2, "complete", 7.0, 2.0),
        ("a|b", True, 3, "diverged", 90.0, math.inf),
        (r"50%_{x}&y#$~^\\", False, 1, "running", 20.0, math.inf),
        (r"50%_{x}&y#$~^\\", False, 2, "complete", math.nan, math.inf),
        ("[1,2]", True, 1, "complete", 7.0, math.inf),
    ]
    names = ["note", "model.last_bn", "seed", "state", "test_error", KAPPA]
    frame = pd.DataFrame(runs, columns=names)
    frame["dataset.name"], frame["dataset.image_size"] = "digits", 6
    return frame


def table(value: str = "test_error", paired: str | None = None) -> ResultTable:
    return make_table(grid(), ["note"], ["model.last_bn"], value, paired=paired)


def test_markdown_is_a_table_that_parses() -> None:
    lines = str(render(table(), "markdown")).splitlines()
    assert lines[:2] == ["**test_error on digits, 6 px**", ""]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:7]]
    assert cells[0] == ["note", "model.last_bn=false", "model.last_bn=true"]
    assert [set(cell) for cell in cells[1]] == [{"-"}, {"-", ":"}, {"-", ":"}]
    assert cells[2:] == [
        [r"50%_{x}&y#$~^\\", "– (0 of 2: 1 running, 1 without value)", "– (0)"],
        ["[1,2]", "– (0)", "7.00 (1)"],
        [r"a\|b", "11.50 ± 2.12 (2)", "**5.50 ± 2.12** (2 of 3: 1 diverged)"],
    ]
    assert len({len(line) for line in lines[2:7]}) == 1
    assert [line for line in lines[7:] if line] == [
        "test_error: mean ± standard deviation (n) over complete runs",
        "n of m: the other runs are not in the mean, for the reason given",
        "bold: the lowest mean of each row, where all its paired 95 % intervals exclude 0",
    ]


def test_rich_shows_the_same_cells_and_the_best_without_colours_too() -> None:
    result = table()
    text = text_of(render(result))
    for cell in result.cells.values():
        assert str(cell_entry(cell)) in text
    assert text.count("*5.50 ± 2.12 (2 of 3: 1 diverged)") == 1
    assert "bold with *: the lowest mean of each row" in text
    file = io.StringIO()
    console = Console(file=file, width=200, force_terminal=True, color_system="standard")
    console.print(render(result))
    assert "\x1b[1m*5.50 ± 2.12\x1b[0m (2 of 3: 1 diverged)" in file.getvalue()


def test_latex_is_booktabs_without_a_letter_that_latex_would_take_for_a_command() -> None:
    text = str(render(table(paired="model.last_bn"), "latex"))
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 2
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert r"\caption{test\_error on digits, 6 px}" in text
    assert r"\begin{tabular}{lrr}" in text
    assert r"50\%\_\{x\}\&y\#\$\textasciitilde{}\textasciicircum{}" in text
    assert r"\textbackslash{}\textbackslash{} & -- (0 of 2: 1 running, 1 without value) &" in text
    # After a line break, a bracket would be the break's own option.
    assert "\n    {[}1,2] & " in text
    assert r"a|b & $11.50 \pm 2.12$ (2) & $\mathbf{5.50 \pm 2.12}$ (2 of 3: 1 diverged) \\" in text
    assert r"\shortstack[r]{model.last\_bn: true $-$ false}" in text
    rest = re.sub(r"\\[%&#$_{}]", "", text)
    assert rest.count("{") == rest.count("}")
    for line in rest.splitlines():
        assert line.count("$") % 2 == 0
        if line.endswith(r"\\") and line.startswith("    "):
            assert line.count("&") in {1, 2}
    # What pdflatex has no letter for is a formula or a command; the first line is a comment.
    assert rest.isascii()
    assert "%" not in rest.replace(r"% \usepackage", "")


def test_latex_formulas_parse() -> None:
    parser = MathTextParser("path")
    for value in ("test_error", KAPPA):
        text = str(render(table(value, paired="model.last_bn"), "latex"))
        formulas = re.findall(r"\$[^$]+\$", text.replace(r"\$", ""))
        assert len(formulas) > 3
        for formula in formulas:
            parser.parse(formula)
    assert r"$3.97 \cdot 10^{7} \times/\div 1.19$ (2)" in text


def test_csv_has_one_line_a_number_unrounded() -> None:
    lines = list(csv.DictReader(str(render(table(paired="model.last_bn"), "csv")).splitlines()))
    cells = [line for line in lines if line["kind"] == "cell"]
    assert len(cells) == 6  # two of them without a run
    by_place = {(line["note"], line["model.last_bn"]): line for line in cells}
    full, best = by_place["a|b", "false"], by_place["a|b", "true"]
    assert (float(full["mean"]), full["n"], full["of"], full["best"]) == (11.5, "2", "2", "false")
    assert float(full["std"]) == pytest.approx(4.5**0.5, rel=1e-15)  # to the last digit
    assert (best["n"], best["of"], best["missing"], best["best"]) == (
        "2",
        "3",
        "1 diverged",
        "true",
    )
    assert by_place["[1,2]", "false"]["of"] == "0"
    assert {line["data"] for line in lines} == {"digits, 6 px"}
    pair = next(line for line in lines if line["kind"] == "difference" and line["note"] == "a|b")
    assert (pair["model.last_bn"], pair["mean"]) == ("true - false", "-6.0")
    assert (pair["n"], pair["of"], pair["low"]) == ("2", "3", "-6.0")


def test_csv_says_why_a_mean_is_no_number() -> None:
    lines = list(csv.DictReader(str(render(table(KAPPA), "csv")).splitlines()))
    infinite = [line for line in lines if line["mean"] == "inf"]
    assert [line["mark"] for line in infinite] == ["∞", "∞"]


@pytest.mark.parametrize("output_format", list(Format))
def test_a_title_of_ones_own(output_format: Format) -> None:
    own = make_table(grid(), ["note"], [], "test_error", title="My table")
    text = text_of(render(own, output_format))
    assert ("My table" in text) == (output_format is not Format.CSV)
    assert "px" not in text or output_format is Format.CSV  # which has the data in a column


def test_a_format_that_does_not_exist() -> None:
    with pytest.raises(InputError, match=r"unknown table format 'markdwon'.*'markdown'"):
        render(table(), "markdwon")
