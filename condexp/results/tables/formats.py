"""Tables as rich, markdown, LaTeX or CSV."""

import io
import math
import re
from collections.abc import Sequence
from enum import StrEnum

import pandas as pd
from pandas.api.types import is_numeric_dtype
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from condexp.errors import choose
from condexp.results.tables.cells import Entry, Layout, lay_out
from condexp.results.tables.fitted import Fitted
from condexp.results.tables.long import long_table
from condexp.results.tables.numbers import Mark, format_number
from condexp.results.tables.table import ResultTable
from condexp.store.csv_text import write_frame

# What pdflatex has no letter for, or takes for a command.
LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "[": "{[}",  # first in a line, it would be an option of the line break before it
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "−": "$-$",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "÷": r"$\div$",
    "₁": "$_1$",
    "₀": "$_0$",
    "–": "--",
    "≥": r"$\geq$",
    "\n": " ",
}
# What a page would take for a column's border, for HTML, or for a link or picture.
MARKDOWN = {"|": "\\|", "<": "&lt;", "](": "]\\(", "\n": " "}
FORMULA = {"±": r"\pm", "×": r"\times", "÷": r"\div", "∞": r"\infty", "≥": r"\geq "}


class Format(StrEnum):
    """How a table is written."""

    RICH = "rich"
    MARKDOWN = "markdown"
    LATEX = "latex"
    CSV = "csv"


SUFFIXES = {Format.RICH: "txt", Format.MARKDOWN: "md", Format.LATEX: "tex", Format.CSV: "csv"}


def render(table: ResultTable, output_format: str = Format.RICH) -> RenderableType:
    """Write a table, with its paired differences and published values where it has them.

    Args:
        table: The table.
        output_format: One of `Format`.

    Returns:
        For ``rich`` what a console prints, else a ``str`` without a newline at its end: tables with
        notes below for ``markdown`` and ``latex``, one line a number for ``csv``.

    Raises:
        InputError: If there is no such format.
    """
    chosen = choose("table format", output_format, list(Format))
    if chosen == Format.CSV:
        text = io.StringIO()
        write_frame(long_table(table), text)
        return text.getvalue().rstrip("\n")
    layouts = lay_out(table)
    if chosen == Format.RICH:
        return Group(*(part for layout in layouts for part in _rich(layout)))
    write = _markdown if chosen == Format.MARKDOWN else _latex
    return "\n\n".join(write(layout) for layout in layouts)


def markdown_frame(frame: pd.DataFrame) -> str:
    """Write a frame as a markdown table, numbers in three significant digits.

    Args:
        frame: Columns of texts first, then of numbers.

    Returns:
        The table, without a newline at its end.

    >>> print(markdown_frame(pd.DataFrame({"net": ["a"], "mean": [0.12345], "n": [2]})))
    | net |  mean |   n |
    | --- | ----: | --: |
    | a   | 0.123 |   2 |
    """
    texts = [not is_numeric_dtype(frame[name]) for name in frame.columns]
    num_left = texts.index(False) if False in texts else len(texts)
    body = [[value_text(value) for value in row] for row in frame.itertuples(index=False)]
    return _markdown_grid([str(name) for name in frame.columns], body, num_left)


def markdown_text(text: str) -> str:
    r"""Write a text of unknown origin so that markdown shows it as it is.

    Args:
        text: The text.

    Returns:
        One line.

    >>> markdown_text("a|b <i> ![](x)")
    'a\\|b &lt;i> ![]\\(x)'
    """
    for sign, shown in MARKDOWN.items():
        text = text.replace(sign, shown)
    return text


def _markdown_grid(header: Sequence[str], body: Sequence[Sequence[str]], num_left: int) -> str:
    """Return texts as a markdown table, the first so many columns of which are set to the left."""
    lines = [[markdown_text(text) for text in line] for line in (header, *body)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    rule = ["-" * w if i < num_left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]

    def write(texts: Sequence[str]) -> str:
        padded = [
            text.ljust(w) if i < num_left else text.rjust(w)
            for i, (text, w) in enumerate(zip(texts, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    return "\n".join(map(write, (lines[0], rule, *lines[1:])))


def value_text(value: object) -> str:
    """Write a value of a frame, a number in three significant digits.

    Args:
        value: The value.

    Returns:
        ``yes`` or ``no`` for a boolean, ``–`` where there is none.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return str(Mark.MISSING) if math.isnan(value) else format_number(value)
    return str(Mark.MISSING) if value is None else str(value)


def _rich(layout: Layout) -> list[RenderableType]:
    grid = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in layout.keys:
        grid.add_column(Text(name))
    for lines in layout.columns:
        grid.add_column(Text("\n".join(lines)), justify="right", vertical="bottom")
    for keys, entries in layout.body:
        grid.add_row(*map(Text, keys), *map(_rich_entry, entries))
    # A file or a pipe has no bold.
    # A table's own title is folded to the table's width.
    return [
        Text(layout.title, style="italic"),
        Fitted(grid, len(layout.keys)),
        *(Text(note, style="dim") for note in _notes(layout, "bold with *")),
    ]


def _rich_entry(entry: Entry) -> Text:
    return Text.assemble((f"*{entry.number}", "bold") if entry.best else entry.number, entry.suffix)


def _notes(layout: Layout, mark: str = "bold") -> list[str]:
    return [*layout.notes, *([f"{mark}: {layout.best}"] if layout.best else [])]


def _markdown(layout: Layout) -> str:
    header = [*layout.keys, *map(", ".join, layout.columns)]
    body = [[*keys, *map(_markdown_entry, entries)] for keys, entries in layout.body]
    table = _markdown_grid(header, body, len(layout.keys))
    texts = [f"**{markdown_text(layout.title)}**", table, *map(markdown_text, _notes(layout))]
    return "\n\n".join(texts)


def _markdown_entry(entry: Entry) -> str:
    return f"**{entry.number}**{entry.suffix}" if entry.best else str(entry)


def _latex(layout: Layout) -> str:
    lines = [
        [*map(_escape, layout.keys), *map(_latex_header, layout.columns)],
        *([*map(_escape, keys), *map(_latex_entry, entries)] for keys, entries in layout.body),
    ]
    header, *body = (f"    {' & '.join(line)} \\\\" for line in lines)
    notes = (f"  {_escape(note)}.\\\\" for note in _notes(layout))
    return "\n".join([
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{_escape(layout.title)}}}",
        rf"  \begin{{tabular}}{{{'l' * len(layout.keys)}{'r' * len(layout.columns)}}}",
        r"    \toprule",
        header,
        r"    \midrule",
        *body,
        r"    \bottomrule",
        r"  \end{tabular}",
        "",
        r"  \footnotesize\raggedright",
        *notes,
        r"\end{table}",
    ])


def _escape(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


def _latex_header(lines: Sequence[str]) -> str:
    stack = r" \\ ".join(map(_escape, lines))
    return rf"\shortstack[r]{{{stack}}}"


def _latex_entry(entry: Entry) -> str:
    number = entry.number
    if any(letter.isdigit() for letter in number):
        power = re.sub(r"(?<=\d)e(-?\d+)", r" \\cdot 10^{\1}", number)
        formula = power.replace("median", r"\mathrm{median}")
        for letter, command in FORMULA.items():
            formula = formula.replace(letter, command)
        number = f"$\\mathbf{{{formula}}}$" if entry.best else f"${formula}$"
    else:
        number = _escape(number)
    return f"{number}{_escape(entry.suffix)}"
