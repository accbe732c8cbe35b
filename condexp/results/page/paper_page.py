"""The page of the paper: the verdict on each claim, the tables, and the runs they rest on."""

import base64
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from condexp.errors import InputError
from condexp.results.claims import CLAIMS
from condexp.results.claims.verdict import Verdict
from condexp.results.collect import collect
from condexp.results.report import (
    TABLES,
    VALUES,
    Paper,
    find_picture,
    paper_table,
    read_paper,
)
from condexp.results.report_origins import commands, describe_machines, describe_runs
from condexp.results.run_view import EXPLANATIONS
from condexp.results.tables.cells import lay_out
from condexp.results.tables.formats import value_text
from condexp.store.files import read_bytes

PICTURE_BYTES = 1 << 20  # of each; five of them, and a page has still less than ten megabytes
STATES = {True: "shown", False: "not", None: "unknown"}


def paper_page(root: Path, where: Sequence[str], target: Path) -> dict[str, Any]:
    """Gather what the page of the paper shows.

    Args:
        root: The folder that holds a folder an experiment.
        where: ``key=value`` of the runs that are wanted.
        target: Where the page will be, for links that go from there.

    Returns:
        What the template ``paper.html`` takes.

    Raises:
        InputError: As for `read_paper`.
    """
    paper = read_paper(root, where)
    folders = [folder for own in paper.found.values() for folder in own]
    runs = describe_runs(paper.found)
    return {
        "title": "The paper's claims and tables, from stored runs",
        "folder": str(root),
        "where": where,
        "claims": list(_claims(paper)),
        "tables": list(_tables(paper)),
        "run_columns": list(runs.columns),
        "runs": runs.values.tolist(),
        "links": [
            (name, [(each.name, _link(each, target)) for each in own])
            for name, own in paper.found.items()
        ],
        "missing": list(paper.missing.items()),
        "commands": commands(folders),
        "machines": describe_machines(folders).values.tolist(),
        "explanations": list(EXPLANATIONS.values()),
    }


def _claims(paper: Paper) -> Iterator[dict[str, Any]]:
    for name, verdict in paper.verdicts.items():
        if isinstance(verdict, str):  # why there is none
            nothing = pd.DataFrame()
            number = CLAIMS[name].number
            verdict = Verdict(number, name, "", "", None, nothing, remarks=(verdict,))
        yield {
            "name": name,
            "verdict": verdict,
            "state": STATES[verdict.shown],
            "tables": [
                (table.caption, *_texts(table.rows))
                for table in verdict.shown_tables
                if len(table.rows)
            ],
            "picture": _picture(paper.root, name),
            "target": f"fig_{name}".replace("_", "-"),
        }


def _picture(root: Path, name: str) -> str:
    """Return a picture itself; empty where there is none of a size that a page can hold."""
    picture = find_picture(root, name)
    if picture is None:
        return ""
    try:
        content = read_bytes(picture, PICTURE_BYTES)
    except InputError:
        return ""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _link(folder: Path, target: Path) -> str:
    return Path(os.path.relpath(folder.absolute(), target.parent.absolute())).as_posix() + "/"


def _texts(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    rows = [list(map(value_text, row)) for row in frame.itertuples(index=False)]
    return list(map(str, frame.columns)), rows


def _tables(paper: Paper) -> Iterator[dict[str, Any]]:
    for name, keys in TABLES.items():
        layouts, notes = [], []
        if name in paper.found:
            frame = collect(paper.found[name])
            for value in VALUES:
                table, reason = paper_table(frame, keys, value)
                layouts += lay_out(table) if table else []
                notes += [reason] if reason else []
        yield {"name": name, "layouts": layouts, "notes": notes}
