"""A console by rich, for spinners and bars redrawn in place."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import rich.console
import rich.status
from rich.segment import Segment
from rich.text import Text

from ...text import printable_lines
from .console import PLAIN_WIDTH, NamedLine, Piece, Styled, without_controls


class LiveConsole:
    """A Printer whose lines appear above spinners and bars; plain without a terminal.

    rich gets texts with explicit styles and never looks for markup in them.
    """

    def __init__(self, stream: Any = None) -> None:
        self.is_terminal: bool = (stream or sys.stdout).isatty()
        self.rich = rich.console.Console(
            file=stream,
            width=None if self.is_terminal else PLAIN_WIDTH,
            markup=False,
            highlight=False,
            emoji=False,
            soft_wrap=True,
        )

    @property
    def width(self) -> int:
        """See Printer."""
        return self.rich.width

    def print(self, *pieces: Piece) -> None:
        """See Printer."""
        self.rich.print(_text(pieces))

    def print_lines(self, lines: Iterable[NamedLine], width: int) -> None:
        """See Printer.

        The lines go to rich as one; printed one by one, each would cost as much as a table.
        """
        self.rich.print(_NamedLines(lines, width), end="")

    def spinner(self, words: str = "") -> Spinner:
        """Return a line with a spinner, shown within `with`."""
        return Spinner(self.rich, words)


class Spinner:
    """The last line of the terminal, with a spinner."""

    def __init__(self, console: rich.console.Console, words: str) -> None:
        self._status = rich.status.Status(_text([words]), console=console)

    def __enter__(self) -> Spinner:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Show the line."""
        self._status.start()

    def stop(self) -> None:
        """Remove the line."""
        self._status.stop()

    def update(self, words: str) -> None:
        """Replace the words after the spinner."""
        self._status.update(_text([words]))


class _NamedLines:
    def __init__(self, lines: Iterable[NamedLine], width: int) -> None:
        self.lines = lines
        self.width = width

    def __rich_console__(
        self, console: rich.console.Console, _options: rich.console.ConsoleOptions
    ) -> Iterator[Segment]:
        """Yield the segments of all lines. rich calls this."""
        for name, colour, text in self.lines:
            yield Segment(
                f"{printable_lines(name):{self.width}}", console.get_style(colour)
            )
            yield Segment(f" │ {printable_lines(text)}\n")


def _text(pieces: Iterable[Piece]) -> Text:
    text = Text()
    for piece in pieces:
        if isinstance(piece, Styled):
            text.append(without_controls(piece.text), piece.style)
        else:
            text.append(without_controls(piece))
    return text
