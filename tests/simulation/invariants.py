"""What holds of a job in every state, held against what is true of its nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.simulation.schedules import Schedule
from tests.unit.backends.ssh.simulation import SimulatedNode
from ugro_tasks.backends.ssh.gang import (
    Act,
    DoStep,
    Event,
    Exited,
    GangState,
    Member,
    Stage,
    Step,
    TellToStop,
)
from ugro_tasks.backends.ssh.loop import Common
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.state import JobState

# The list of states in docs/ARCHITECTURE.md, as far as an agent goes through it.
FOLLOWERS = {
    "queued": {"preparing", "failed", "stopped", "refused"},
    "preparing": {"running", "stopping", "queued", "failed", "stopped", "refused"},
    "running": {"stopping", "queued", "succeeded", "failed", "stopped"},
    "stopping": {"queued", "succeeded", "failed", "stopped"},
}
ENDS = {"succeeded", "failed", "stopped", "refused"}
SUCCESS = {"code": 0}


class Truth:
    """What is true of a job's nodes, and was asked for."""

    def __init__(
        self, nodes: Sequence[SimulatedNode], job: Experiment, schedule: Schedule
    ) -> None:
        self.nodes = nodes
        self.job = job
        self.schedule = schedule
        self.stop_asked_at: float | None = None
        self.was_given_up = False
        self.was_reset = False
        self.ever_ran = False
        self._last = job.state()

    def begin_agent(self) -> None:
        """Begin with what was written."""
        self._last = self.job.state()

    @property
    def was_stop_asked(self) -> bool:
        """Say whether somebody asked for a stop."""
        return self.stop_asked_at is not None

    @property
    def phase(self) -> str:
        """Give the job's phase, as its last agent knows it."""
        return str(self._last.phase)

    # ---- a state of the record ----

    def hold_state(self, state: JobState) -> None:
        """Hold a new state of the record against the one before, and against what is true."""
        before, self._last = self._last, state
        assert before.phase not in ENDS or before.phase == state.phase, state
        if state.phase != before.phase:
            assert state.phase in FOLLOWERS[before.phase], (before.phase, state.phase)
            again = state.phase == "queued"
            assert not (again and self.was_stop_asked), "again though asked to stop"
        numbers = [attempt.number for attempt in state.attempts]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) <= 1 + self.schedule.restarts
        assert all(attempt.ended_at for attempt in state.attempts[:-1])
        self._hold_ranks(state)
        if state.phase in ENDS:
            self._hold_end_of(state)
            self._hold_stop_of(before, state)

    def hold_written(self) -> None:
        """Hold that the record says what was noted, once nothing waits to be written."""
        assert self.job.state() == self._last

    def _hold_ranks(self, state: JobState) -> None:
        for rank in state.ranks:
            node = self._node(rank.node)
            assert not (rank.proven_gone and (node.runs or rank.left_pids)), rank
            if rank.exit_code is None and rank.signal is None:
                continue
            end = node.exit
            assert end, rank
            signal = end.signal or end.interrupted
            assert (rank.exit_code, rank.signal) == (end.code, signal), (rank, end)

    def _hold_end_of(self, state: JobState) -> None:
        ends = [self.facts(self._node(rank.node)) for rank in state.ranks]
        match state.phase:
            case "succeeded":
                assert ends, state
                assert ends == [SUCCESS] * len(ends), ends
                assert state.exit_code == 0
            case "stopped":
                assert self.was_stop_asked or self.was_reset, state
                assert state.reason in {"asked", "reset"}, state
                assert state.reason != "reset" or self.was_reset
            case "refused":
                assert not self.ever_ran, state
        assert state.phase == "succeeded" or state.exit_code != 0
        assert state.ended_at
        assert all(attempt.ended_at for attempt in state.attempts)

    def _hold_stop_of(self, before: JobState, state: JobState) -> None:
        """Hold that a job that was stopped in an attempt has nothing of it running, unless it was given up."""
        in_attempt = before.attempts and not before.attempts[-1].ended_at
        if state.phase == "stopped" and in_attempt and not self.was_given_up:
            assert not any(self._node(rank.node).runs for rank in state.ranks), state

    # ---- a step of the gang ----

    def hold_step(
        self,
        before: GangState,
        event: Event | Common,
        after: GangState,
        acts: Sequence[Act],
        now: float,
    ) -> None:
        """Hold a step of the gang, and what it tells the nodes."""
        for member, was in zip(after.members, before.members, strict=True):
            if member.exit and not member.exit.gave_up:
                assert member.exit == self._node(member.node).exit, member
            elif member.exit and was.exit is None:
                self._hold_given_up(member, after, now)
        orders = {
            act.node: act.order.reason for act in acts if isinstance(act, TellToStop)
        }
        failed = isinstance(event, Exited) and not event.exit.succeeded
        if failed and before.stage is Stage.RUNNING:
            assert orders.keys() == {member.node for member in before.members}, acts
        self._hold_orders(after, set(orders.values()))
        if after.stage is Stage.OVER and after.order and not after.given_up:
            self._hold_told(after)
        for act in acts:
            if isinstance(act, DoStep):
                self._hold_sent(act.step, now)

    def _hold_sent(self, step: Step, now: float) -> None:
        """Hold that the record has what the nodes are to begin, and that nobody asked for a stop before a start."""
        plan = self.job.signed_record().plan
        assert plan, "begun without a plan"
        assert self.job.state().attempts[-1].number == plan.attempt
        if step is Step.START and self.stop_asked_at is not None:
            assert self.stop_asked_at >= now, "started though asked to stop"

    def _hold_orders(self, state: GangState, reasons: set[str]) -> None:
        if "asked" in reasons:
            assert self.was_stop_asked
        if "reset" in reasons:
            assert self.was_reset
        if "failure" in reasons:
            assert any(not rank_exit.succeeded for rank_exit in state.exits), state
        if "undone" in reasons:
            assert state.stage in {Stage.UNDOING, Stage.OVER}

    def _hold_told(self, state: GangState) -> None:
        """Hold that each node was told to stop for as long as it takes, or as often as it may take."""
        for member in state.members:
            assert member.stop, member
            enough = state.tries is not None and member.stop_tries >= state.tries
            assert member.stop.unreached is None or enough, member

    def _hold_given_up(self, member: Member, state: GangState, now: float) -> None:
        """Hold that a rank that runs counts as lost only where its node is away for long, and this machine is not."""
        node = self._node(member.node)
        if not node.runs or self.was_given_up:
            return
        limit = state.limits.away_seconds
        assert limit is not None, "given up where it is to be waited for"
        unreached = [*node.away, *node.refuses_login]
        assert any(since <= now - limit for since, _ in unreached), (now, node.name)
        others = [self._node(other.node) for other in state.members if other != member]
        remote = [other for other in others if not other.local]
        # A connection that is out is noticed a little later: when the node is tried again.
        lately = [now - back for back in (0.0, 1.0, 2.0, 4.0, 6.0)]
        online = any(not other.is_away(at) for other in remote for at in lately)
        alone = not remote and bool(others)
        answers = not node.is_away(now)
        assert online or alone or answers, (now, node.name)

    # ---- the nodes ----

    def hold_start(self, attempt: int) -> None:
        """Hold that a rank that begins is of the last attempt, and that nothing of another one runs where it does.

        Its order may come late, when the agent that sent it was killed and the record cannot be read.
        """
        self.ever_ran = True
        assert self._last.attempts[-1].number == attempt
        left = {name for a in self._last.attempts for name in a.left_behind}
        for node in self.nodes:
            assert not node.runs or node.attempt == attempt or node.name in left

    def hold_end(self) -> None:
        """Hold the end of the job: nothing runs on that is not named."""
        state = self.job.state()
        assert state.phase in ENDS
        named = {name for attempt in state.attempts for name in attempt.left_behind}
        running = {node.name for node in self.nodes if node.runs}
        assert running <= named, (running, state)
        ends = [self.facts(self._node(rank.node)) for rank in state.ranks]
        known = [rank.exit_code == 0 and rank.proven_gone for rank in state.ranks]
        if ends and ends == [SUCCESS] * len(ends) and all(known):
            # Also where a request to stop came too late.
            assert state.phase == "succeeded" or self.was_given_up, state

    def hold_after_see_off(self) -> None:
        """Hold that nothing runs any more."""
        assert not any(node.runs for node in self.nodes)

    # ---- helpers ----

    def _node(self, name: str) -> SimulatedNode:
        return next(node for node in self.nodes if node.name == name)

    @staticmethod
    def facts(node: SimulatedNode) -> dict[str, Any]:
        """Give what is true of the end of a node's rank, without what is as usual."""
        if node.exit is None:
            return {"runs": node.runs}
        facts: dict[str, Any] = {"code": node.exit.code, "signal": node.exit.signal}
        facts |= {"stopped": node.exit.stopped, "interrupted": node.exit.interrupted}
        return {name: value for name, value in facts.items() if value is not None}
