"""The ranks of one attempt on their nodes: does what `gang_step.py` decides, and brings back what comes of it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection
from functools import partial

import msgspec

from ...cluster.model import Cluster
from ...errors import HostError, UgroError
from ...hosts.fleet import Fleet
from ...hosts.host import Host
from ...hosts.operations import Prepare, Start
from ...hosts.requests import Talks, node_zip
from ...jobs.experiment import METRICS_NAME, OWN_NAMES, Experiment
from ...jobs.journal import Journal
from ...jobs.names import attempt_folder
from ...jobs.outcome import CutShort, RankExit
from ...jobs.plan import LaunchPlan, NodePlan
from ...jobs.state import Phase, RankState
from ...node.protocol import OUTPUTS_TOLD
from ...outputs.checkpoints import Mirror, deliver
from .gang import (
    Act,
    Begin,
    ChangePhase,
    ChangeRank,
    Connected,
    Disconnected,
    DoStep,
    Event,
    Exited,
    Follow,
    GangState,
    Limits,
    Member,
    NoteRan,
    Say,
    Stage,
    Step,
    StepDone,
    StopAsked,
    StopTold,
    TellToStop,
    Tick,
)
from .gang_step import step
from .stop import StopOrder, tell_to_stop
from .streams import follow_rank

# How long a prepared node waits for the start, beyond the time that the slowest may take to prepare.
HOLD_SECONDS = 30.0
TICK_SECONDS = 0.1


class Gang:
    """One attempt: `launch()`, then `run_to_end()`. Begun again by another agent, both go on from what there is."""

    def __init__(
        self,
        journal: Journal,
        cluster: Cluster,
        fleet: Fleet,
        plan: LaunchPlan,
        talks: Talks,
    ) -> None:
        self.journal = journal
        self.cluster = cluster
        self.fleet = fleet
        self.plan = plan
        self.talks = talks
        self.experiment = journal.experiment
        # Nodes with something to gather beyond the metrics, which came as a stream, and its topmost names.
        self.wrote: dict[str, tuple[str, ...]] = {}
        self._hosts: dict[str, Host] = {host.node.name: host for host in fleet}
        self._plans = {plan.node: plan for plan in plan.nodes}
        self._source: Experiment | None = None
        self._mirror: Mirror | None = None
        self._events: queue.SimpleQueue[Event | Exception] = queue.SimpleQueue()

    # ---- from the start to the end ----

    def launch(self, source: Experiment | None, *, begun_before: bool = False) -> None:
        """Start all ranks; where one cannot start none does, and `CutShort` or UgroError says why.

        `source` is the job that has the checkpoint of the plan. Where somebody has `begun_before`, ranks may have run
        for long, and what they wrote stays.
        """
        ranks = tuple(RankState(rank=p.rank, node=p.node) for p in self.plan.nodes)
        self.journal.change(phase=Phase.PREPARING, ranks=ranks)
        steps: tuple[Step, ...] = (Step.PREPARE, Step.START)
        if source and self.plan.resume:
            self._source = source
            steps = (Step.DELIVER, *steps)
            self.journal.say(f"taking {self.plan.resume.checkpoint} to the nodes")
        started = self._run(
            GangState(
                members=self._members(self._plans),
                limits=self._limits(),
                stage=Stage.STARTING,
                steps=steps,
                begun_before=begun_before,
            ),
            until={Stage.RUNNING, Stage.OVER},
        )
        _raise_if_cut_short(started)

    def run_to_end(self, away_seconds: float | None) -> tuple[list[RankExit], bool]:
        """Give every rank's end, and whether the job was asked to stop; the first failure stops the others.

        A node that is out of reach is waited for: for `away_seconds`, after which its rank counts as lost, or for
        ever. Raises `CutShort` where a node that could be reached did not show that nothing is left.
        """
        self._mirror = Mirror(self.experiment, self._hosts, self.journal.log)
        over = self._run(
            GangState(
                members=self._members(self._plans),
                limits=self._limits(away_seconds),
                stage=Stage.RUNNING,
            ),
            until={Stage.OVER},
        )
        self._mirror.close()
        self.wrote = {
            rank_exit.node: _topmost_names(rank_exit)
            for rank_exit in over.exits
            if set(rank_exit.outputs) - {METRICS_NAME} or rank_exit.lost
        }
        _raise_if_cut_short(over)
        return over.exits, over.asked

    def stop_remains(self, nodes: Collection[str]) -> None:
        """Tell these nodes once to stop what the attempt has left there; fetch the streams of those that answer."""
        members = tuple(
            msgspec.structs.replace(member, exit=_given_up(member))
            for member in self._members(nodes)
        )
        self._run(
            GangState(
                members=members,
                limits=self._limits(),
                stage=Stage.STOPPING,
                order=StopOrder(reason="failure"),
                tries=1,
            ),
            until={Stage.OVER},
        )

    def _members(self, nodes: Collection[str]) -> tuple[Member, ...]:
        return tuple(
            Member(node=plan.node, rank=plan.rank)
            for plan in self.plan.nodes
            if plan.node in nodes
        )

    def _limits(self, away_seconds: float | None = None) -> Limits:
        timeouts = self.cluster.timeouts
        return Limits(
            stop_grace_seconds=timeouts.stop_grace_seconds,
            away_seconds=away_seconds,
            catch_up_seconds=timeouts.away_seconds,
        )

    # ---- the loop ----

    def _run(self, state: GangState, until: Collection[Stage]) -> GangState:
        """Let one event after the other change the state, and carry out what follows."""
        event: Event = Begin()
        while True:
            state, acts = step(state, event, time.monotonic())
            for act in acts:
                self._carry_out(act)
            if state.stage in until:
                return state
            event = self._stop_event(state) or self._next_event()

    def _stop_event(self, state: GangState) -> StopAsked | None:
        """Give the event of a stop that was asked for since."""
        if self.experiment.given_up and not state.given_up:
            return StopAsked(given_up=True)
        if self.experiment.stop_asked and not state.stop_asked:
            return StopAsked()
        return None

    def _next_event(self) -> Event:
        try:
            event = self._events.get(timeout=TICK_SECONDS)
        except queue.Empty:
            return Tick()
        if isinstance(event, Exception):
            raise event
        return event

    def _carry_out(self, act: Act) -> None:
        match act:
            case DoStep():
                self._begin(f"{act.step}", partial(self._do_on_all, act.step))
            case Follow():
                plan = self._plans[act.node]
                self._begin(f"follow-{act.node}", partial(self._follow, plan))
            case TellToStop():
                plan = self._plans[act.node]
                self._begin(f"stop-{act.node}", partial(self._tell, plan, act.order))
            case ChangePhase():
                self.journal.change(phase=act.phase)
            case ChangeRank():
                self.journal.change_rank(act.rank, **act.changes)
            case NoteRan():
                self._note_ran(act.phase)
            case Say():
                self.journal.say(act.words, act.node)

    def _begin(self, name: str, work: Callable[[], Event]) -> None:
        """Do it in a thread; the loop gets its event, or raises its error: no result is no proof of anything."""

        def run() -> None:
            try:
                self._events.put(work())
            except Exception as error:  # a thread's edge
                self._events.put(error)

        threading.Thread(target=run, name=name, daemon=True).start()

    def _note_ran(self, phase: Phase | None) -> None:
        began_at = self.journal.state.started_at or time.time()
        changes = {"phase": phase} if phase else {}
        self.journal.change(attempt={"ran": True}, started_at=began_at, **changes)

    # ---- the steps of a start ----

    def _do_on_all(self, step_: Step) -> StepDone:
        action = self._action(step_)
        work = {node: partial(action, plan) for node, plan in self._plans.items()}
        answers = self.fleet.each(work).values()
        return StepDone(tuple(a for a in answers if isinstance(a, UgroError)))

    def _action(self, step_: Step) -> Callable[[NodePlan, Host], None]:
        match step_:
            case Step.DELIVER:
                assert self._source  # noqa: S101
                return partial(self._deliver, self._source)
            case Step.PREPARE:
                return partial(self._prepare, self.experiment.code_archive())
            case Step.START:
                return self._start

    def _deliver(self, source: Experiment, plan: NodePlan, host: Host) -> None:
        assert self.plan.resume  # noqa: S101
        record = self.journal.record
        earlier = [
            f"../../{attempt_folder(record, number)}/output/checkpoints"
            for number in range(1, self.plan.attempt)
        ]
        deliver(source, self.plan.resume, host, plan, link_from=earlier)

    def _prepare(self, code: bytes, plan: NodePlan, host: Host) -> None:
        packed = node_zip()
        seconds = self.cluster.timeouts.start_seconds
        request = Prepare(
            token=plan.token,
            node=plan.node,
            folder=plan.folder,
            argv=plan.argv,
            env=plan.env,
            activation=plan.activation,
            node_bytes=len(packed),
            # Who holds the nodes, in the words that another controller is shown.
            controller=str(self.experiment.folder.parent),
            hold_seconds=seconds + HOLD_SECONDS,
            rendezvous_port=self.plan.master_port if plan.rank == 0 else None,
        )
        self.talks.ask(host, request, blob=packed + code, timeout_seconds=seconds)

    def _start(self, plan: NodePlan, host: Host) -> None:
        request = Start(folder=plan.folder)
        seconds = self.cluster.timeouts.start_seconds
        self.talks.ask(host, request, timeout_seconds=seconds)

    # ---- one rank ----

    def _follow(self, plan: NodePlan) -> Event:
        """Fill the rank's files for as long as the connection lasts."""
        host = self._hosts[plan.node]
        try:
            return Exited(self._exit_of(plan, host))
        except (HostError, OSError) as error:
            # An OSError is this machine's: a full disk, say. What was not stored is asked for again.
            host.close()
            if not self.experiment.folder.is_dir():
                return Exited(_lost(plan, "its folder here was removed"))
            return Disconnected(plan.node, str(error), at=time.time())

    def _exit_of(self, plan: NodePlan, host: Host) -> RankExit:
        attempts = {attempt.number: attempt for attempt in self.journal.state.attempts}
        attempt = attempts.get(self.plan.attempt)
        return follow_rank(
            host,
            self.experiment,
            plan,
            talk=self.talks[host],
            bases=attempt.bases if attempt else {},
            heartbeat_seconds=self.cluster.timeouts.heartbeat_seconds,
            connected=lambda: self._events.put(Connected(plan.node)),
            manifest=partial(self._take_manifest, plan),
        )

    def _take_manifest(self, plan: NodePlan, content: bytes) -> None:
        # Without a mirror, checkpoints come when all others do.
        if self._mirror:
            self._mirror.take(plan, content)

    def _tell(self, plan: NodePlan, order: StopOrder) -> StopTold:
        host = self._hosts[plan.node]
        result = tell_to_stop(host, plan.folder, plan.token, order)
        return StopTold(plan.node, result)


def _topmost_names(rank_exit: RankExit) -> tuple[str, ...]:
    """Give the topmost names of what a rank wrote; one that was lost told none, and one with very many not all."""
    told = rank_exit.outputs
    return told if 0 < len(told) < OUTPUTS_TOLD else OWN_NAMES


def _given_up(member: Member) -> RankExit:
    return RankExit(
        node=member.node,
        rank=member.rank,
        at=time.time(),
        lost="given up",
        gave_up=True,
    )


def _lost(plan: NodePlan, why: str) -> RankExit:
    return RankExit(
        node=plan.node, rank=plan.rank, at=time.time(), lost=why, gave_up=True
    )


def _raise_if_cut_short(state: GangState) -> None:
    if state.outcome:
        raise CutShort(state.outcome)
