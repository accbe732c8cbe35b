"""The paper's tables, figures and claims as one page, from stored runs alone."""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from condexp.errors import InputError, near_path
from condexp.results.claims import CLAIMS, Claim
from condexp.results.claims.conditions import ENDED
from condexp.results.claims.verdict import Verdict
from condexp.results.collect import collect
from condexp.results.report_origins import commands, describe_machines, describe_runs
from condexp.results.select import select, with_snapshots, with_those_that_can
from condexp.results.tables.formats import Format, markdown_frame, markdown_text, render
from condexp.results.tables.table import ResultTable, make_table
from condexp.store.csv_text import write_frame
from condexp.store.files import saving

REPORT_NAME = "REPORT.md"
JUDGED = "claims"
PAIRED = "model.last_bn"
NO_VERDICT = "cannot be said"
VALUES = ("test_error", "last_linear.input_kappa_0.5")


@dataclass(frozen=True)
class TableKeys:
    """Rows and columns of one of the paper's tables."""

    rows: tuple[str, ...]
    cols: tuple[str, ...]


TABLES: Mapping[str, TableKeys] = {
    "table1": TableKeys(("model.depth",), ("model.name", PAIRED)),
    "table2": TableKeys(("model.depth",), ("model.name", PAIRED)),
    "table3": TableKeys(("model.depth",), (PAIRED, "model.dropout")),
}
EXPERIMENTS = tuple(
    dict.fromkeys([*TABLES, *(name for claim in CLAIMS.values() for name in claim.experiments)])
)


@dataclass(frozen=True)
class Paper:
    """What an output folder holds of the paper.

    Attributes:
        root: The folder.
        where: Conditions that the runs meet.
        found: Run folders by experiment.
        missing: Why an experiment has none.
        verdicts: By the claim's figure; a text says why there is none.
        judged: What each verdict was given on, likewise: a frame that the claim's ``judge`` takes.
    """

    root: Path
    where: Sequence[str]
    found: Mapping[str, list[Path]]
    missing: Mapping[str, str]
    verdicts: Mapping[str, Verdict | str]
    judged: Mapping[str, pd.DataFrame]


def read_paper(root: Path, where: Sequence[str] = ()) -> Paper:
    """Read the paper's runs and judge its claims.

    Args:
        root: The folder that holds a folder an experiment: ``table1``, ``fig_validation``, …
        where: ``key=value`` of the runs that are wanted, such as ``profile=cpu``.

    Returns:
        What was found.

    Raises:
        InputError: If there is no such folder, or none of the paper's experiments has such a run.
    """
    if not root.is_dir():
        raise InputError(f"there is no folder {root}.{near_path(root)}")
    found, missing = _find(root, where)
    if not found:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in missing.items())
        raise InputError(
            f"nothing to report: none of the paper's experiments, which 'make paper' runs, has a "
            f"run that is wanted:{reasons}"
        )
    verdicts: dict[str, Verdict | str] = {}
    frames = {}
    for name, claim in CLAIMS.items():
        try:
            verdicts[name], frames[name] = _judge(claim, found)
        except InputError as reason:
            verdicts[name] = str(reason)
    return Paper(root, where, found, missing, verdicts, frames)


def write_report(root: Path, where: Sequence[str] = (), output: Path | None = None) -> Path:
    """Write what an output folder holds of the paper: tables, figures, verdicts, and their origin.

    Nothing is trained or drawn: figures are linked to where ``condexp figure`` wrote them. An
    experiment without runs is named as missing. Beside the page, ``claims/<figure>.csv`` holds what
    each verdict was given on: ``CLAIMS[figure].judge`` gives it again from this file alone.

    Args:
        root: As for `read_paper`.
        where: Likewise.
        output: The file; ``REPORT.md`` in ``root`` where None.

    Returns:
        The file's path.

    Raises:
        InputError: As for `read_paper`, or if the page cannot be written.
    """
    paper = read_paper(root, where)
    target = output if output is not None else root / REPORT_NAME
    parts = [
        "# The paper's tables, figures and claims, from stored runs",
        *_summary(paper.verdicts, where),
        *_tables(paper.found),
        *_claims(root, target.parent, paper.verdicts),
        *_origins(paper.found, paper.missing),
    ]
    for name, frame in paper.judged.items():
        text = io.StringIO()
        write_frame(frame, text)
        with saving(target.parent / JUDGED / f"{name}.csv") as file:
            file.write(text.getvalue().encode(errors="replace"))
    with saving(target) as file:
        file.write(("\n\n".join(parts) + "\n").encode(errors="replace"))
    return target


