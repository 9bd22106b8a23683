"""What happens to a job, read from its folder as it grows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import msgspec

from ..errors import RecordError
from .agent_process import ensure_agent
from .experiment import Experiment
from .experiments import Experiments
from .metrics import read_metrics
from .state import Event, JobState
from .tail import Tail

POLL_SECONDS = 0.05
QUIET_POLL_SECONDS = 0.1  # where nothing has come for
QUIET_SECONDS = 5.0  # as long as this
AGENT_SECONDS = 1.0  # how often to see whether an unfinished job still has its agent
AGENTS_TRIED = 5  # in a row
# How long a job may be without one because its folder cannot be written.
NO_AGENT_SECONDS = 60.0


class Line(msgspec.Struct, frozen=True):
    """A line that a rank printed, as it is."""

    rank: int
    text: str


class Progress(msgspec.Struct, frozen=True):
    """The last object of metrics.jsonl."""

    metrics: dict[str, object]


def watch(
    experiments: Experiments,
    experiment: Experiment,
    *,
    ranks: list[int] | None = None,
    offsets: Mapping[int, int] | None = None,
) -> Iterator[Event | Line | Progress | JobState | None]:
    """Everything as it comes: events, lines of the ranks, metrics, and the state whenever it changes.

    `offsets` says from where in a rank's log on. None says that nothing came for a moment. Ends when the job
    has. An agent that died meanwhile is started again; RecordError is raised where none of them lives.
    """
    logs: dict[int, Tail] = {}
    metrics = Tail(experiment.metrics)
    event_offset, last_state, agents, moved_at = (
        0,
        None,
        _Agents(experiments),
        time.monotonic(),
    )
    while True:
        # The state is read first: whatever belongs to its end is in the files by then.
        state = experiment.state()
        for rank in range(len(state.ranks)) if ranks is None else ranks:
            if rank not in logs:
                logs[rank] = Tail(experiment.log(rank), (offsets or {}).get(rank, 0))
        events, event_offset = experiment.events(event_offset)
        yield from events
        moved = bool(events)
        for rank, tail in logs.items():
            for text in tail.read(rest_too=state.phase.finished):
                yield Line(rank, text)
                moved = True
        if (lines := metrics.read()) and (logged := read_metrics(lines[-1])):
            yield Progress(logged)
        if state != last_state:
            yield state
            last_state = state
        if state.phase.finished and not moved:
            return
        if not state.phase.finished:
            agents.look()
        if moved:
            moved_at = time.monotonic()
        else:
            yield None
            quiet = time.monotonic() - moved_at > QUIET_SECONDS
            time.sleep(QUIET_POLL_SECONDS if quiet else POLL_SECONDS)


class _Agents:
    """Sees to it that an unfinished job has its agent."""

    def __init__(self, experiments: Experiments) -> None:
        self.experiments = experiments
        self._looked_at = self._well_at = time.monotonic()
        self._begun = 0  # in a row

    def look(self) -> None:
        """Start one where none lives; raises RecordError where that does not help."""
        now = time.monotonic()
        # After each start a second longer: on a very busy machine one that lives takes its time to show it.
        if now - self._looked_at < AGENT_SECONDS * (1 + self._begun):
            return
        self._looked_at = now
        try:
            self._begun = self._begun + 1 if ensure_agent(self.experiments) else 0
            self._well_at = now
        except RecordError:
            # A disk may be full or read-only for a while: nobody who watches need leave for that.
            if now - self._well_at > NO_AGENT_SECONDS:
                raise
        if self._begun > AGENTS_TRIED:
            raise RecordError(
                f"the agent dies as soon as it starts; it says why in {self.experiments.agent_stderr}"
            )
