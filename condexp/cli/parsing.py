"""What the parsers of several verbs share."""

import argparse


def make_parser(verb: str, description: str) -> argparse.ArgumentParser:
    """Make the parser of a verb's arguments.

    Args:
        verb: The verb.
        description: What it does.

    Returns:
        The parser, without arguments yet.
    """
    return argparse.ArgumentParser(prog=f"condexp {verb}", description=description)


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
