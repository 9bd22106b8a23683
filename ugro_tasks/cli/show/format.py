"""Output shared by all commands: tables, JSON, lines on stderr, a question, a spinner."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ...text import printable_lines
from ..task import as_called
from .console import CONTROLS, Piece, Printer, Style, style

LINE_BREAKS = re.compile(r"[\n\t]+")
# Of all --json: names keep their meaning, and a number grows where that cannot be.
JSON_FORMAT = 2
COLUMN_GAP = "  "
# Coloured words of tables: states of jobs, signs of checks, fits of ranks on cards.
COLOURS: dict[str, Style] = {
    "succeeded": "green", "failed": "red", "refused": "red", "stopped": "yellow", "unreadable": "red",
    "running": "cyan", "queued": "cyan", "preparing": "cyan", "stopping": "cyan", "✓": "green", "✗": "red",
    "fits": "green", "tight": "yellow", "too large": "red",
}  # fmt: skip


def coloured(word: str) -> Piece:
    """Return the word in its colour if it has one in COLOURS."""
    colour = COLOURS.get(word.rstrip(" "))
    return style(word, colour) if colour else word


def columns(
    console: Printer,
    rows: Sequence[Sequence[str]],
    *,
    heads: bool = True,
    indent: str = "",
) -> None:
    """Print the rows in columns, with the colours of COLOURS.

    With `heads` the first row is bold.
    """
    rows = [[_one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells = _without_empty_end(padded)
        if heads and number == 0:
            console.print(style(indent + COLUMN_GAP.join(cells), "bold"))
            continue
        line: list[Piece] = [indent]
        for cell in cells:
            line += [coloured(cell), COLUMN_GAP]
        console.print(*line[:-1])


def _one_line(cell: str) -> str:
    return LINE_BREAKS.sub(" ", printable_lines(cell))


def _without_empty_end(cells: list[str]) -> list[str]:
    while cells and not cells[-1].strip(" "):
        cells.pop()
    if cells:
        cells[-1] = cells[-1].rstrip(" ")
    return cells


def show_json(fields: Mapping[str, Any] | msgspec.Struct) -> None:
    """Print an object as JSON on stdout with its format, control characters escaped."""
    if isinstance(fields, msgspec.Struct):
        fields = msgspec.structs.asdict(fields)
    value = {"format": JSON_FORMAT, **fields}
    try:
        encoded = msgspec.json.encode(value)
    except UnicodeEncodeError:  # the name of a file that is no UTF-8
        encoded = msgspec.json.encode(_encodable(msgspec.to_builtins(value)))
    text = msgspec.json.format(encoded).decode()
    escaped = CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    sys.stdout.write(f"{escaped}\n")


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(inner) for inner in value]
    return value


def note(message: str) -> None:
    """Print a line for the user on stderr."""
    sys.stderr.write(f"{as_called(printable_lines(message))}\n")
    sys.stderr.flush()


def agree(question: str, unattended: str = "--accept-new-host-keys") -> bool:
    """Ask a yes-or-no question; without a terminal the answer is no, unless by the flag `unattended`."""
    if not sys.stdin.isatty():
        note(f"{question} nobody is here to say yes (use {unattended})")
        return False
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:  # Ctrl-D
        return False
    return answer.strip().lower() in {"y", "yes"}


@contextlib.contextmanager
def waiting(message: str) -> Iterator[None]:
    """Show a spinner within `with`, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    # Late: rich takes as long to load as all of UGRO's records.
    from .live import LiveConsole

    with LiveConsole(sys.stderr).spinner(message):
        yield
