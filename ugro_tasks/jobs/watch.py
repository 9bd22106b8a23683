"""The events, logs, metrics and states of a job, read from its folder as it grows."""

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
QUIET_POLL_SECONDS = 0.1  # once nothing has come for QUIET_SECONDS
QUIET_SECONDS = 5.0
AGENT_SECONDS = 1.0  # between checks of the agent of an unfinished job
AGENTS_TRIED = 5  # in a row
# The longest time without an agent while the folder cannot be written.
NO_AGENT_SECONDS = 60.0


class Line(msgspec.Struct, frozen=True):
    """A line printed by a rank, unchanged."""

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
    """Yield events, lines of the ranks, metrics and changed states until the job has ended.

    `offsets` are the byte offsets in the ranks' logs to begin at. None is yielded if nothing came
    for a moment. A dead agent is started again; raises RecordError if no agent stays alive.
    """
    logs: dict[int, Tail] = {}
    metrics = Tail(experiment.metrics)
    agents = _Agents(experiments, experiment)
    event_offset = 0
    last_state = None
    moved_at = time.monotonic()
    while True:
        # The state is read first: a finished job's files are complete by then.
        state = experiment.state()
        shown = range(len(state.ranks)) if ranks is None else ranks
        for rank in shown:
            if rank not in logs:
                begin = offsets.get(rank, 0) if offsets else 0
                logs[rank] = Tail(experiment.log(rank), begin)
        events, event_offset = experiment.events(event_offset)
        yield from events
        moved = bool(events)
        # Before the lines: it names the nodes of the ranks that print them.
        if state != last_state:
            yield state
            last_state = state
        for rank, tail in logs.items():
            for text in tail.read(rest_too=state.phase.finished):
                yield Line(rank, text)
                moved = True
        lines = metrics.read()
        logged = read_metrics(lines[-1]) if lines else None
        if logged:
            yield Progress(logged)
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
    """Keeps an agent running for an unfinished job."""

    def __init__(self, experiments: Experiments, experiment: Experiment) -> None:
        self.experiments = experiments
        self.experiment = experiment
        now = time.monotonic()
        self._looked_at = now
        self._well_at = now
        self._begun = 0  # in a row

    def look(self) -> None:
        """Start an agent if none runs.

        Raises RecordError if starts keep failing, or if no agent of this user may supervise the job.
        """
        now = time.monotonic()
        # A second longer after each start: on a very busy machine an agent takes time to show up.
        if now - self._looked_at < AGENT_SECONDS * (1 + self._begun):
            return
        self._looked_at = now
        self.experiment.check_supervisable()
        # Where the file system has no locks there will never be one.
        runs = self.experiments.agent_pid() is not None
        try:
            begun = not runs and ensure_agent(self.experiments) is not None
            self._begun = self._begun + 1 if begun else 0
            self._well_at = now
        except RecordError:
            # A disk may be full or read-only for a while; that is no reason to stop watching.
            if now - self._well_at > NO_AGENT_SECONDS:
                raise
        if self._begun > AGENTS_TRIED:
            raise RecordError(
                f"the agent dies as soon as it starts; it says why in {self.experiments.agent_stderr.path}"
            )
