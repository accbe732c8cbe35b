"""Which page a folder gets, and where it is written."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from condexp.results.page.grid_page import grid_page
from condexp.results.page.paper_page import paper_page
from condexp.results.page.render import render, require_packages
from condexp.results.page.run_page import run_page
from condexp.results.select import common_folder, select
from condexp.store.files import saving
from condexp.store.reader import open_run
from condexp.store.run_folder.status import STATUS_NAME
from condexp.store.schema.layout import FILE_NAME

PAGE_NAME = "report.html"
RUN_SECTIONS = (
    ("curves", "Training"),
    ("map", "Layers over training"),
    ("layer-title", "One layer"),
    ("worst", "Worst layers"),
    ("certificates", "Certificates"),
    ("setting", "Setting"),
    ("provenance", "Provenance"),
)
SCRIPTS = {"run.html": ("curvature.js", "run.js"), "grid.html": ("grid.js",)}
GRID_SECTIONS = (("curves", "Curves"), ("means", "Means over seeds"), ("runs", "Runs"))
PAPER_SECTIONS = (
    ("verdicts", "Verdicts"),
    ("tables", "Tables"),
    ("runs", "Runs"),
    ("provenance", "Provenance"),
)


def is_run(path: Path) -> bool:
    """Tell whether a path is one run: its folder, or its results file.

    Args:
        path: The path.

    Returns:
        Whether it is.
    """
    names = (STATUS_NAME, FILE_NAME)
    return path.is_file() or any(os.path.lexists(path / name) for name in names)


def write_run_page(path: Path, output: Path | None = None) -> Path:
    """Write the page of one run, finished or not.

    Args:
        path: The run's folder, or its results file.
        output: The file; ``report.html`` in the run's folder where None.

    Returns:
        The file's path.

    Raises:
        InputError: If there is no run, or the page cannot be written.
        DamageError: If the run is damaged.
    """
    require_packages()
    run = open_run(path)
    content = run_page(run)
    sections = RUN_SECTIONS if content["step"] is not None else (RUN_SECTIONS[0], *RUN_SECTIONS[4:])
    return _save(output or run.path / PAGE_NAME, "run.html", content | {"sections": sections})


def write_grid_page(
    folders: Sequence[Path], where: Sequence[str] = (), output: Path | None = None
) -> Path:
    """Write the page of many runs.

    Args:
        folders: Run folders, or folders that hold run folders at any depth.
        where: ``key=value`` of the runs that are wanted, all of them.
        output: The file; ``report.html`` in the folder that holds all of ``folders`` where None.

    Returns:
        The file's path.

    Raises:
        InputError: If there is no such run, or the page cannot be written.
    """
    require_packages()
    runs = select(folders, where)
    target = output or common_folder(folders) / PAGE_NAME
    content = grid_page(runs, target, PAGE_NAME)
    title = ", ".join(str(folder) for folder in folders)
    named = {"title": title, "where": where, "sections": GRID_SECTIONS}
    return _save(target, "grid.html", content | named)


def write_paper_page(root: Path, where: Sequence[str] = (), output: Path | None = None) -> Path:
    """Write the page of the paper: verdicts, tables, and the runs that they rest on.

    Args:
        root: The folder that holds a folder an experiment.
        where: ``key=value`` of the runs that are wanted.
        output: The file; ``report.html`` in ``root`` where None.

    Returns:
        The file's path.

    Raises:
        InputError: If there is no such run, or the page cannot be written.
    """
    require_packages()
    target = output or root / PAGE_NAME
    content = paper_page(root, where, target)
    return _save(target, "paper.html", content | {"sections": PAPER_SECTIONS})


def _save(target: Path, template: str, content: dict[str, Any]) -> Path:
    page = render(template, content, SCRIPTS.get(template, ()))
    with saving(target) as file:
        file.write(page)
    return target
