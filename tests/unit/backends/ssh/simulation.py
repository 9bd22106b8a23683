"""Three nodes and their ranks under a clock of their own, on which the acts of a gang have their effects."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from ugro_tasks.backends.ssh.gang import (
    Act,
    Connected,
    Disconnected,
    DoStep,
    Event,
    Exited,
    Follow,
    GangState,
    Limits,
    Look,
    Looked,
    Member,
    Stage,
    Step,
    StepDone,
    StopTold,
    TellToStop,
    trouble_of,
)
from ugro_tasks.backends.ssh.gang_step import step
from ugro_tasks.backends.ssh.loop import Begin, Common, Say, StopAsked, Tick
from ugro_tasks.backends.ssh.stop import StopResult
from ugro_tasks.errors import (
    HostError,
    HostUnreachable,
    LoginRefused,
    NodesBusy,
    StreamFault,
    UgroError,
)
from ugro_tasks.jobs.outcome import RankExit

TICK_SECONDS = 0.1
ANSWER_SECONDS = 0.2
SLOW_SECONDS = 5.0
# From an order to its arrival on the node.
ARRIVAL_SECONDS = 0.1
# What a try takes that reaches nobody.
CONNECT_SECONDS = 3.0
STOP_SECONDS = 1.0
# Until an answer that comes twice comes again.
TWICE_SECONDS = 1.5
EPOCH = 1_700_000_000.0


class SimulatedNode:
    """What a node does, as a test says, and what is true of its rank."""

    def __init__(self, rank: int, *, local: bool = False) -> None:
        self.rank = rank
        self.name = f"gpu{rank}"
        self.local = local
        self.faults: dict[Step, UgroError] = {}
        """{step: why it cannot be done here}"""
        self.left_pids: tuple[int, ...] = ()
        """What would live even after KILL."""
        self.away: list[tuple[float, float]] = []
        """[(from, until)] when nothing reaches it."""
        self.refuses_login: list[tuple[float, float]] = []
        """[(from, until)] when it accepts no key."""
        self.loses_answers: list[tuple[float, float]] = []
        """[(from, until)] when it does as it is told, and its answers do not arrive."""
        self.is_slow: list[tuple[float, float]] = []
        """[(from, until)] when its answers take some seconds more."""
        self.answers_twice: list[tuple[float, float]] = []
        """[(from, until)] when what it answers arrives a second time, behind what came meanwhile."""
        self.cannot_send = ""
        """Why it cannot send the streams of its rank."""
        self.cannot_tell_end = False
        """Whether the same keeps it from telling the end."""
        self.attempt = 1
        """The last attempt that it was told of; what follows is of that."""
        self.is_prepared = False
        self.runs = False
        self.has_run = False
        self.exit: RankExit | None = None
        self.is_followed = False
        self.is_told = False

    def is_away(self, now: float) -> bool:
        """Say whether nothing reaches it now."""
        return is_within(self.away, now)

    def answer_seconds(self, now: float) -> float:
        """Give what its answers take now."""
        return ANSWER_SECONDS + (SLOW_SECONDS if is_within(self.is_slow, now) else 0.0)

    def prepare(self, attempt: int, rank: int) -> UgroError | None:
        """Prepare the rank of an attempt, unless that was done before; say why it cannot be."""
        if attempt > self.attempt:
            if self.runs:
                return NodesBusy(f"{self.name}: another attempt runs there")
            self.attempt, self.rank = attempt, rank
            self.has_run = False
            self.exit = None
        if attempt == self.attempt and not self.has_run:
            self.is_prepared = True
        return None

    def start(self, attempt: int) -> None:
        """Start the rank that was prepared, once at most."""
        if attempt == self.attempt and self.is_prepared:
            self.is_prepared = False
            self.runs = self.has_run = True

    def stop(self, attempt: int, reason: str) -> None:
        """Stop the rank of an attempt, whether it runs or is only prepared."""
        if attempt == self.attempt:
            self.is_prepared = False
            self.end(signal=15, stopped=reason)

    def end(self, **record: Any) -> None:
        """End its rank, if it runs, with this exit record."""
        if self.runs:
            self.runs = False
            self.exit = RankExit(node=self.name, rank=self.rank, at=EPOCH, **record)


def is_within(times: list[tuple[float, float]], now: float) -> bool:
    """Say whether now is in one of these times: [(from, until)]."""
    return any(start <= now < end for start, end in times)


class SimulatedNodes:
    """Nodes under a clock of their own: the acts of a gang have their effects on them, `take` brings the events.

    The first `local` of them are this machine.
    """

    def __init__(self, *, ranks: int = 3, local: int = 0) -> None:
        self.nodes = [SimulatedNode(rank, local=rank < local) for rank in range(ranks)]
        self.now = 0.0
        self.tick_seconds = TICK_SECONDS
        # Of the agent. What one that was killed had asked for has its effects, and is told to nobody.
        self.generation = 0
        self.is_looking = False
        self.disk_takes_nothing = False
        # What the orders are about: an attempt, and its nodes in the order of their ranks.
        self.attempt = 1
        self.members = self.nodes
        self._by_name = {node.name: node for node in self.nodes}
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    # ---- what a test does ----

    def go_offline(self, since: float, until: float) -> None:
        """Let the cable of this machine be out meanwhile: no node is reached but this machine itself."""
        for node in self.nodes:
            if not node.local:
                node.away.append((since, until))

    def at(self, seconds: float, happens: Callable[[], None]) -> None:
        """Let something happen at this time."""
        heapq.heappush(self._later, (seconds, next(self._order), happens))

    def advance(self) -> None:
        """Let time go by until the next thing happens, or for a tick."""
        tick_at = self.now + self.tick_seconds
        if not self._later or self._later[0][0] > tick_at:
            self.now = tick_at
            return
        at, _, happens = heapq.heappop(self._later)
        self.now = max(self.now, at)
        happens()

    def forget_agent(self) -> None:
        """Tell nobody any more what was asked for so far; it still has its effects."""
        self.generation += 1
        self.is_looking = False
        for node in self.nodes:
            node.is_followed = node.is_told = False

    # ---- what follows ----

    def take(self, event: Event) -> None:
        """Bring an event to whoever runs the gang."""
        raise NotImplementedError(event)

    def carry_out(self, act: Act) -> None:
        """Let an act have its effect on the nodes, if it is about them."""
        match act:
            case DoStep():
                self._do(act.step)
            case Follow():
                self._follow(self._by_name[act.node], only_end=act.only_end)
            case TellToStop():
                self._tell(self._by_name[act.node], act)
            case Look():
                self._look([self._by_name[name] for name in act.nodes])

    def _answer(self, seconds: float, happens: Callable[[], None]) -> None:
        """Let the agent that asked hear of something, if it lives by then."""
        generation = self.generation

        def hear() -> None:
            if self.generation == generation:
                happens()

        self.at(self.now + seconds, hear)

    def _bring(self, node: SimulatedNode, event: Event) -> None:
        """Bring what a node answers, and perhaps once more, behind what comes meanwhile.

        That it does not answer is no news of the node's, and comes once.
        """
        if is_within(node.answers_twice, self.now):
            self._answer(TWICE_SECONDS, lambda: self.take(event))
        self.take(event)

    def _do(self, step_: Step) -> None:
        attempt, members = self.attempt, list(self.members)
        faults: list[UgroError] = []

        def arrives() -> None:
            for rank, node in enumerate(members):
                fault = self._fault(node, step_)
                if fault is None and step_ is Step.PREPARE:
                    fault = node.prepare(attempt, rank)
                if fault is None and step_ is Step.START:
                    self.starts(node, attempt)
                if fault is None and is_within(node.loses_answers, self.now):
                    fault = away(node)
                if fault:
                    faults.append(fault)

        seconds = max(node.answer_seconds(self.now) for node in members)
        self.at(self.now + seconds, arrives)
        self._answer(seconds, lambda: self.take(StepDone(tuple(faults))))

    def _fault(self, node: SimulatedNode, step_: Step) -> UgroError | None:
        return away(node) if node.is_away(self.now) else node.faults.get(step_)

    def starts(self, node: SimulatedNode, attempt: int) -> None:
        """Start the rank of an attempt on a node."""
        node.start(attempt)

    def _follow(self, node: SimulatedNode, *, only_end: bool) -> None:
        assert not node.is_followed, "followed twice at once"
        node.is_followed = True
        if node.is_away(self.now):
            self._answer(CONNECT_SECONDS, lambda: self._broke(node))
            return
        if is_within(node.refuses_login, self.now):
            refused = LoginRefused(node.name, "accepts none of your keys")
            self._answer(ANSWER_SECONDS, lambda: self._broke(node, refused))
            return
        cannot = node.cannot_send and (node.cannot_tell_end or not only_end)

        def connected() -> None:
            self._bring(node, Connected(node.name))
            if cannot:
                self._broke(node, StreamFault(node.name, node.cannot_send))
            else:
                self._watch(node)

        self._answer(node.answer_seconds(self.now), connected)

    def _watch(self, node: SimulatedNode) -> None:
        """Look again and again whether the rank of a connected node has ended, or the node is away."""
        if node.is_away(self.now):
            self._broke(node)
        elif node.exit:
            node.is_followed = False
            self._bring(node, Exited(node.exit, whole=not self.disk_takes_nothing))
        else:
            self._answer(self.tick_seconds, lambda: self._watch(node))

    def _broke(self, node: SimulatedNode, why: HostError | None = None) -> None:
        node.is_followed = False
        error = why or away(node)
        at = EPOCH + self.now
        self.take(Disconnected(node.name, error.text, at, trouble_of(error)))

    def _look(self, nodes: list[SimulatedNode]) -> None:
        assert not self.is_looking, "looked twice at once"
        self.is_looking = True
        found = any(not node.is_away(self.now) for node in nodes)

        def looked() -> None:
            self.is_looking = False
            self.take(Looked(found))

        self._answer(ANSWER_SECONDS if found else CONNECT_SECONDS, looked)

    def _tell(self, node: SimulatedNode, act: TellToStop) -> None:
        assert not node.is_told, "told twice at once"
        node.is_told = True
        attempt, generation = self.attempt, self.generation

        def arrives() -> None:
            is_away = node.is_away(self.now)
            if not is_away:
                node.stop(attempt, act.order.reason)
            if self.generation != generation:
                return
            if is_away or is_within(node.loses_answers, self.now):
                self._answer(CONNECT_SECONDS, unreached)
            else:
                self._answer(STOP_SECONDS, answered)

        def unreached() -> None:
            node.is_told = False
            self.take(StopTold(node.name, StopResult(unreached=away(node))))

        def answered() -> None:
            node.is_told = False
            shown = StopResult(ran=node.has_run, left_pids=node.left_pids)
            self._bring(node, StopTold(node.name, shown))

        late = SLOW_SECONDS if is_within(node.is_slow, self.now) else 0.0
        self.at(self.now + ARRIVAL_SECONDS + late, arrives)


class Simulation(SimulatedNodes):
    """Drives `step` until the gang is over; `acts` has each act with its time."""

    def __init__(
        self,
        *,
        steps: tuple[Step, ...] = (Step.PREPARE, Step.START),
        begun_before: bool = False,
        ranks: int = 3,
        local: int = 0,
        **limits: Any,
    ) -> None:
        super().__init__(ranks=ranks, local=local)
        known: dict[str, Any] = {
            "stop_grace_seconds": 7.0,
            "away_seconds": None,
            "catch_up_seconds": 30.0,
        }
        self.state = GangState(
            members=tuple(
                Member(node=node.name, rank=node.rank, local=node.local)
                for node in self.nodes
            ),
            limits=Limits(**known | limits),
            stage=Stage.STARTING,
            steps=steps,
            begun_before=begun_before,
        )
        self.acts: list[tuple[float, Act]] = []
        self._is_followed = False
        self._tick_at = 0.0

    def ask_to_stop(self, *, given_up: bool = False) -> None:
        """Ask for a stop, now."""
        self.take(StopAsked(given_up=given_up))

    def run(self, limit_seconds: float = 10_000.0) -> GangState:
        """Run until the gang is over; fail where it is not by then."""
        self.take(Begin())
        while self.state.stage is not Stage.OVER:
            assert self.now < limit_seconds, f"not over: {self.state}"
            self.advance()
            if self.now >= self._tick_at:
                self._tick_at = self.now + self.tick_seconds
                self.take(Tick())
            if self.state.stage is Stage.RUNNING and not self._is_followed:
                # As the loop does between the start and the rest.
                self._is_followed = True
                self.take(Begin())
        return self.state

    def of_kind(self, kind: type[Any]) -> Iterator[tuple[float, Any]]:
        """Give (time, act) of one kind."""
        return ((now, act) for now, act in self.acts if isinstance(act, kind))

    def said(self) -> list[str]:
        """Give what those who watch were told."""
        return [act.words for _, act in self.of_kind(Say)]

    def take(self, event: Event | Common) -> None:
        """Give the gang an event, and let its acts have their effects."""
        self.state, acts = step(self.state, event, self.now)
        self.acts += [(self.now, act) for act in acts]
        for act in acts:
            self.carry_out(act)


def away(node: SimulatedNode) -> HostUnreachable:
    """Make the error of whoever wants something of a node that is away."""
    return HostUnreachable(node.name, "no route to it")
