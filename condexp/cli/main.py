"""The command line: a verb says what to do, and is a module beside this one.

Nothing heavy is imported here, and a verb's module only when it is asked for: ``condexp --help``
answers at once.
"""

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from condexp.errors import DamageError, InputError, suggestion, visible
from condexp.runs.stop_signals import Stopped, stopping_at_once

EPILOG = """\
examples:
  condexp                                            the default experiment
  condexp model=resnet model.depth=20 trainer.epochs=5
  condexp run -m model.last_bn=false,true seed=1,2   a sweep
  condexp run -m experiment=table1/cpu               a table of the paper, small (smoke, cpu, paper)
  condexp layers model=resnet                        what would be measured; trains nothing
  condexp show outputs/default/mlp-digits-s1-…       a stored run

overrides are Hydra's: group=choice, group.key=value, --config-dir DIR for your own;
  condexp run --cfg job prints the configuration; condexp run --hydra-help explains the rest.
completion: eval "$(condexp -sc install=bash)"
exit codes: 0 done (a diverged run is a result), 1 a job failed or a run cannot be read,
  2 bad input and nothing was run, 75 stopped by SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 or a limit,
  130 by Ctrl-C: the same command resumes it
"""

# Verb: its module in this package, whose run(args) returns the exit code; what the help says.
VERBS = {
    "run": ("hydra_app", "run one experiment; with -m a sweep (the default command)"),
    "layers": ("layers", "what would be measured, and what would not; trains nothing"),
    "analyze": ("analyze", "stored checkpoints of any training, measured as one run"),
    "status": ("status", "one row a run: state, step, error, time"),
    "show": ("show", "a finished or running run: setting, metrics, layers"),
    "table": ("table", "mean ± std over seeds, rows x columns of any config keys"),
    "figure": ("figure", "draw a figure from stored runs"),
    "report": ("report", "a run, a sweep, or the paper's tables and verdicts as one page"),
    "watch": ("watch", "a running run, refreshed until it ends"),
    "validate": ("validate", "check a results file against schema and checksums"),
    "export": ("export", "every number of a run as CSV in long form"),
    "data": ("data", "fetch or verify the files of a dataset"),
}
READING = frozenset({
    *("status", "show", "watch", "table", "figure", "report", "validate", "export"),
})


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
    several = [arg for arg in args if arg in {"-m", "--multirun"}][:1]
    if several:  # anywhere on the line
        args = [arg for arg in args if arg not in {"-m", "--multirun"}]
        verb, rest = split_verb(args)
        return verb, [*several, *rest]
    if not args or args[0].startswith("-") or "=" in args[0] or args[0].startswith("~"):
        return "run", list(args)
    if args[0] in VERBS:
        return args[0], list(args[1:])
    raise InputError(
        f"unknown command {args[0]!r}: commands are {', '.join(VERBS)}; an override has the form "
        f"key=value.{suggestion(args[0], VERBS)}"
    )


def _complete_verb() -> bool:
    """Complete the verb in the shell's line, and take it away: Hydra knows nothing of verbs.

    Returns:
        Whether that is all: paths, after a verb without overrides, are the shell's to complete.
    """
    words = os.environ.get("COMP_LINE", "").split(" ", 2)
    if len(words) == 2:
        sys.stdout.writelines(f"{verb}\n" for verb in VERBS if verb.startswith(words[1]))
    if len(words) < 3 or words[1] not in VERBS:
        return False
    if words[1] in {"run", "layers", "analyze"}:
        removed = len(words[1]) + 1
        os.environ["COMP_LINE"] = f"{words[0]} {words[2]}"
        os.environ["COMP_POINT"] = str(int(os.environ.get("COMP_POINT", removed)) - removed)
        return False
    return True


class _LeftOut(logging.Handler):
    """Says of each run once that it cannot be read, or counts once, and knows if one could not."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()
        self.exit_code = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Print a warning or an error as a line of its own.

        Args:
            record: What a reading command logs.
        """
        text = visible(record.getMessage()).replace("\n", " ")
        if text not in self._said:
            self._said.add(text)
            sys.stderr.write(f"condexp: {text}\n")
        self.exit_code |= record.levelno >= logging.ERROR


def _read_runs(module: ModuleType, args: list[str]) -> int:
    """Do a command that reads runs.

    Returns:
        Its exit code; 1 where a run could not be read.

    Raises:
        InputError: If it was asked for something else than can be done.
    """
    logger, left_out = logging.getLogger("condexp"), _LeftOut()
    logger.addHandler(left_out)
    try:
        code: int = module.run(args)
        sys.stdout.flush()  # a full disk shows here, and not when nobody looks any more
    except InputError as error:
        if not (isinstance(error, DamageError) or left_out.exit_code):
            raise
        sys.stderr.write(f"condexp: {error}\n")
        return 1
    finally:
        logger.removeHandler(left_out)
    return code or left_out.exit_code


def _drop_output() -> None:
    """Let what standard output cannot take be no second error as the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _answer_at_once(args: list[str]) -> bool:
    """Print the help, the version or the shell's completions, where one of these is asked for.

    Returns:
        Whether that was all.
    """
    if any(arg.startswith("query=") for arg in args):
        return _complete_verb()
    if args and args[0] in {"-h", "--help", "help"}:
        _help_parser().print_help()
        return True
    if args and args[0] in {"--version", "-V"}:
        from importlib.metadata import version

        sys.stdout.write(f"condexp {version('condexp')}\n")
        return True
    return False


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
    if _answer_at_once(args):
        return 0
    try:
        verb, rest = split_verb(args)
        if verb == "run" and rest[:1] in (["-h"], ["--help"]):  # Hydra's own is --hydra-help
            _help_parser().print_help()
            return 0
        if verb in READING:
            return _read_runs(import_module(f"condexp.cli.{VERBS[verb][0]}"), rest)
        with stopping_at_once():
            from condexp.results.console import go_on_without_output

            go_on_without_output()
            code: int = import_module(f"condexp.cli.{VERBS[verb][0]}").run(rest)
        return code
    except KeyboardInterrupt:
        sys.stderr.write("condexp: interrupted\n")
        return 130
    except Stopped as stop:
        sys.stderr.write(f"condexp: {stop}\n")
        return stop.exit_code
    except BrokenPipeError:  # the reader of a pipe went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        sys.stderr.write(f"condexp: {error}\n")
        _drop_output()
        return 2
    except InputError as error:
        sys.stderr.write(f"condexp: {error}\n")
        return 2
