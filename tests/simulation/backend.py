"""An agent's parts under the clock of a simulated world: its loop, its gang and backend, and what it writes.

They are those of a real one, but for what goes to nodes and what waits. In a world with threads the answers come from
threads, requests to stop are watched for in a thread, and writes are done in one.
"""
# ruff: noqa: ARG002 (a stand-in has the whole seam, whether it needs it or not)

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from tests.unit.backends.ssh.fake_hosts import FakeHost
from tests.unit.backends.ssh.simulation import away
from tests.unit.factories import make_node_plan, make_plan_of
from ugro_tasks.backends.api import AttemptEnd
from ugro_tasks.backends.ssh.backend import SshBackend
from ugro_tasks.backends.ssh.gang import (
    Act,
    DoStep,
    Event,
    Follow,
    GangState,
    Look,
    Stage,
    TellToStop,
)
from ugro_tasks.backends.ssh.gang_loop import Gang
from ugro_tasks.backends.ssh.gang_step import step
from ugro_tasks.backends.ssh.late_stop import left_behind
from ugro_tasks.backends.ssh.loop import Common, Loop, StopAsked, StopWatch, Tick
from ugro_tasks.errors import NotFit, UgroError
from ugro_tasks.hosts.fleet import Fleet
from ugro_tasks.hosts.retry import retry_pause
from ugro_tasks.jobs.attempt_names import folder_of, token_of
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.journal import Journal
from ugro_tasks.jobs.outcome import Outcome
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.plan import LaunchPlan
from ugro_tasks.jobs.spec import Resume
from ugro_tasks.jobs.write_behind import Write, WriteBehind

if TYPE_CHECKING:
    from tests.simulation.world import World

LOOK_SECONDS = 1.0


class HeldBack(WriteBehind):
    """Writes that are done when the world lets them: before time goes by, while the disk takes something."""

    def __init__(self, world: World, *given: Any) -> None:
        super().__init__(*given)
        self._world = world
        self._waits = False

    def _begin(self) -> None:
        self._waits = True

    def put(self, write: Write, *, of: str | None = None) -> None:
        if of == "state":
            # The state is what `Journal.change` has just made of it.
            self._world.truth.hold_state(cast("partial[None]", write).args[0])
        super().put(write, of=of)

    def let_write(self) -> bool:
        """Do what waits; say whether there was any."""
        waited, self._waits = self._waits, False
        if waited and self._world.threads:
            super()._begin()
            super().settle()
        elif waited:
            self._run()
        return waited

    def _insist(self, write: Write) -> None:
        if self._world.may_write():
            super()._insist(write)

    def settle(self) -> None:
        self._world.settle()
        super().settle()

    def abandon(self) -> None:
        self._waits = self._is_writing = False
        super().abandon()


class PacedLoop(Loop[GangState, Event, Act]):
    """A loop that lets the world go on until an event comes."""

    def __init__(self, gang: SimulatedGang, world: World) -> None:
        super().__init__(gang.checked_step, gang.carry_out, gang.journal)
        self._world = world
        self._told: StopAsked | None = None
        # Events that were brought, and may still be on their way.
        self._owed = 0

    def run(self, state: GangState, until: Callable[[GangState], bool]) -> GangState:
        self._told = None
        self._world.forget_agent()
        self._world.bring = self._bring
        return super().run(state, until)

    def _bring(self, event: Event) -> None:
        self._owed += 1
        if self._world.threads:
            self.in_thread("answer", lambda: event)
        else:
            self.put(event)

    def _now(self) -> float:
        return self._world.now

    def _watch(self) -> StopWatch:
        if self._world.threads:
            return super()._watch()
        return _NoWatch()

    def _next(self) -> Event | StopAsked | Tick:
        if not self._owed:
            self._look_for_stop()
        if not self._owed:
            self._world.advance()
        if not self._owed:
            return Tick()
        event = super()._next()
        while isinstance(event, Tick):
            # The thread has not brought it yet.
            event = super()._next()
        self._owed -= 1
        return event

    def _look_for_stop(self) -> None:
        # Only where somebody asked is it worth a look at the file.
        if not self._world.truth.was_stop_asked or not self._journal.stop_asked:
            return
        asked = StopAsked(given_up=self._journal.given_up)
        if asked != self._told:
            self._told = asked
            self._owed += 1
            if not self._world.threads:
                self._events.put(asked)


class _NoWatch(StopWatch):
    """None is needed where the loop looks for itself."""

    def __init__(self) -> None:
        pass

    def end(self) -> None:
        pass


