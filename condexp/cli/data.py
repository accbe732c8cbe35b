"""``condexp data fetch|verify NAME``: the files of a data set, or their checksums offline."""

from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from condexp.cli.parsing import make_parser
from condexp.data.fetch import fetch
from condexp.data.imagenet import BY_HAND, find_imagenet, verify_imagenet
from condexp.data.sources import SOURCES, source_of
from condexp.errors import InputError, choose
from condexp.results.console import make_console

WITHOUT_FILES = {
    "digits": "it comes with scikit-learn",
    "gaussian": "it is drawn from its seed",
}
NAMES = (*WITHOUT_FILES, *SOURCES, "imagenet")


def run(args: list[str]) -> int:
    """Fetch the files of a data set, or verify them.

    Args:
        args: The command line after the verb.

    Returns:
        0; 2 if a file that is verified is missing or differs.
    """
    parser = make_parser("data", "fetch the files of a dataset, or verify them offline")
    actions = parser.add_subparsers(dest="action", required=True, metavar="fetch|verify")
    fetching = actions.add_parser("fetch", help="download or copy the files, checksums compared")
    verifying = actions.add_parser("verify", help="compare the files with their checksums")
    for action in (fetching, verifying):
        action.add_argument("name", metavar="NAME", help="the dataset")
        action.add_argument("--root", type=Path, metavar="DIR", help="dataset.root (default: data)")
    origin = fetching.add_mutually_exclusive_group()
    origin.add_argument("--mirror", metavar="URL", help="a folder, or the file, on another server")
    origin.add_argument("--archive", type=Path, metavar="FILE", help="a copy on this machine")
    options = parser.parse_args(args)
    if options.action == "verify":
        return verify_data(options.name, options.root)
    return fetch_data(options.name, options.root, options.mirror, options.archive)


def fetch_data(name: str, root: Path | None, mirror: str | None, archive: Path | None) -> int:
    """Fetch the files of a data set, and print where they are.

    Args:
        name: The data set.
        root: Folder of the data sets; None is ``data``.
        mirror: Address to take the files from.
        archive: A local copy to take them from.

    Returns:
        0.

    Raises:
        InputError: If the data set is unknown, or its files cannot be had.
    """
    console = make_console()
    if choose("dataset", name, NAMES) in WITHOUT_FILES:
        console.print(f"{name}: nothing to fetch, {WITHOUT_FILES[name]}")
        return 0
    if name == "imagenet":
        raise InputError(f"dataset imagenet: {BY_HAND}. Then set dataset.root=<folder>.")
    source = source_of(name)
    if source.note and mirror is None and archive is None:
        console.print(f"note: {source.note}", soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(24), DownloadColumn())
    with Progress(
        *columns, TransferSpeedColumn(), console=console, disable=not console.is_terminal
    ) as bars:
        tasks = {file: bars.add_task(file, total=None, visible=False) for file in source.downloads}
        folder = fetch(
            source,
            root,
            mirror=mirror,
            archive=archive,
            progress=lambda file, done, total: bars.update(
                tasks[file], completed=done, total=total, visible=True
            ),
        )
    console.print(f"{name}: complete in {folder}, all checksums agree", soft_wrap=True)
    return 0


def verify_data(name: str, root: Path | None) -> int:
    """Compare the files of a data set with their published checksums, and print the result.

    Args:
        name: The data set.
        root: Folder of the data sets; None is ``data``.

    Returns:
        0 if all agree, 2 if one does not.
    """
    console = make_console()
    if choose("dataset", name, NAMES) in WITHOUT_FILES:
        console.print(f"{name}: nothing to verify, {WITHOUT_FILES[name]}")
        return 0
    if name == "imagenet":
        folder, problems = find_imagenet(root), verify_imagenet(root)
        agree = "classes and images are as many as in ILSVRC 2012"
    else:
        source = source_of(name)
        folder = source.locate(root)
        found = {file: source.problem(folder, file) for file in source.files}
        problems = [f"{folder / file} {problem}" for file, problem in found.items() if problem]
        agree = f"all {len(found)} checksums agree"
    for problem in problems:
        console.print(f"[red]{name}[/]: {problem}", soft_wrap=True)
    if not problems:
        console.print(f"{name}: {folder}: {agree}", soft_wrap=True)
    return 2 if problems else 0
