"""Where lines are printed. Their markup, `[bold]x[/]`, becomes colour on a terminal and nothing elsewhere.

Most that is shown is a handful of lines, and rich takes as long to load as all of UGRO's own records; so it is left to
what is redrawn in place, see `live.py`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from typing import Any, Protocol

from ...text import printable_lines

# Where nobody looks at a terminal's width, nothing is cut off.
PLAIN_WIDTH = 200
# As rich reads them: backslashes before a tag make text of it, two of them are one.
TAG = re.compile(r"(\\*)\[([a-z#/@][^\[]*?)\]")
CODES = {
    "bold": "1", "red": "31", "green": "32", "yellow": "33", "blue": "34", "magenta": "35", "cyan": "36",
    "bright_red": "91",
}  # fmt: skip
NamedLine = tuple[str, str, str]  # (name, its colour, text)


class Printer(Protocol):
    """What prints a line with markup in it."""

    @property
    def width(self) -> int:
        """Characters in a line."""

    @property
    def is_terminal(self) -> bool:
        """Whether somebody looks at it."""

    def print(self, markup: str, /) -> None:
        """Print it, and a line's end."""

    def print_lines(self, lines: Iterable[NamedLine], width: int) -> None:
        """Print `name │ text` for each, the name `width` wide and in its colour; control sequences are taken out."""


class Console:
    """A Printer: coloured and as wide as the terminal, or plain."""

    def __init__(self, stream: Any = None) -> None:
        self._stream = stream
        self.is_terminal: bool = (stream or sys.stdout).isatty()
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in {"dumb", "unknown"}
        self._coloured = self.is_terminal and not plain

    @property
    def width(self) -> int:
        """See Printer."""
        if not self.is_terminal:
            return PLAIN_WIDTH
        try:
            return os.get_terminal_size((self._stream or sys.stdout).fileno()).columns or 80
        except OSError:
            return 80

    def print(self, markup: str, /) -> None:
        """See Printer."""
        self._write(self._rendered(markup) + "\n")

    def print_lines(self, lines: Iterable[NamedLine], width: int) -> None:
        """Print many at once, without looking for markup in them."""
        on, off = ("\x1b[0;{}m", "\x1b[0m") if self._coloured else ("", "")
        self._write(
            "".join(
                f"{on.format(CODES[colour])}{printable_lines(name):{width}}{off} │ {printable_lines(text)}\n"
                for name, colour, text in lines
            )
        )

    def _write(self, text: str) -> None:
        stream = self._stream or sys.stdout
        stream.write(text)
        stream.flush()

    def _rendered(self, markup: str) -> str:
        pieces: list[str] = []
        styles: list[str] = []
        end = 0
        for found in TAG.finditer(markup):
            slashes, name = len(found[1]), found[2]
            pieces += [markup[end : found.start()].replace("\\[", "["), "\\" * (slashes // 2)]
            end = found.end()
            if slashes % 2:
                pieces.append(found[0][slashes:])
                continue
            if not name.startswith("/"):
                styles.append(CODES.get(name, ""))
            elif styles:
                styles.pop()
            if self._coloured:
                pieces.append(f"\x1b[{';'.join(['0', *filter(None, styles)])}m")
        return "".join(pieces) + markup[end:].replace("\\[", "[")