def _find(root: Path, where: Sequence[str]) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Return the run folders by experiment, and why an experiment has none."""
    found, missing = {}, {}
    for name in EXPERIMENTS:
        if not (root / name).is_dir():
            missing[name] = f"{root / name} does not exist"
            continue
        try:
            found[name] = select([root / name], where)
        except InputError as reason:
            missing[name] = str(reason)
    return found, missing


def _judge(claim: Claim, found: Mapping[str, Sequence[Path]]) -> tuple[Verdict, pd.DataFrame]:
    # The verdict, and what it was given on; refuses where there is none.
    folders = [folder for name in claim.experiments for folder in found.get(name, ())]
    # The last snapshot of a run that stopped on its way is not the others'.
    runs = with_snapshots(folders)
    ended = [run for run in runs if run.status.get("state", ENDED[0]) in ENDED]
    if not ended:
        raise InputError(f"no run of {' or '.join(claim.experiments)} has ended with a snapshot")
    frame = with_those_that_can(ended, claim.measure)
    verdict = claim.judge(frame)
    left_out = len(folders) - len(ended)
    if left_out and verdict.shown:
        # How many runs there are was fixed beforehand: the others may still change it.
        verdict = replace(verdict, shown=None)
    note = f"{left_out} of {len(folders)} runs did not end with a snapshot and are left out"
    return replace(verdict, remarks=(*[note] * (left_out > 0), *verdict.remarks)), frame


def _summary(verdicts: Mapping[str, Verdict | str], where: Sequence[str]) -> Iterator[str]:
    if where:
        yield f"Runs with {' and '.join(f'`{condition}`' for condition in where)}."
    rows = [
        {
            "claim": str(CLAIMS[name].number),
            "figure": name,
            "verdict": verdict.answer if isinstance(verdict, Verdict) else NO_VERDICT,
        }
        for name, verdict in verdicts.items()
    ]
    yield markdown_frame(pd.DataFrame(rows))


def _tables(found: Mapping[str, Sequence[Path]]) -> Iterator[str]:
    yield "## Tables"
    for name, keys in TABLES.items():
        yield f"### {name}"
        if name not in found:
            yield f"Missing: no such runs. They are made by `make {name}`."
            continue
        frame = collect(found[name])
        for value in VALUES:
            yield _table(frame, keys, value)


def _table(frame: pd.DataFrame, keys: TableKeys, value: str) -> str:
    table, reason = paper_table(frame, keys, value)
    parts = [str(render(table, Format.MARKDOWN))] if table else []
    return "\n\n".join([*parts, *([markdown_text(reason)] if reason else [])])


def paper_table(
    frame: pd.DataFrame, keys: TableKeys, value: str
) -> tuple[ResultTable | None, str | None]:
    """Make one of the paper's tables, with paired differences where there are pairs.

    Args:
        frame: One row a run, from `collect`.
        keys: Its rows and columns.
        value: What is averaged.

    Returns:
        The table, None where no run has the value; and what it lacks.
    """
    published = value == "test_error"
    try:
        paired = make_table(frame, keys.rows, keys.cols, value, paired=PAIRED, published=published)
    except InputError as reason:
        # A sweep that is not complete yet may have no pairs, or no run with this value.
        try:
            return make_table(frame, keys.rows, keys.cols, value, published=published), str(reason)
        except InputError as missing:
            return None, f"{value}: {missing}"
    return paired, None


def _claims(root: Path, folder: Path, verdicts: Mapping[str, Verdict | str]) -> Iterator[str]:
    yield "## Claims"
    for name, verdict in verdicts.items():
        claim = CLAIMS[name]
        if isinstance(verdict, str):
            yield f"### Claim {claim.number}: {name}"
            yield f"**Verdict: {NO_VERDICT}.** {markdown_text(verdict)}"
        else:
            yield f"### Claim {claim.number}: {verdict.statement}"
            yield f"Counts as shown when {verdict.criterion}."
            yield f"What would refute it: {verdict.refuted}."
            yield f"**Verdict: {verdict.answer}.**"
            for table in verdict.shown_tables:
                if table.caption:
                    yield f"{table.caption}:"
                yield markdown_frame(table.rows)
            if verdict.remarks:
                yield "\n".join(f"- {markdown_text(remark)}" for remark in verdict.remarks)
        yield _figure(root, folder, name)


def _figure(root: Path, folder: Path, name: str) -> str:
    picture = find_picture(root, name)
    if picture is not None:
        return f"![{name}]({Path(os.path.relpath(picture, folder)).as_posix()})"
    target = f"fig_{name}".replace("_", "-")
    return f"No figure yet: it is drawn by `make {target}`, or `condexp figure {name}`."


def find_picture(root: Path, name: str) -> Path | None:
    """Find the figure of a claim where ``condexp figure`` or ``make`` wrote it.

    Args:
        root: The paper's folder.
        name: The figure's name.

    Returns:
        The picture; None where there is none.
    """
    places = (f"fig_{name}", *CLAIMS[name].experiments)
    pictures = (root / place / f"{name}.png" for place in places)
    return next((picture for picture in pictures if picture.is_file()), None)


def _origins(found: Mapping[str, Sequence[Path]], missing: Mapping[str, str]) -> Iterator[str]:
    folders = [folder for own in found.values() for folder in own]
    yield "## Runs"
    yield markdown_frame(describe_runs(found))
    if missing:
        yield "Missing experiments:"
        yield "\n".join(f"- {name}: {markdown_text(reason)}" for name, reason in missing.items())
    yield "## Commands"
    yield "\n".join(["```", *commands(folders), "```"])
    yield "## Versions and hardware"
    yield markdown_frame(describe_machines(folders))
