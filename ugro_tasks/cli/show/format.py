"""What all that is shown has in common: the console, text made safe, columns, values in words."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec

from ...jobs.state import Phase
from ...text import UNSHOWN, printable, printable_lines
from ..task import as_called
from .console import Console, Printer

RAW = re.compile(f"[{UNSHOWN}]")
# What rich may take for the beginning of a tag, or for its escape; and a pair of tags that does nothing.
BRACKET = re.compile(r"(?<!\\)(?:(\\++)\[([a-z#/@])?|\[([a-z#/@])|(\\++)\Z)")
NO_STYLE = "[none][/none]"
FAR_SECONDS = 1e10  # beyond it, no calendar of Python goes
LINE_BREAKS = re.compile(r"[\n\t]+")  # a cell is one line
COLOURS = {
    "succeeded": "green", "failed": "red", "refused": "red", "stopped": "yellow", "unreadable": "red",
    "running": "cyan", "queued": "cyan", "preparing": "cyan", "stopping": "cyan", "✓": "green", "✗": "red",
    "fits": "green", "tight": "yellow", "too large": "red",
}  # fmt: skip


def open_console(stream: Any = None) -> Console:
    """Where to print: coloured and as wide as the terminal, or plain."""
    return Console(stream)


def shown(text: str) -> str:
    """The text as a console may have it: no control sequences, and what looks like markup is none."""
    return BRACKET.sub(_literally, printable_lines(text))


def _literally(found: re.Match[str]) -> str:
    """Not by rich's own `escape`: that loses or doubles backslashes, and knows nothing of what follows the text."""
    before, after, alone, last = found.groups("")
    if last:
        return f"{last}{last}{NO_STYLE}"
    tag = after or alone
    return f"{before}{before[:1]}[{NO_STYLE}{tag}" if tag else f"{before}{before[:1]}["


def show_json(value: Any) -> None:
    """The value as JSON on stdout, with nothing in it that a terminal would act upon."""
    try:
        encoded = msgspec.json.encode(value)
    except UnicodeEncodeError:  # the name of a file that is no UTF-8
        encoded = msgspec.json.encode(_encodable(msgspec.to_builtins(value)))
    plain = RAW.sub(lambda found: f"\\u{ord(found[0]):04x}", msgspec.json.format(encoded).decode())
    sys.stdout.write(plain + "\n")


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(inner) for key, inner in value.items()}
    return [_encodable(inner) for inner in value] if isinstance(value, list | tuple) else value


def note(message: str) -> None:
    """A line for the user, on stderr."""
    sys.stderr.write(f"{as_called(printable_lines(message))}\n")
    sys.stderr.flush()


def columns(console: Printer, rows: list[list[str]], *, heads: bool = True, indent: str = "") -> None:
    """The rows in columns, with `heads` the first one as their heads; a state has its colour."""
    rows = [[LINE_BREAKS.sub(" ", printable_lines(cell)) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [shown(cell.ljust(width)) for cell, width in zip(row, widths, strict=True)]
        for column, cell in enumerate(row):
            if colour := COLOURS.get(cell):
                cells[column] = f"[{colour}]{cells[column]}[/]"
        line = indent + "  ".join(cells).rstrip(" ")
        console.print(f"[bold]{line}[/]" if heads and number == 0 else line)


def agree(question: str) -> bool:
    """Whether the user says yes; no where there is nobody to ask."""
    if not sys.stdin.isatty():
        note(f"{question} nobody is here to say yes (use --accept-new-host-keys)")
        return False
    try:
        return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}
    except EOFError:  # Ctrl-D
        return False


@contextlib.contextmanager
def waiting(message: str) -> Iterator[None]:
    """A spinner while something takes its time, on a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from .live import live_console  # late: rich takes as long to load as all of UGRO's records

    with live_console(sys.stderr).status(message):
        yield


# ---- a bar for each node ----


class Percentages:
    """A bar for each node that something is fetched from."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn  # late, as above

        from .live import live_console

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            console=live_console(sys.stderr),
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Percentages:
        if self._progress.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress.live.is_started:
            self._progress.stop()

    def update(self, node: str, percent: int) -> None:
        """The node has come so far."""
        if node not in self._tasks:
            self._tasks[node] = self._progress.add_task(shown(node), total=100)
        self._progress.update(self._tasks[node], completed=percent)


# ---- values ----


def duration(seconds: float | None) -> str:
    """As in 3 s, 2:05, 1:02:05."""
    if seconds is None:
        return "-"
    if abs(seconds) > FAR_SECONDS:
        return "?"  # a clock that was not set, or a damaged record
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = max(60, int(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def clock(at: float | None) -> str:
    """The time of day, with the date where it was another day."""
    if at is None:
        return "-"
    if abs(at) > FAR_SECONDS:
        return "?"
    moment = datetime.fromtimestamp(at).astimezone()
    return (
        f"{moment:%H:%M:%S}"
        if moment.date() == datetime.now().astimezone().date()
        else f"{moment:%Y-%m-%d %H:%M}"
    )


def short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else printable(str(value))


def coloured(phase: Phase) -> str:
    return f"[{COLOURS[phase]}]{phase}[/]"


def byte_size(size: int) -> str:
    count: float = size
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")
