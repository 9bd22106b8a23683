"""A console for what is redrawn in place, spinners and bars: by rich, which nothing else here loads."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment

from ...text import printable_lines
from .console import PLAIN_WIDTH, NamedLine


class LiveConsole(Console):
    """A console of rich that is a Printer, too."""

    def print_lines(self, lines: Iterable[NamedLine], width: int) -> None:
        """See Printer. Printed one by one, each line would cost rich as much as a table."""
        self.print(_NamedLines(lines, width), end="")


class _NamedLines:
    def __init__(self, lines: Iterable[NamedLine], width: int) -> None:
        self.lines, self.width = lines, width

    def __rich_console__(self, console: Console, _options: ConsoleOptions) -> Iterator[Segment]:
        """What rich calls."""
        for name, colour, text in self.lines:
            yield Segment(f"{printable_lines(name):{self.width}}", console.get_style(colour))
            yield Segment(f" │ {printable_lines(text)}\n")


def live_console(stream: Any = None) -> LiveConsole:
    """As wide as the terminal, plain where there is none."""
    width = None if (stream or sys.stdout).isatty() else PLAIN_WIDTH
    return LiveConsole(file=stream, width=width, highlight=False, soft_wrap=True, emoji=False)
