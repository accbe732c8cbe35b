"""The terminal: the only module that prints. The tables it prints are made elsewhere.

What a command alone needs it imports itself: ``condexp status``, and a process that only waits for
a sweep's job, need neither torch nor pandas.
"""

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.control import Control
from rich.segment import ControlType, Segment

from condexp.errors import visible

Shown = TypeVar("Shown")
WIDE = 200  # columns where the output is a file or a pipe: nothing is cut


class _Console(Console):
    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Yield what is to be printed; control characters in a text as text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Go on in silence where the reader of a pipe went away: rich would end the command."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Output(io.RawIOBase):
    """Standard output or error, for a run that goes on without: its disk may be full or gone."""

    def __init__(self, handle: int) -> None:
        super().__init__()
        self._handle = handle

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._handle

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return os.isatty(self._handle)

    def writable(self) -> bool:
        """Return whether it can be written, as far as anybody will know."""
        return True

    def write(self, data, /) -> int:  # type: ignore[no-untyped-def]
        """Return the bytes taken; what cannot be written is lost."""
        try:
            return os.write(self._handle, data)
        except OSError:
            return len(data)


def go_on_without_output() -> None:
    """Let no print end a run: terminals are closed, pipes break, and disks are full."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            buffer = io.BufferedWriter(_Output(stream.fileno()))
            setattr(
                sys,
                name,
                io.TextIOWrapper(buffer, stream.encoding, "replace", line_buffering=True),
            )


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


def show_live(looks: Iterable[Shown], view: Callable[[Shown], RenderableType]) -> Shown:
    """Print what changes in one place, the last of it to stay; where no terminal is, that alone.

    Args:
        looks: What is to be shown, one after the other; at least one.
        view: Lays one out.

    Returns:
        The last.
    """
    from rich.live import Live

    console = make_console()
    if not console.is_terminal:
        *_, last = looks
        console.print(view(last))
        return last
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        for last in looks:
            live.update(view(last), refresh=True)
        live.vertical_overflow = "visible"
    return last
