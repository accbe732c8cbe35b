"""A figure by its name: of the runs that were asked for, where it belongs."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from condexp.errors import InputError, choose
from condexp.results.figures import OF_GRIDS, OF_ONE_RUN, OPTIONS, find_figure
from condexp.results.figures.style import BlankFigureError, Size
from condexp.results.select import (
    common_folder,
    has_snapshots,
    leaving_out_unreadable,
    opened,
    select,
    with_snapshots,
    with_those_that_can,
)
from condexp.results.sharpness import has_sharpness
from condexp.store.reader import open_run

logger = logging.getLogger("condexp")


@dataclass(frozen=True)
class Drawn:
    """What became of a figure.

    Attributes:
        files: What was written: for each figure a PDF, PNG, SVG and CSV.
        left_out: Runs without a number to draw, such as one that failed before its first step, and
            those that cannot be read.
    """

    files: tuple[Path, ...]
    left_out: tuple[Path, ...] = ()


def draw(
    name: str,
    folders: Sequence[Path],
    *,
    where: Sequence[str] = (),
    output: Path | None = None,
    size: str = Size.TEXT,
    **options: str,
) -> Drawn:
    """Draw a figure of stored runs.

    Args:
        name: The figure's name.
        folders: Run folders, or folders that hold run folders at any depth.
        where: ``key=value`` of the runs that are wanted, all of them.
        output: Folder to write to; where None the folder that holds all of ``folders``, and for a
            figure of one run the run's own.
        size: ``column`` or ``text``.
        **options: What this figure takes besides: see ``OPTIONS``.

    Returns:
        The files.

    Raises:
        InputError: If there is no such figure, size or run, or the runs lack what is drawn.
        BlankFigureError: If they hold no number of it.
    """
    draw_runs = find_figure(name)
    width = Size(choose("size", size, Size))
    if foreign := [option for option in options if option not in OPTIONS.get(name, ())]:
        takers = [each for each, taken in OPTIONS.items() if foreign[0] in taken]
        who = " and ".join([", ".join(takers[:-1]), takers[-1]]) if takers[1:] else takers[0]
        raise InputError(f"{name} takes no --{foreign[0]}: {who} do.")
    selected = select(folders, where)
    can_show = has_sharpness if name == "sharpness" else has_snapshots
    if name in OF_ONE_RUN:
        targets = [_own_folder(folder, len(selected), output) for folder in selected]
        written: list[Path] = []
        blank: list[Path] = []
        for folder, target in zip(selected, targets, strict=True):
            if len(selected) == 1:
                written += draw_runs([open_run(folder)], target, size=width, **options)
                continue
            with leaving_out_unreadable(folder):
                try:
                    written += draw_runs([open_run(folder)], target, size=width, **options)
                except BlankFigureError:
                    blank.append(folder)
        return Drawn(tuple(written), tuple(blank))
    if len(selected) == 1:  # its damage is all that there is to say
        runs = [run for folder in selected if (run := opened(folder, can_show)) is not None]
    else:
        runs = with_snapshots(selected, can_show)
    if not runs:
        raise InputError(
            f"none of {len(selected)} runs has a snapshot to draw: the first is taken at step 0, "
            "unless analysis=none or analysis.schedule says otherwise."
        )
    measured = {run.path for run in runs}
    if len(runs) == 1 and name in OF_GRIDS:
        logger.warning("%s compares the runs of a grid, and this is one run", name)
    target = output or common_folder(folders)
    files = with_those_that_can(runs, lambda some: draw_runs(some, target, size=width, **options))
    return Drawn(files, tuple(folder for folder in selected if folder not in measured))


def _own_folder(run: Path, num_runs: int, output: Path | None) -> Path:
    if output is None:
        return run
    return output / run.name if num_runs > 1 else output
