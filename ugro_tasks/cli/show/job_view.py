"""One job on the terminal while it runs.

It shows a line for each event, the ranks' output behind the name of their node, and the progress.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

from ...jobs.experiment import Experiment
from ...jobs.phase import Phase
from ...jobs.state import Event, JobState
from ...jobs.watch import Line, Progress
from ...text import printable_lines
from ..task import as_called
from .console import NamedLine, Printer, open_console, style
from .launch import show_plan
from .node_colours import node_colour
from .values import clock, duration

if TYPE_CHECKING:
    from .live import Spinner

LINES_AT_ONCE = 2000


class JobView:
    """One job on the terminal.

    Within `with`, the last line of a terminal shows the progress.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        offsets: Mapping[int, int] | None,
        verbose: bool,
        as_json: bool,
    ) -> None:
        self.experiment = experiment
        self.offsets = offsets
        self.verbose = verbose
        self.as_json = as_json
        self.state = experiment.state()
        self.width = max(len(node) for node in experiment.record().nodes)
        self.console: Printer = open_console()
        self._lines: list[Line] = []  # to be shown together
        self._metrics: dict[str, object] = {}
        self._spinner: Spinner | None = None
        if self.console.is_terminal and not as_json:
            from .live import LiveConsole  # late: rich takes long to load

            live = LiveConsole()
            self.console = live
            self._spinner = live.spinner()

    def __enter__(self) -> Self:
        if self._spinner:
            self._spinner.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._spinner:
            self._spinner.stop()

    def show(self, item: Event | Line | Progress | JobState | None) -> None:
        """Show the item; lines of ranks are collected and printed together."""
        if isinstance(item, Line):
            self._lines.append(item)
            if len(self._lines) < LINES_AT_ONCE:
                return
        self.show_lines()
        if isinstance(item, JobState):
            self._show_state(item)
        elif isinstance(item, Progress):
            self._metrics = item.metrics
        elif isinstance(item, Event):
            self._show_event(item)
        self._update_spinner()

    def show_lines(self) -> None:
        """Print the collected lines of ranks at once; a print for each would be too slow."""
        if not self._lines:
            return
        nodes = {rank.rank: rank.node for rank in self.state.ranks}
        named = [_named(line, nodes) for line in self._lines]
        self.console.print_lines(named, self.width)
        self._lines.clear()

    def show_success(self) -> None:
        """Print that the job has succeeded, and the command for its results."""
        if self.as_json:
            return
        self.console.print(
            style(f"{self.experiment.job_id} succeeded", "green"),
            f" in {duration(self.state.seconds)}{self._progress()}; ",
            f"see: {as_called('inv results')} {printable_lines(self.experiment.name)}",
        )

    def _show_state(self, state: JobState) -> None:
        before = self.state.phase
        self.state = state
        begins = state.phase is Phase.PREPARING and before is not Phase.PREPARING
        if not self.verbose or not begins:
            return
        plan = self.experiment.record().plan
        if plan:
            show_plan(plan)

    def _show_event(self, event: Event) -> None:
        shown_before = self.offsets is not None and event.time < time.time() - 1
        if self.as_json or shown_before:
            return
        message = f"{event.node}: {event.message}" if event.node else event.message
        self.console.print(
            style(clock(event.time), "bold"), f" {printable_lines(message)}"
        )

    def _update_spinner(self) -> None:
        if self._spinner:
            name = printable_lines(self.experiment.name)
            seconds = duration(self.state.seconds)
            words = f"{name} {self.state.phase} {seconds}{self._progress()}"
            self._spinner.update(words)

    def _progress(self) -> str:
        """Write the last logged step and loss, "" without any."""
        step = self._metrics.get("step")
        total = self._metrics.get("total_steps")
        loss = self._metrics.get("loss")
        words = ""
        if step is not None:
            words = f"  step {step}"
        if isinstance(step, int) and isinstance(total, int) and total > 0:
            words += f"/{total} ({100 * step // total} %)"
        if isinstance(loss, float):
            words += f"  loss {loss:.4f}"
        return printable_lines(words)


def _named(line: Line, nodes: Mapping[int, str]) -> NamedLine:
    # A restart may have dropped the node; then its rank is no longer in the state.
    node = nodes.get(line.rank, str(line.rank))
    return node, node_colour(line.rank), line.text
