"""Progress of all nodes: a line or a bar for each."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

from rich.progress import BarColumn, ProgressColumn, TextColumn
from rich.progress import Progress as RichProgress

from ...text import printable, printable_lines
from .format import note
from .live import LiveConsole
from .values import byte_size, duration

if TYPE_CHECKING:  # for annotations only, to load fast
    from ...environments.sync import Progress


class _NodeBars:
    """A row for each node on stderr, redrawn in place within `with`.

    Without a terminal nothing is drawn.
    """

    def __init__(self, *more: ProgressColumn, transient: bool) -> None:
        self.console = LiveConsole(sys.stderr)
        words = TextColumn("{task.description}", markup=False)
        self._bars = RichProgress(
            words, *more, console=self.console.rich, transient=transient
        )
        self._rows: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars.live.is_started:
            self._bars.stop()

    def _row(self, node: str, total: int | None) -> Any:
        if node not in self._rows:
            self._rows[node] = self._bars.add_task(printable_lines(node), total=total)
        return self._rows[node]


class Percentages(_NodeBars):
    """A bar for each node with the percentage that has been fetched."""

    def __init__(self) -> None:
        percent = TextColumn("{task.percentage:>3.0f} %", markup=False)
        super().__init__(BarColumn(), percent, transient=False)

    def update(self, node: str, percent: int) -> None:
        """Move the node's bar."""
        self._bars.update(self._row(node, 100), completed=percent)


class BuildLines(_NodeBars):
    """A line for each node while its environment is built.

    Without a terminal, a line is printed at each new phase.
    """

    def __init__(self) -> None:
        super().__init__(transient=True)
        self._phases: dict[str, str] = {}

    def update(self, node: str, progress: Progress) -> None:
        """Show the progress of a node."""
        if self.console.is_terminal:
            row = self._row(node, None)
            self._bars.update(row, description=self._line(node, progress))
        elif self._phases.get(node) != progress.phase:
            self._phases[node] = progress.phase
            note(f"{node}: {progress.phase}")

    def _line(self, node: str, progress: Progress) -> str:
        width = max(len(name) for name in self._rows)
        parts = [node.ljust(width), progress.phase]
        if progress.seconds:
            parts += [duration(progress.seconds), byte_size(progress.bytes)]
        parts.append(progress.line)
        return "  ".join(map(printable, parts))[: self.console.width - 1]
