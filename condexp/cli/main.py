"""The command line: one word says what to do, Hydra's overrides say with what.

Nothing heavy is imported here: ``condexp --help`` answers at once, and a command imports what it
needs.
"""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from condexp import cli_stored
from condexp.cli_stored import make_parser
from condexp.errors import InputError, suggestion
from condexp.runs.stop_signals import Stopped

EPILOG = """\
examples:
  condexp                                            the default experiment
  condexp model=resnet model.depth=20 trainer.epochs=5
  condexp run -m model.last_bn=false,true seed=1,2   a grid
  condexp layers model=resnet                        what would be measured; trains nothing
  condexp show outputs/default/mlp-digits-s1-…       a stored run

overrides are Hydra's: group=choice, group.key=value, +experiment=…, --config-dir DIR for your own;
  condexp run --cfg job prints the configuration; condexp run --hydra-help explains the rest.
completion: eval "$(condexp -sc install=bash)"
exit codes: 0 done (a diverged run is a result), 1 a job failed, 2 bad input and nothing was run,
  75 stopped by SIGTERM, SIGUSR1, SIGUSR2 or a time limit, 130 by Ctrl-C: the same command goes on
"""


def _run(args: list[str]) -> int:
    if args and args[0] in {"-h", "--help"}:
        _help_parser().print_help()
        return 0
    from condexp.cli.hydra_app import launch_run

    return launch_run(args)


def _layers(args: list[str]) -> int:
    from condexp.cli.hydra_app import launch_layers

    return launch_layers(args)


def _data(args: list[str]) -> int:
    parser = make_parser("data", "fetch the files of a dataset, or verify them offline")
    actions = parser.add_subparsers(dest="action", required=True, metavar="fetch|verify")
    fetch = actions.add_parser("fetch", help="download or copy the files, checksums compared")
    verify = actions.add_parser("verify", help="compare the files with their checksums")
    for action in (fetch, verify):
        action.add_argument("name", metavar="NAME", help="the dataset")
        action.add_argument("--root", type=Path, metavar="DIR", help="dataset.root (default: data)")
    origin = fetch.add_mutually_exclusive_group()
    origin.add_argument("--mirror", metavar="URL", help="a folder, or the file, on another server")
    origin.add_argument("--archive", type=Path, metavar="FILE", help="a copy on this machine")
    options = parser.parse_args(args)
    from condexp.data_command import fetch_data, verify_data

    if options.action == "verify":
        return verify_data(options.name, options.root)
    return fetch_data(options.name, options.root, options.mirror, options.archive)


VERBS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "run": (_run, "run one experiment; with -m a grid (the default command)"),
    "layers": (_layers, "what would be measured, and what would not; trains nothing"),
    "status": (cli_stored.status, "one row a run: state, step, error, time"),
    "show": (cli_stored.show, "a finished or running run: setting, metrics, layers"),
    "table": (cli_stored.table, "mean ± std over seeds, rows x columns of any config keys"),
    "figure": (cli_stored.figure, "draw a figure from stored runs"),
    "report": (cli_stored.report, "the paper's tables, figures and verdicts as one page"),
    "validate": (cli_stored.validate, "check a results file against schema and checksums"),
    "export": (cli_stored.export, "every number of a run as CSV in long form"),
    "data": (_data, "fetch or verify the files of a dataset"),
}


def _help_parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {verb:<10}{text}" for verb, (_, text) in VERBS.items())
    return argparse.ArgumentParser(
        prog="condexp",
        usage="condexp [command] [overrides or arguments]",
        description="Layer-wise conditioning analysis of deep networks, while they train.\n\n"
        f"commands:\n{commands}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )


def split_verb(args: Sequence[str]) -> tuple[str, list[str]]:
    """Find the command in the arguments; no command means ``run``.

    Args:
        args: The command line without the program's name.

    Returns:
        The verb and the arguments that are left.

    Raises:
        InputError: If the first word is neither a command nor an override nor an option.
    """
    if not args or args[0].startswith("-") or "=" in args[0] or args[0].startswith("~"):
        return "run", list(args)
    if args[0] in VERBS:
        return args[0], list(args[1:])
    raise InputError(
        f"unknown command {args[0]!r}: commands are {', '.join(VERBS)}; an override has the form "
        f"key=value.{suggestion(args[0], VERBS)}"
    )


def _hide_verb_from_completion() -> None:
    # Hydra completes the line it finds here, and knows nothing of our verbs.
    words = os.environ.get("COMP_LINE", "").split(" ", 2)
    if len(words) == 3 and words[1] in {"run", "layers"}:
        removed = len(words[1]) + 1
        os.environ["COMP_LINE"] = f"{words[0]} {words[2]}"
        os.environ["COMP_POINT"] = str(int(os.environ.get("COMP_POINT", removed)) - removed)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; ``sys.argv`` where None.

    Returns:
        The exit code: 0 done, 1 a job failed, 2 bad input, 75 or 130 stopped.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # Σ must not end a run where a terminal has none
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    _hide_verb_from_completion()
    if args and args[0] in {"-h", "--help", "help"}:
        _help_parser().print_help()
        return 0
    try:
        verb, rest = split_verb(args)
        return VERBS[verb][0](rest)
    except KeyboardInterrupt:
        sys.stderr.write("condexp: interrupted\n")
        return 130
    except Stopped as stop:
        sys.stderr.write(f"condexp: {stop}\n")
        return stop.exit_code
    except BrokenPipeError:  # the reader of a pipe went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, OSError) as error:
        sys.stderr.write(f"condexp: {error}\n")
        return 2
