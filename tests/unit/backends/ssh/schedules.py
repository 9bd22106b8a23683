"""Schedules of what may happen to a gang and to the agents that follow it, one after the other.

Of an agent that is killed nothing is left but what it has written. The next one begins as `Supervision` does: by the
written phase it starts the gang once more, which only confirms what runs, or follows it to its end.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

from msgspec import Struct

from tests.unit.backends.ssh.simulation import SimulatedNode, Simulation
from ugro_tasks.backends.ssh.gang import (
    Act,
    ChangePhase,
    Event,
    Exited,
    GangState,
    NoteRan,
    Stage,
    Step,
    TellToStop,
)
from ugro_tasks.backends.ssh.loop import Begin, Common, Tick
from ugro_tasks.jobs.phase import Phase

TICK_SECONDS = 0.5
# By when whatever lasts has ended, and a job must be over some time later.
LATEST_SECONDS = 100
PATIENCE_SECONDS = 9_000.0
AWAY_SECONDS = 30.0

FOR_A_WHILE = ("away", "offline", "refused", "disk", "lost answers", "slow")
AT_ONCE = ("exit 0", "exit 3", "signal", "interrupted", "reset")
OF_THE_AGENT = ("stop", "give up", "kill")


class Happening(Struct, frozen=True):
    """Something that happens, at a time and perhaps for a while, in seconds."""

    kind: str
    at: float
    node: int = 0
    seconds: float = 0.0


class Schedule(Struct, frozen=True):
    """A gang and all that happens to it."""

    happenings: tuple[Happening, ...]
    ranks: int = 3
    local: int = 0
    restarts: bool = False
    cannot_send: tuple[int, ...] = ()
    stubborn: tuple[int, ...] = ()
    """The ranks of which something lives even after KILL."""


class World(Simulation):
    """Plays a schedule; `met` counts each pair of a stage and an event."""

    def __init__(self, schedule: Schedule, met: Counter[tuple[str, str]]) -> None:
        super().__init__(
            ranks=schedule.ranks,
            local=min(schedule.local, schedule.ranks),
            away_seconds=AWAY_SECONDS if schedule.restarts else None,
        )
        self.tick_seconds = TICK_SECONDS
        self.schedule = schedule
        self.met = met
        self.written: Phase | None = None
        self.stop_is_asked = False
        self.is_given_up = False
        self.was_reset = False
        for rank in schedule.cannot_send:
            self.nodes[rank % schedule.ranks].cannot_send = "PermissionError"
        for rank in schedule.stubborn:
            self.nodes[rank % schedule.ranks].left_pids = (41,)
        for happening in schedule.happenings:
            self._plan(happening)
        for node in self.nodes:
            # Whatever runs ends at last.
            self.at(LATEST_SECONDS + 20.0, partial(node.end, code=0))

    def _plan(self, happening: Happening) -> None:
        node = self.nodes[happening.node % len(self.nodes)]
        since, until = happening.at, happening.at + happening.seconds
        is_local = self.state.members[node.rank].local
        match happening.kind:
            case "away" if not is_local:
                node.away.append((since, until))
            case "offline":
                self.go_offline(since, until)
            case "refused" if not is_local:
                node.refuses_login.append((since, until))
            case "lost answers":
                node.loses_answers.append((since, until))
            case "slow":
                node.is_slow.append((since, until))
            case "disk":
                self.at(since, partial(self._set_disk, takes_nothing=True))
                self.at(until, partial(self._set_disk, takes_nothing=False))
            case "exit 0":
                self.at(since, partial(node.end, code=0))
            case "exit 3":
                self.at(since, partial(node.end, code=3))
            case "signal":
                self.at(since, partial(node.end, signal=9))
            case "interrupted":
                self.at(since, partial(node.end, code=0, interrupted=15))
            case "reset":
                self.at(since, partial(self._reset, node))
            case "stop":
                self.at(since, partial(self._ask, give_up=False))
            case "give up":
                self.at(since, partial(self._ask, give_up=True))
            case "kill":
                self.at(since, self._kill)

    def _set_disk(self, *, takes_nothing: bool) -> None:
        self.disk_takes_nothing = takes_nothing

    def _reset(self, node: SimulatedNode) -> None:
        self.was_reset = self.was_reset or node.runs
        node.end(signal=15, stopped="reset")

    def _ask(self, *, give_up: bool) -> None:
        if self.state.stage is not Stage.OVER:
            self.stop_is_asked = True
            self.is_given_up = self.is_given_up or give_up
            self.ask_to_stop(given_up=self.is_given_up)

    def _kill(self) -> None:
        """Forget everything but what was written, and let the next agent begin."""
        if self.state.stage is Stage.OVER:
            return
        self.generation += 1
        self.is_followed = False
        for node in self.nodes:
            node.is_followed = node.is_told = False
        self.is_looking = False
        members = tuple(
            type(member)(node=member.node, rank=member.rank, local=member.local)
            for member in self.state.members
        )
        starting = self.written in {None, Phase.PREPARING}
        self.state = GangState(
            members=members,
            limits=self.state.limits,
            stage=Stage.STARTING if starting else Stage.RUNNING,
            steps=(Step.PREPARE, Step.START) if starting else (),
            begun_before=True,
        )
        self.take(Begin())
        if self.stop_is_asked:
            self.ask_to_stop(given_up=self.is_given_up)

    def take(self, event: Event | Common) -> None:
        """Take an event, note the pair, and hold what holds in every state."""
        before = self.state
        if not isinstance(event, Tick):
            self.met[before.stage.name, type(event).__name__] += 1
        count = len(self.acts)
        super().take(event)
        acts = [act for _, act in self.acts[count:]]
        self._write(acts)
        self._check(before, event, acts)

    def _write(self, acts: list[Act]) -> None:
        if self.disk_takes_nothing:
            return
        for act in acts:
            if isinstance(act, ChangePhase) or (isinstance(act, NoteRan) and act.phase):
                self.written = act.phase

    def _check(self, before: GangState, event: Event | Common, acts: list[Act]) -> None:
        told = {act.node for act in acts if isinstance(act, TellToStop)}
        for member, was in zip(self.state.members, before.members, strict=True):
            node = self.nodes[member.rank]
            if member.exit and not member.exit.gave_up:
                assert member.exit == node.exit, (member, node.exit)
            if member.exit and member.exit.gave_up and was.exit is None:
                self._check_given_up(node)
        failed = isinstance(event, Exited) and not event.exit.succeeded
        if failed and before.stage is Stage.RUNNING:
            assert told == {member.node for member in before.members}, (event, acts)

    def _check_given_up(self, node: SimulatedNode) -> None:
        others = [other for other in self.nodes if other is not node]
        remote = [other for other in others if not self.state.members[other.rank].local]
        gone = not node.runs
        # A connection that is out is noticed a little later.
        lately = [self.now - back for back in (0.0, 1.0, 2.0, 4.0)]
        online = any(not other.is_away(at) for other in remote for at in lately)
        alone = not remote and bool(others)
        answers = not node.is_away(self.now)
        assert gone or online or alone or answers or self.is_given_up, (
            self.now,
            node.name,
        )

    def verdict(self) -> str:
        """Run, and say how the job ends, as `Supervision` would."""
        state = self.run(limit_seconds=PATIENCE_SECONDS)
        exits = state.exits
        if state.outcome:
            return str(state.outcome.phase)
        if len(exits) == len(state.members) and all(e.succeeded for e in exits):
            return "succeeded"
        if state.stopped_for:
            return f"stopped: {state.stopped_for}"
        return "failed"


def check(schedule: Schedule, met: Counter[tuple[str, str]]) -> str:
    """Play a schedule, hold its end against what is true of the nodes, and give the verdict."""
    world = World(schedule, met)
    verdict = world.verdict()
    state = world.state
    words = state.outcome.words if state.outcome else ""
    lost = {rank_exit.node for rank_exit in state.exits if rank_exit.lost}
    for node in world.nodes:
        named = node.name in words or node.name in lost
        assert not node.runs or named, (node.name, verdict)
    ends = [_facts(node) for node in world.nodes]
    if verdict == "succeeded":
        assert ends == [{"code": 0}] * len(ends), ends
    if verdict == "stopped: asked":
        assert world.stop_is_asked
    if verdict == "stopped: reset":
        assert world.was_reset
    if verdict == "stopped":
        assert world.stop_is_asked or world.was_reset
    if all(end == {"code": 0} for end in ends) and not world.stop_is_asked:
        known = {"succeeded", "failed"} if lost or state.outcome else {"succeeded"}
        assert verdict in known, (verdict, state)
    return verdict


def _facts(node: SimulatedNode) -> dict[str, Any]:
    """Give what is true of the end of a node's rank, without what is as usual."""
    if node.exit is None:
        return {"runs": node.runs}
    facts: dict[str, Any] = {"code": node.exit.code, "signal": node.exit.signal}
    facts |= {"stopped": node.exit.stopped, "interrupted": node.exit.interrupted}
    return {name: value for name, value in facts.items() if value is not None}
