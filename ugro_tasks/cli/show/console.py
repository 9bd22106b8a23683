"""Plain or coloured output on a terminal.

A line is put together from pieces, plain text and results of `style`:

    console.print("gpu0: ", style("not fit", "red"))

There is no markup, so no text can change how it looks. Control characters in a piece are never
printed. Text from elsewhere goes through `printable_lines` first, which removes whole terminal
sequences and leaves the words around them intact.

Most output is a few lines, and rich takes as long to load as all of UGRO's records; so only
output that is redrawn in place uses it, see `live.py`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, Protocol

from ...text import UNSHOWN, printable_lines

# Nothing is cut off in a file or a pipe.
PLAIN_WIDTH = 200
FALLBACK_WIDTH = 80
Style = Literal[
    "bold", "red", "green", "yellow", "blue", "magenta", "cyan", "bright_red"
]
CODES: dict[Style, str] = {
    "bold": "1", "red": "31", "green": "32", "yellow": "33", "blue": "34", "magenta": "35", "cyan": "36",
    "bright_red": "91",
}  # fmt: skip
RESET = "\x1b[0m"
CONTROLS = re.compile(f"[{UNSHOWN}]")


class Styled(NamedTuple):
    """A text with its look on a terminal."""

    text: str
    style: Style


Piece = str | Styled
NamedLine = tuple[str, Style, str]  # (name, its colour, text)


def style(text: str, style: Style) -> Styled:
    """Return the text in a colour or bold, as a piece for `Printer.print`."""
    return Styled(text, style)


def without_controls(text: str) -> str:
    """Remove the control characters of a text."""
    return CONTROLS.sub("", text)


def plain(pieces: Iterable[Piece]) -> str:
    """Join the pieces without their colours."""
    return "".join(
        piece.text if isinstance(piece, Styled) else piece for piece in pieces
    )


class Printer(Protocol):
    """An output for lines."""

    @property
    def width(self) -> int:
        """Return the characters in a line."""

    @property
    def is_terminal(self) -> bool:
        """Return whether the output is a terminal."""

    def print(self, *pieces: Piece) -> None:
        """Print the pieces and a line end; control characters in them are removed."""

    def print_lines(self, lines: Iterable[NamedLine], width: int) -> None:
        """Print `name │ text` for each line, the name padded to `width` and in its colour.

        Control sequences are removed.
        """


class Console:
    """A Printer: coloured and as wide as the terminal, or plain."""

    def __init__(self, stream: Any = None) -> None:
        self._stream = stream
        self.is_terminal: bool = (stream or sys.stdout).isatty()
        knows_colour = os.environ.get("TERM") not in {"dumb", "unknown"}
        wanted = not os.environ.get("NO_COLOR")
        self._coloured = self.is_terminal and knows_colour and wanted

    @property
    def width(self) -> int:
        """See Printer."""
        if not self.is_terminal:
            return PLAIN_WIDTH
        stream = self._stream or sys.stdout
        try:
            size = os.get_terminal_size(stream.fileno())
        except OSError:
            return FALLBACK_WIDTH
        return size.columns or FALLBACK_WIDTH

    def print(self, *pieces: Piece) -> None:
        """See Printer."""
        self._write("".join(map(self._rendered, pieces)) + "\n")

    def print_lines(self, lines: Iterable[NamedLine], width: int) -> None:
        """See Printer.

        All lines are written at once; one print per line would be too slow.
        """
        before = dict.fromkeys(CODES, "")
        after = ""
        if self._coloured:
            before = {style: _beginning(style) for style in CODES}
            after = RESET
        written = []
        for name, colour, text in lines:
            head = f"{before[colour]}{printable_lines(name):{width}}{after}"
            written.append(f"{head} │ {printable_lines(text)}\n")
        self._write("".join(written))

    def _rendered(self, piece: Piece) -> str:
        if isinstance(piece, str):
            return without_controls(piece)
        text = without_controls(piece.text)
        if not self._coloured:
            return text
        return f"{_beginning(piece.style)}{text}{RESET}"

    def _write(self, text: str) -> None:
        stream = self._stream or sys.stdout
        stream.write(text)
        stream.flush()


def open_console(stream: Any = None) -> Console:
    """Open a console on this stream, stdout by default."""
    return Console(stream)


def _beginning(style: Style) -> str:
    return f"\x1b[0;{CODES[style]}m"
