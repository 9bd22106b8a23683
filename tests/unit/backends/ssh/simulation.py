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
EPOCH = 1_700_000_000.0


class SimulatedNode:
    """What a node does, as a test says, and what is true of its rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.name = f"gpu{rank}"
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
        self.cannot_send = ""
        """Why it cannot send the streams of its rank."""
        self.cannot_tell_end = False
        """Whether the same keeps it from telling the end."""
        self.runs = False
        self.has_run = False
        self.exit: RankExit | None = None
        self.is_followed = False
        self.is_told = False

    def is_away(self, now: float) -> bool:
        """Say whether nothing reaches it now."""
        return _within(self.away, now)

    def answer_seconds(self, now: float) -> float:
        """Give what its answers take now."""
        return ANSWER_SECONDS + (SLOW_SECONDS if _within(self.is_slow, now) else 0.0)

    def end(self, **record: Any) -> None:
        """End its rank, if it runs, with this exit record."""
        if self.runs:
            self.runs = False
            self.exit = RankExit(node=self.name, rank=self.rank, at=EPOCH, **record)


def _within(times: list[tuple[float, float]], now: float) -> bool:
    return any(start <= now < end for start, end in times)


class Simulation:
    """Drives `step` until the gang is over; `acts` has each act with its time.

    The first `local` of the ranks are on this machine.
    """

    def __init__(
        self,
        *,
        steps: tuple[Step, ...] = (Step.PREPARE, Step.START),
        begun_before: bool = False,
        ranks: int = 3,
        local: int = 0,
        **limits: Any,
    ) -> None:
        known: dict[str, Any] = {
            "stop_grace_seconds": 7.0,
            "away_seconds": None,
            "catch_up_seconds": 30.0,
        }
        self.nodes = [SimulatedNode(rank) for rank in range(ranks)]
        self.state = GangState(
            members=tuple(
                Member(node=n.name, rank=n.rank, local=n.rank < local)
                for n in self.nodes
            ),
            limits=Limits(**known | limits),
            stage=Stage.STARTING,
            steps=steps,
            begun_before=begun_before,
        )
        self.now = 0.0
        self.acts: list[tuple[float, Act]] = []
        self.tick_seconds = TICK_SECONDS
        # Of the agent. What one that was killed had asked for has its effects, and is told to nobody.
        self.generation = 0
        self.is_followed = False
        self.is_looking = False
        self.disk_takes_nothing = False
        self._by_name = {node.name: node for node in self.nodes}
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    # ---- what a test does ----

    def go_offline(self, since: float, until: float) -> None:
        """Let the cable of this machine be out meanwhile: no node is reached but this machine itself."""
        for node in self.nodes:
            if not self.state.members[node.rank].local:
                node.away.append((since, until))

    def at(self, seconds: float, happens: Callable[[], None]) -> None:
        """Let something happen at this time."""
        heapq.heappush(self._later, (seconds, next(self._order), happens))

    def ask_to_stop(self, *, given_up: bool = False) -> None:
        """Ask for a stop, now."""
        self.take(StopAsked(given_up=given_up))

    def run(self, limit_seconds: float = 10_000.0) -> GangState:
        """Run until the gang is over; fail where it is not by then."""
        self.take(Begin())
        self._tick()
        while self.state.stage is not Stage.OVER:
            assert self.now < limit_seconds, f"not over: {self.state}"
            self.now, _, happens = heapq.heappop(self._later)
            happens()
            if self.state.stage is Stage.RUNNING and not self.is_followed:
                # As the loop does between the start and the rest.
                self.take(Begin())
        return self.state

    def of_kind(self, kind: type[Any]) -> Iterator[tuple[float, Any]]:
        """Give (time, act) of one kind."""
        return ((now, act) for now, act in self.acts if isinstance(act, kind))

    def said(self) -> list[str]:
        """Give what those who watch were told."""
        return [act.words for _, act in self.of_kind(Say)]

    # ---- what follows ----

    def take(self, event: Event | Common) -> None:
        """Give the gang an event, and let its acts have their effects."""
        self.state, acts = step(self.state, event, self.now)
        for act in acts:
            self.acts.append((self.now, act))
        for act in acts:
            match act:
                case DoStep():
                    self._do(act.step)
                case Follow():
                    self.is_followed = True
                    self._follow(self._by_name[act.node], only_end=act.only_end)
                case TellToStop():
                    self._tell(self._by_name[act.node], act)
                case Look():
                    self._look([self._by_name[name] for name in act.nodes])

    def _tick(self) -> None:
        self.take(Tick())
        self.at(self.now + self.tick_seconds, self._tick)

    def _answer(self, seconds: float, happens: Callable[[], None]) -> None:
        """Let the agent that asked hear of something, if it lives by then."""
        generation = self.generation

        def hear() -> None:
            if self.generation == generation:
                happens()

        self.at(self.now + seconds, hear)

    def _do(self, step_: Step) -> None:
        generation = self.generation

        def done() -> None:
            faults: list[UgroError] = []
            for node in self.nodes:
                if node.is_away(self.now):
                    faults.append(away(node))
                elif step_ in node.faults:
                    faults.append(node.faults[step_])
                elif step_ is Step.START and not node.has_run:
                    node.runs = node.has_run = True
                if _within(node.loses_answers, self.now):
                    faults.append(away(node))
            if self.generation == generation:
                self.take(StepDone(tuple(faults)))

        seconds = max(node.answer_seconds(self.now) for node in self.nodes)
        self.at(self.now + seconds, done)

    def _follow(self, node: SimulatedNode, *, only_end: bool) -> None:
        assert not node.is_followed, "followed twice at once"
        node.is_followed = True
        if node.is_away(self.now):
            self._answer(CONNECT_SECONDS, lambda: self._broke(node))
            return
        if _within(node.refuses_login, self.now):
            refused = LoginRefused(node.name, "accepts none of your keys")
            self._answer(ANSWER_SECONDS, lambda: self._broke(node, refused))
            return
        cannot = node.cannot_send and (node.cannot_tell_end or not only_end)

        def connected() -> None:
            self.take(Connected(node.name))
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
            self.take(Exited(node.exit, whole=not self.disk_takes_nothing))
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

        generation = self.generation

        def arrives() -> None:
            is_away = node.is_away(self.now)
            if not is_away:
                node.end(signal=15, stopped=act.order.reason)
            if self.generation != generation:
                return
            if is_away or _within(node.loses_answers, self.now):
                self._answer(CONNECT_SECONDS, unreached)
            else:
                self._answer(STOP_SECONDS, answered)

        def unreached() -> None:
            node.is_told = False
            self.take(StopTold(node.name, StopResult(unreached=away(node))))

        def answered() -> None:
            node.is_told = False
            shown = StopResult(ran=node.has_run, left_pids=node.left_pids)
            self.take(StopTold(node.name, shown))

        self.at(self.now + ARRIVAL_SECONDS, arrives)


def away(node: SimulatedNode) -> HostUnreachable:
    """Make the error of whoever wants something of a node that is away."""
    return HostUnreachable(node.name, "no route to it")
