"""A job, its nodes and its agents, one after the other, under a clock of their own.

An agent that is killed leaves nothing but what it has written; the next one begins with that, as a real one does.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial

from tests.simulation.backend import HeldBack, SimulatedBackend
from tests.simulation.homes import Home
from tests.simulation.invariants import Truth
from tests.simulation.schedules import LATEST_SECONDS, Happening, Schedule
from tests.unit.backends.ssh.simulation import (
    SimulatedNode,
    SimulatedNodes,
    is_within,
)
from ugro_tasks.agent.supervise import Supervision
from ugro_tasks.backends.ssh.gang import Act, Event, GangState
from ugro_tasks.backends.ssh.loop import Common, Tick
from ugro_tasks.errors import RecordError
from ugro_tasks.jobs.experiments import HISTORY
from ugro_tasks.jobs.journal import Journal

TICK_SECONDS = 1.0
# Until the next look at a job that cannot be read.
LOOK_SECONDS = 10.0
# A rank ends by itself some time after all that lasts, or after its start.
RUN_SECONDS = 20.0
# By when a job is over whatever happened.
PATIENCE_SECONDS = 9_000.0
RECORDS = ("state.json", ".state.json.copy", "config.json", ".config.json.copy")
NOT_JSON = b'{"state": "runn'
LOG = logging.getLogger("tests.simulation")
LOG.disabled = True


class Met:
    """How often each pair of a state and an event was met: of a gang's stage, and of a job's."""

    def __init__(self) -> None:
        self.events: Counter[tuple[str, str]] = Counter()
        self.happenings: Counter[tuple[str, str]] = Counter()

    def update(self, other: Met) -> None:
        """Add what was met elsewhere."""
        self.events.update(other.events)
        self.happenings.update(other.happenings)


class Killed(BaseException):
    """The end of an agent, wherever it is."""


class World(SimulatedNodes):
    """Plays a schedule, and counts what is met.

    With `threads`, each answer, write and look for a request to stop is done in a thread, and waited for.
    """

    def __init__(
        self,
        schedule: Schedule,
        home: Home,
        met: Met | None = None,
        *,
        threads: bool = False,
    ) -> None:
        super().__init__(
            ranks=schedule.ranks, local=min(schedule.local, schedule.ranks)
        )
        self.tick_seconds = TICK_SECONDS
        self.home = home
        self.schedule = schedule
        self.met = met or Met()
        self.threads = threads
        self.job = next(home.experiments.all())
        self.truth = Truth(self.nodes, self.job, schedule)
        self._agent_lives = False
        self._is_killed = False
        self._writes = 0
        self._last_writes: set[int] = set()
        self._behind: HeldBack | None = None
        self.bring: Callable[[Event], None] = _to_nobody
        for index in schedule.cannot_send:
            self.nodes[index % schedule.ranks].cannot_send = "PermissionError"
        for index in schedule.stubborn:
            self.nodes[index % schedule.ranks].left_pids = (41,)
        for happening in schedule.happenings:
            self._plan(happening)

    # ---- what happens ----

    def _plan(self, happening: Happening) -> None:
        node = self.nodes[happening.node % len(self.nodes)]
        since, until = happening.at, happening.at + happening.seconds
        at_once = partial(self.at, since)
        if happening.kind != "killed in a write":
            at_once(partial(self._meet, happening.kind))
        match happening.kind:
            case "away" if not node.local:
                node.away.append((since, until))
            case "refused" if not node.local:
                node.refuses_login.append((since, until))
            case "lost answers":
                node.loses_answers.append((since, until))
            case "late answers":
                node.is_slow.append((since, until))
            case "twice":
                node.answers_twice.append((since, until))
            case "offline":
                self.go_offline(since, until)
            case "exit 0":
                at_once(partial(node.end, code=0))
            case "exit 3":
                at_once(partial(node.end, code=3))
            case "signal":
                at_once(partial(node.end, signal=9))
            case "interrupted":
                at_once(partial(node.end, code=0, interrupted=15))
            case "reset":
                at_once(partial(self._reset, node))
            case "disk":
                at_once(partial(self._set_disk, takes_nothing=True))
                self.at(until, partial(self._set_disk, takes_nothing=False))
            case "stop":
                at_once(partial(self._ask_to_stop, give_up=False))
            case "give up":
                at_once(partial(self._ask_to_stop, give_up=True))
            case "kill":
                at_once(self._kill)
            case "power cut":
                at_once(partial(self._cut_power, RECORDS[happening.node]))
            case "unreadable":
                name = RECORDS[2 * (happening.node % 2)]
                at_once(partial(self._make_unreadable, name, until))
            case "killed in a write":
                self._last_writes.add(int(happening.at))

    def _meet(self, kind: str) -> None:
        self.met.happenings[self.truth.phase, kind] += 1

    def _reset(self, node: SimulatedNode) -> None:
        self.truth.was_reset = self.truth.was_reset or node.runs
        node.end(signal=15, stopped="reset")

    def _set_disk(self, *, takes_nothing: bool) -> None:
        self.disk_takes_nothing = takes_nothing

    def _ask_to_stop(self, *, give_up: bool) -> None:
        if not self._is_under_way():
            return
        self.job.ask_to_stop(give_up=give_up or self.truth.was_given_up)
        if self.truth.stop_asked_at is None:
            self.truth.stop_asked_at = self.now
        self.truth.was_given_up = self.truth.was_given_up or give_up

    def _kill(self) -> None:
        self._is_killed = self._agent_lives

    def _cut_power(self, name: str) -> None:
        self._kill()
        if self._is_killed:
            self._tear(name)

    def _tear(self, name: str) -> None:
        """Leave half of a record or of its copy, unless that was so, and nobody has mended it yet."""
        content = self._read(name)
        other = name[1:-5] if name.endswith(".copy") else f".{name}.copy"
        if content == self._read(other):
            self._write(name, content[: len(content) // 2])

    def _make_unreadable(self, name: str, until: float) -> None:
        """Let nobody make sense of a record and its copy, until somebody brings them back."""
        if not self._is_under_way():
            return
        self._kill()
        names = (name, f".{name}.copy")
        before = {name: self._read(name) for name in names}
        for name in names:
            self._write(name, NOT_JSON)

        def restore() -> None:
            for name, content in before.items():
                assert self._read(name) == NOT_JSON, "overwritten without being read"
                self._write(name, content)

        self.at(until, restore)

    def _is_under_way(self) -> bool:
        """Say whether the job's record can be read, and is not at its end."""
        with contextlib.suppress(RecordError):
            self.job.record()
            return not self.job.state().phase.finished
        return False

    def _read(self, name: str) -> bytes:
        return self.home.read(f"{self.job.job_id}/{name}")

    def _write(self, name: str, content: bytes) -> None:
        self.home.write(f"{self.job.job_id}/{name}", content)

    # ---- agents ----

    def run(self) -> None:
        """Let one agent after the other see the job through, until it is at its end."""
        experiments = self.home.experiments
        while True:
            experiments.complete_history()
            ours, left_alone = experiments.to_supervise()
            if left_alone:
                self.sleep(LOOK_SECONDS)
            elif not ours:
                self.truth.hold_end()
                assert self.home.read(HISTORY).count(b"\n") == 1
                return
            else:
                self._be_agent()

    def _be_agent(self) -> None:
        self._agent_lives = True
        self.forget_agent()
        self.truth.begin_agent()
        experiments = self.home.experiments
        try:
            journal = Journal(self.job, LOG, self._write_behind)
            backend = SimulatedBackend(self, journal, experiments)
            supervision = Supervision(experiments, journal, backend)
            supervision.run()
            self.truth.hold_end()
            supervision.see_off()
            self.truth.hold_after_see_off()
        except Killed:
            pass
        finally:
            if self._behind:
                self._behind.abandon()
            self._agent_lives = self._is_killed = False
            self._behind = None

    def _write_behind(self, *given: object) -> HeldBack:
        self._behind = HeldBack(self, *given)
        return self._behind

    # ---- what the parts of an agent ask for ----

    def node(self, name: str) -> SimulatedNode:
        """Give the node of this name."""
        return self._by_name[name]

    def is_free(self, name: str) -> bool:
        """Say whether a node answers, and has nothing of an attempt."""
        node = self.node(name)
        refuses = is_within(node.refuses_login, self.now)
        left = node.runs or (node.has_run and node.left_pids)
        return not (node.is_away(self.now) or refuses or left)

    def take(self, event: Event) -> None:
        """Bring an event to the loop of the agent."""
        self.bring(event)

    def starts(self, node: SimulatedNode, attempt: int) -> None:
        """Start a rank, where that is right."""
        had_run = node.has_run
        super().starts(node, attempt)
        if node.has_run and not had_run:
            self.truth.hold_start(attempt)
            ends_at = max(LATEST_SECONDS, self.now) + RUN_SECONDS
            self.at(ends_at, partial(_end, node, attempt))

    def stepped(
        self, state: GangState, event: Event | Common, after: GangState, acts: list[Act]
    ) -> None:
        """Note a step of the gang, and hold what holds of each."""
        if not isinstance(event, Tick):
            self.met.events[state.stage.name, type(event).__name__] += 1
        self.truth.hold_step(state, event, after, acts, self.now)

    def advance(self) -> None:
        """Let what waits be written, and time go by."""
        assert self.now < PATIENCE_SECONDS, "not at its end"
        self._let_write()
        super().advance()
        if self._is_killed:
            raise Killed

    def sleep(self, seconds: float) -> None:
        """Let some time go by."""
        until = self.now + seconds
        while self.now < until:
            self.advance()

    def settle(self) -> None:
        """Let time go by until the disk takes what waits."""
        while self.disk_takes_nothing:
            self.advance()
        self._let_write()

    def _let_write(self) -> None:
        if self._behind and not self.disk_takes_nothing:
            wrote = self._behind.let_write()
            if self._is_killed:
                raise Killed
            if wrote:
                self.truth.hold_written()

    def may_write(self) -> bool:
        """Count a write; say whether the agent lives to do it."""
        if self._writes in self._last_writes:
            self._meet("killed in a write")
            self._is_killed = True
        self._writes += 1
        return not self._is_killed


def _to_nobody(event: Event) -> None:
    """Have nobody to bring an event to."""
    del event


def _end(node: SimulatedNode, attempt: int) -> None:
    if node.attempt == attempt:
        node.end(code=0)
