"""The terminal: the only module that prints. The tables it prints are made elsewhere.

What a command alone needs it imports itself: ``condexp status``, and a process that only waits for
a sweep's job, need neither torch nor pandas.
"""

import os
import sys
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.control import Control
from rich.segment import ControlType, Segment

from condexp.errors import visible

WIDE = 200  # columns where the output is a file or a pipe: nothing is cut


class _Console(Console):
    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Yield what is to be printed; control characters in a text as text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Go on in silence where the reader of a pipe went away: rich would end the run."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_console(file: TextIO | None = None) -> Console:
    """A console for standard output, wide where that is no terminal.

    Args:
        file: Write there instead.

    Returns:
        The console.
    """
    console = _Console(file=file, highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    return console


def say(text: str) -> None:
    """Print a line as it is, in place of the bar that a killed process may have left.

    Args:
        text: The line.
    """
    console = make_console()
    console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))
    console.show_cursor()
    console.print(text, markup=False, soft_wrap=True)


def show(*parts: RenderableType) -> None:
    """Print tables and texts.

    Args:
        parts: One below the other.
    """
    console = make_console()
    for part in parts:
        console.print(part)
