"""What the parsers of several verbs share."""

import argparse
from typing import NoReturn

from condexp.errors import InputError, suggestion


def unknown_option(given: str, parser: argparse.ArgumentParser) -> str:
    """Say that a parser has no such option.

    Args:
        given: The word, maybe with ``=value``.
        parser: The parser.

    Returns:
        A sentence, with the nearest option.
    """
    return f"unknown option {given!r}.{suggestion(given.partition('=')[0], options_of(parser))}"


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    """Return the options that a parser takes, in all spellings."""
    return [each for action in parser._actions for each in action.option_strings]


class _Parser(argparse.ArgumentParser):
    """Says a mistake in one line, with the nearest option, in place of a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments.

        Args:
            message: What argparse says of them.

        Raises:
            InputError: Always.
        """
        verb = self.prog.removeprefix("condexp ")
        _, extra, given = message.partition("unrecognized arguments: ")
        if extra:
            word = given.split()[0]
            message = f"{word!r} is one argument too many."
            if word.startswith("-"):
                message = unknown_option(word, self)
        usage = " ".join(self.format_usage().removeprefix("usage: ").split())
        end = "" if message[-1] in ".?" else "."
        raise InputError(f"{verb}: {message}{end} Usage: {usage}")


def make_parser(verb: str, description: str) -> argparse.ArgumentParser:
    """Make the parser of a verb's arguments.

    Args:
        verb: The verb.
        description: What it does.

    Returns:
        The parser, without arguments yet.
    """
    return _Parser(prog=f"condexp {verb}", description=description)


def add_where(parser: argparse.ArgumentParser) -> None:
    """Add ``--where KEY=VALUE …``, which selects runs by their configuration.

    Args:
        parser: The verb's parser.
    """
    parser.add_argument(
        "--where",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="only the runs whose configuration has these values",
    )


def comma_separated(text: str) -> list[str]:
    """Split an argument that lists names.

    Args:
        text: Names, separated by commas.

    Returns:
        The names, without blanks and without empty ones.
    """
    return [name.strip() for name in text.split(",") if name.strip()]
