"""A job as it goes: a line an event, the ranks' output behind the name of their node, and how far it is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from ...errors import JobEnded, StopUnproven, UgroError
from ...jobs.experiment import Experiment
from ...jobs.experiments import Experiments
from ...jobs.state import Event, JobState, Phase
from ...jobs.watch import Line, Progress, watch
from ..interrupts import Interrupts
from ..task import as_called
from .console import Printer
from .format import clock, duration, note, open_console, show_json, shown
from .launch import show_plan

STOP_PATIENCE_SECONDS = 30.0  # beyond the grace, before Ctrl-C says that a node has not answered
LINES_AT_ONCE = 2000
NODE_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "bright_red")


class Follower:
    """Shows one job on the terminal, or tells it as JSON at the end."""

    def __init__(
        self,
        experiments: Experiments,
        experiment: Experiment,
        interrupts: Interrupts,
        *,
        ranks: list[int] | None = None,
        offsets: Mapping[int, int] | None = None,  # in the ranks' logs, to go on from
        quiet: bool = False,
        verbose: bool = False,
        as_json: bool = False,
    ) -> None:
        self.experiments, self.experiment, self.interrupts = experiments, experiment, interrupts
        self.ranks, self.offsets = [] if quiet or as_json else ranks, offsets
        self.verbose, self.as_json = verbose, as_json
        self.console: Printer = open_console()
        self.state = experiment.state()
        self.width = max(len(node) for node in experiment.record().nodes)
        self._stop_by = float("inf")
        self._metrics: dict[str, object] = {}
        self._lines: list[Line] = []  # to be shown together
        self._live: Any = None
        if self.console.is_terminal and not as_json:
            from .live import live_console  # late: rich takes long to load

            self.console = console = live_console()
            self._live = console.status("")

    def until_ended(self, *, interrupt_stops: bool) -> None:
        """Raises what the job ended with, nothing where it succeeded.

        Ctrl-C asks for the job to be stopped and goes on to the proof, or only leaves.
        """
        if self._follow(frozenset(), interrupt_stops=interrupt_stops):
            self._end()
        else:
            note(f"{self.experiment.job_id} goes on; again: inv attach {self.experiment.name}")

    def until_running(self) -> None:
        """Returns when all ranks run; raises where they do not come to it."""
        self._follow(frozenset({Phase.RUNNING}), interrupt_stops=True)
        if self.state.phase.finished:
            self._end()
        elif self.as_json:
            show_json({"job_id": self.experiment.job_id, "state": self.state})
        else:
            note(f"{self.experiment.job_id} runs; follow it: inv attach {self.experiment.name}")

    def stop(self, *, give_up: bool = False) -> None:
        """Ask for the stop and return with the proof; raises StopUnproven with host and pids.

        With `give_up` the job ends, even so, where a node cannot be reached.
        """
        if self.state.phase.finished:
            raise UgroError(
                f"{self.experiment.job_id} has ended already ({self.state.phase}); there is nothing to stop"
            )
        self._ask_to_stop(give_up=give_up)
        try:
            self.until_ended(interrupt_stops=True)
        except JobEnded as done:
            if self.state.phase is not Phase.STOPPED:
                raise
            note(done.text)

    def _follow(self, until: frozenset[Phase], *, interrupt_stops: bool) -> bool:
        """Show what comes until the job has ended or is in one of these states; False where Ctrl-C left it."""
        with self._live or contextlib.nullcontext():
            for item in watch(self.experiments, self.experiment, ranks=self.ranks, offsets=self.offsets):
                if self.interrupts.take():
                    if not interrupt_stops:
                        return False
                    if self._stop_by < float("inf"):
                        raise self._unproven("left before the proof")
                    self._ask_to_stop()
                    until = frozenset()
                if time.monotonic() > self._stop_by:
                    raise self._unproven("no proof yet")
                if isinstance(item, Line):
                    self._lines.append(item)
                    if len(self._lines) < LINES_AT_ONCE:
                        continue
                self._show_lines()
                if isinstance(item, JobState):
                    self._note_state(item)
                    if item.phase in until:
                        return True
                elif isinstance(item, Progress):
                    self._metrics = item.metrics
                elif isinstance(item, Event) and not self.as_json:
                    self._show_event(item)
                self._update_line()
            self._show_lines()
        return True

    def _ask_to_stop(self, *, give_up: bool = False) -> None:
        self.experiment.ask_to_stop(give_up=give_up)
        timeouts = self.experiment.cluster().timeouts
        self._stop_by = time.monotonic() + timeouts.stop_grace_seconds + STOP_PATIENCE_SECONDS
        note(f"stopping {self.experiment.job_id} on all nodes")

    def _note_state(self, state: JobState) -> None:
        was, self.state = self.state.phase, state
        if self.verbose and state.phase is Phase.PREPARING and was is not Phase.PREPARING:
            plan = self.experiment.record().plan
            if plan:
                show_plan(plan)

    def _show_event(self, event: Event) -> None:
        if self.offsets is not None and event.time < time.time() - 1:
            return
        where = f"{event.node}: " if event.node else ""
        self.console.print(f"[bold]{clock(event.time)}[/] {shown(where + event.message)}")

    def _show_lines(self) -> None:
        """What the ranks have said since the last time; a print for each could not keep up with them."""
        if self._lines:
            self.console.print_lines([self._behind_node(line) for line in self._lines], self.width)
            self._lines.clear()

    def _behind_node(self, line: Line) -> tuple[str, str, str]:
        # A restart may have left a node behind.
        node = next((rank.node for rank in self.state.ranks if rank.rank == line.rank), str(line.rank))
        return node, NODE_COLOURS[line.rank % len(NODE_COLOURS)], line.text

    def _update_line(self) -> None:
        if self._live:
            self._live.update(
                shown(
                    f"{self.experiment.name} {self.state.phase} {duration(self.state.seconds)}{self._far()}"
                )
            )

    def _far(self) -> str:
        step, total, loss = (self._metrics.get(key) for key in ("step", "total_steps", "loss"))
        words = f"  step {step}" if step is not None else ""
        if isinstance(step, int) and isinstance(total, int) and total > 0:
            words += f"/{total} ({100 * step // total} %)"
        return words + (f"  loss {loss:.4f}" if isinstance(loss, float) else "")

    def _end(self) -> None:
        if self.as_json:
            show_json({"job_id": self.experiment.job_id, "state": self.state})
        state, name = self.state, self.experiment.name
        if state.phase is Phase.SUCCEEDED:
            if not self.as_json:
                self.console.print(
                    f"[green]{shown(self.experiment.job_id)} succeeded[/] in {duration(state.seconds)}"
                    f"{shown(self._far())}; see: {as_called('inv results')} {shown(name)}"
                )
            return
        words = [f"{self.experiment.job_id} {state.phase}"]
        if state.cause:
            words[0] += f": {state.cause.message}"
            words += [f"    {line}" for line in state.cause.last_lines]
        if state.phase is Phase.FAILED:
            words.append(f"see: inv logs {name}")
        raise JobEnded("\n".join(words), state.exit_code)

    def _unproven(self, why: str) -> StopUnproven:
        missing = [rank.node for rank in self.experiment.state().ranks if not rank.proven_gone]
        return StopUnproven(
            f"{self.experiment.job_id}: {why} from {', '.join(missing) or 'any node'}; the agent goes on asking. "
            f"See: inv status {self.experiment.name}. "
            f"A node that will not come back: inv stop {self.experiment.name} --give-up"
        )