class SimulatedGang(Gang):
    """A gang on the nodes of the world."""

    def __init__(self, world: World, *given: Any) -> None:
        super().__init__(*given)
        self._world = world
        self._loop = PacedLoop(self, world)
        world.attempt = self.plan.attempt
        world.members = [world.node(plan.node) for plan in self.plan.nodes]

    def checked_step(
        self, state: GangState, event: Event | Common, now: float
    ) -> tuple[GangState, list[Act]]:
        """Make a step, and hold what holds of each."""
        after, acts = step(state, event, now)
        self._world.stepped(state, event, after, acts)
        return after, acts

    def carry_out(self, act: Act) -> None:
        """Let the world do what is about nodes, and write down the rest."""
        if isinstance(act, DoStep | Follow | Look | TellToStop):
            self._world.carry_out(act)
        else:
            self._carry_out(act)

    def _run(self, state: GangState) -> GangState:
        return self._loop.run(state, until=lambda now: now.stage is Stage.OVER)


class SimulatedBackend(SshBackend):
    """The backend of hosts reached by SSH, on the nodes of the world, with a gate that only looks who is there."""

    def __init__(
        self, world: World, journal: Journal, experiments: Experiments
    ) -> None:
        cluster = journal.experiment.cluster()
        fleet: Fleet = Fleet.from_connections([FakeHost(n) for n in cluster.nodes])
        super().__init__(journal, cluster, fleet, experiments)
        self._world = world

    def begin(self) -> None:
        """Leave the late stops to `see_off`."""

    def plan(
        self, number: int, resume: Callable[[], Resume | None]
    ) -> LaunchPlan | Outcome:
        """Wait for all nodes, but at the first attempt."""
        names = self.journal.record.nodes
        wait_seconds = self.cluster.timeouts.return_seconds if number > 1 else 0.0
        deadline = self._world.now + wait_seconds
        while True:
            if number > 1:
                self.stop()
            if self.journal.stop_asked:
                return Outcome.stopped("before it started")
            missing = [name for name in names if not self._world.is_free(name)]
            if not missing:
                break
            if self._world.now >= deadline:
                return self._without(missing, number, resume)
            self._world.sleep(LOOK_SECONDS)
        return self._planned(names, number, resume)

    def _without(
        self, missing: list[str], number: int, resume: Callable[[], Resume | None]
    ) -> LaunchPlan | Outcome:
        words = f"{', '.join(missing)}: not there, or not free"
        if number == 1:
            return Outcome(phase=Phase.REFUSED, error=NotFit, words=words)
        names = [name for name in self.journal.record.nodes if name not in missing]
        if len(names) < (self.journal.record.min_nodes or len(self.cluster.nodes)):
            return Outcome(phase=Phase.FAILED, error=NotFit, words=words, final=True)
        self.journal.change_attempt(left_behind=tuple(missing))
        return self._planned(names, number, resume)

    def _planned(
        self,
        names: Collection[str],
        number: int,
        resume: Callable[[], Resume | None],
    ) -> LaunchPlan:
        record = self.journal.record
        nodes = [node for node in self.cluster.nodes if node.name in names]
        plans = tuple(
            make_node_plan(
                rank,
                node=node.name,
                folder=folder_of(record, number, node),
                token=token_of(record, number, node),
            )
            for rank, node in enumerate(nodes)
        )
        return make_plan_of(
            plans, job_id=record.job_id, attempt=number, resume=resume()
        )

    def _gang(self, plan: LaunchPlan) -> Gang:
        cluster = self._part([node.node for node in plan.nodes])
        fleet = self._fleet(self.cluster)
        return SimulatedGang(
            self._world, self.journal, cluster, fleet, plan, self._talks
        )

    def fetch(
        self, plan: LaunchPlan, end: AttemptEnd, nodes: Collection[str]
    ) -> list[UgroError]:
        """Fetch nothing from the nodes that are there."""
        return self._unreached(nodes)

    def fetch_earlier(self, before: int) -> list[UgroError]:
        """Fetch nothing, as `fetch`."""
        return []

    def fetch_checkpoints(self, plan: LaunchPlan) -> list[UgroError]:
        """Fetch nothing, as `fetch`."""
        return self._unreached([node.node for node in plan.nodes])

    def _unreached(self, names: Collection[str]) -> list[UgroError]:
        nodes = [self._world.node(name) for name in names]
        return [away(node) for node in nodes if node.is_away(self._world.now)]

    def see_off(self) -> None:
        """Tell the nodes left behind to stop, one after the other, until each has answered."""
        for name, number in left_behind(self.journal.state.attempts).items():
            node = self._world.node(name)
            tried = 0
            while node.is_away(self._world.now):
                self._world.sleep(retry_pause(tried))
                tried += 1
            node.stop(number, "failure")

    def still_away(self) -> set[str]:
        """Name the nodes left behind that are away."""
        names = left_behind(self.journal.state.attempts)
        return {n for n in names if self._world.node(n).is_away(self._world.now)}
