"""The ranks of one attempt on their nodes: carries out the acts of `gang_step.py`, and brings back the events."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection
from functools import partial

from ...cluster.model import Cluster
from ...errors import HostError, HostUnreachable, UgroError
from ...hosts.fleet import Fleet
from ...hosts.host import Host
from ...hosts.operations import Prepare, Start, State
from ...hosts.requests import Talks, ask, node_zip
from ...jobs.attempt_names import folder_name
from ...jobs.experiment import METRICS_NAME, Experiment
from ...jobs.journal import Journal
from ...jobs.outcome import Outcome, RankExit
from ...jobs.phase import Phase
from ...jobs.plan import LaunchPlan, NodePlan
from ...jobs.spec import Resume
from ...jobs.state import RankState
from ...outputs.checkpoints import Mirror, deliver
from ..api import AttemptEnd
from . import gang
from .disk_thread import DiskThread
from .gang_step import STORE_SECONDS, step
from .loop import Loop, Say
from .stop import StopOrder, tell_to_stop
from .streams import follow_rank, wait_for_end

# How long a prepared node waits for the start, beyond the time that the slowest may take to prepare.
HOLD_SECONDS = 30.0
# What a node may take to show that it answers.
LOOK_SECONDS = 10.0


class Gang:
    """The ranks of one attempt: `launch()`, then `run_to_end()`. Another agent goes on by either of them."""

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
        self._hosts: dict[str, Host] = {host.node.name: host for host in fleet}
        self._plans = {plan.node: plan for plan in plan.nodes}
        # Of checkpoints, while the ranks run; its last transfer may go on afterwards.
        self.mirror: Mirror | None = None
        self._disks: dict[str, DiskThread] = {}
        self._noticed: set[tuple[str, str]] = set()
        self._loop: Loop[gang.GangState, gang.Event, gang.Act] = Loop(
            step, self._carry_out, self.journal
        )

    # ---- from the start to the end ----

    def launch(self, *, begun_before: bool) -> Outcome | None:
        """Start all ranks, or none: then the outcome says why.

        `begun_before` means that an earlier agent began it: its ranks may have run for long, and their outputs stay.
        """
        ranks = tuple(RankState(rank=p.rank, node=p.node) for p in self.plan.nodes)
        self.journal.change(phase=Phase.PREPARING, ranks=ranks)
        steps: tuple[gang.Step, ...] = (gang.Step.PREPARE, gang.Step.START)
        if self.plan.resume:
            steps = (gang.Step.DELIVER, *steps)
            self.journal.say(f"taking {self.plan.resume.checkpoint} to the nodes")
        state = gang.GangState(
            members=self._members(self._plans),
            limits=self._limits(),
            stage=gang.Stage.STARTING,
            steps=steps,
            begun_before=begun_before,
        )
        # Nothing starts of which no record knows.
        self.journal.settle()
        done = {gang.Stage.RUNNING, gang.Stage.OVER}
        return self._loop.run(state, until=lambda now: now.stage in done).outcome

    def run_to_end(self, away_seconds: float | None) -> AttemptEnd:
        """Follow all ranks until each has ended; the first failure stops the others.

        A node out of reach is waited for. After `away_seconds` its rank counts as lost; with None it never does.
        """
        state = gang.GangState(
            members=self._members(self._plans),
            limits=self._limits(away_seconds),
            stage=gang.Stage.RUNNING,
        )
        self.mirror = Mirror(self.experiment, self._hosts, self.journal.log)
        try:
            over = self._run(state)
        finally:
            # The proof of the end waits for no transfer; the outputs do.
            self.mirror.end()
        wrote = [
            rank_exit.node
            for rank_exit in over.exits
            if set(rank_exit.outputs) - {METRICS_NAME} or rank_exit.lost
        ]
        return AttemptEnd(
            exits=tuple(over.exits),
            stopped_for=over.stopped_for,
            wrote=tuple(wrote),
            unread=tuple(
                member.node
                for member in over.members
                if member.only_end or member.behind
            ),
            unproven=over.outcome,
        )

    def stop_remains(self, nodes: Collection[str]) -> None:
        """Tell these nodes once to stop the rest of the attempt; fetch the rest of the streams if they answer."""
        now = time.time()
        members = tuple(
            gang.Member(
                node=member.node,
                rank=member.rank,
                exit=RankExit.given_up(member.node, member.rank, now, "given up"),
            )
            for member in self._members(nodes)
        )
        state = gang.GangState(
            members=members,
            limits=self._limits(),
            stage=gang.Stage.STOPPING,
            order=StopOrder(reason="failure"),
            # Each is told once: whoever asked for this looks again.
            given_up=True,
        )
        self._run(state)

    def _run(self, state: gang.GangState) -> gang.GangState:
        self._disks = {node: DiskThread() for node in self._plans}
        try:
            return self._loop.run(state, until=_is_over)
        finally:
            for disk in self._disks.values():
                disk.close()

    def _members(self, nodes: Collection[str]) -> tuple[gang.Member, ...]:
        return tuple(
            gang.Member(
                node=plan.node,
                rank=plan.rank,
                local=self._hosts[plan.node].node.is_local,
            )
            for plan in self.plan.nodes
            if plan.node in nodes
        )

    def _limits(self, away_seconds: float | None = None) -> gang.Limits:
        timeouts = self.cluster.timeouts
        return gang.Limits(
            stop_grace_seconds=timeouts.stop_grace_seconds,
            away_seconds=away_seconds,
            catch_up_seconds=timeouts.away_seconds,
        )

    # ---- the loop ----

    def _carry_out(self, act: gang.Act) -> None:
        match act:
            case gang.DoStep():
                self._loop.in_thread(f"{act.step}", partial(self._do_on_all, act.step))
            case gang.Follow():
                plan = self._plans[act.node]
                follow = self._wait_for_end if act.only_end else self._follow
                self._loop.in_thread(f"follow-{act.node}", partial(follow, plan))
            case gang.Look():
                self._loop.in_thread("look", partial(self._look, act.nodes))
            case gang.TellToStop():
                plan = self._plans[act.node]
                self._loop.in_thread(
                    f"stop-{act.node}", partial(self._tell, plan, act.order)
                )
            case gang.ChangePhase():
                self.journal.change(phase=act.phase)
            case gang.ChangeRank():
                self.journal.change_rank(act.rank, **act.changes)
            case gang.NoteRan():
                self._note_ran(act.phase)
            case Say():
                self.journal.say(act.words, act.node)

    def _note_ran(self, phase: Phase | None) -> None:
        began_at = self.journal.state.started_at or time.time()
        changes = {"phase": phase} if phase else {}
        self.journal.change(attempt={"ran": True}, started_at=began_at, **changes)

    # ---- the steps of a start ----

    def _do_on_all(self, step_: gang.Step) -> gang.StepDone:
        action = self._action(step_)
        work = {node: partial(action, plan) for node, plan in self._plans.items()}
        answers = self.fleet.each(work).values()
        return gang.StepDone(tuple(a for a in answers if isinstance(a, UgroError)))

    def _action(self, step_: gang.Step) -> Callable[[NodePlan, Host], None]:
        match step_:
            case gang.Step.DELIVER:
                assert self.plan.resume  # noqa: S101
                return partial(self._deliver, self.plan.resume)
            case gang.Step.PREPARE:
                return partial(self._prepare, self.experiment.code_archive())
            case gang.Step.START:
                return self._start

    def _deliver(self, resume: Resume, plan: NodePlan, host: Host) -> None:
        source = self.experiment
        if resume.job_id != source.job_id:
            source = Experiment(source.folder.parent / resume.job_id)
        record = self.journal.record
        earlier = [
            f"../../{folder_name(record, number, plan.node)}/output/checkpoints"
            for number in range(1, self.plan.attempt)
        ]
        deliver(source, resume, host, plan, link_from=earlier)

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
            environment_work=plan.environment_work,
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

    def _follow(self, plan: NodePlan) -> gang.Event:
        """Fill the rank's files for as long as the connection lasts, and wait for its end where they take nothing."""
        host = self._hosts[plan.node]
        was_told = False
        try:
            while True:
                try:
                    return gang.Exited(self._exit_of(plan, host))
                except OSError as error:
                    # This machine's: a full disk, say. What was not stored is asked for again.
                    host.close()
                    if not was_told:
                        words = f"{error.filename or self.experiment.folder}: {error.strerror}"
                        self._loop.put(gang.NotStored(plan.node, words))
                        was_told = True
                end = self._end_alone(plan, STORE_SECONDS)
                if end:
                    return gang.Exited(end, whole=self._is_in_vain(plan))
        except HostError as error:
            return self._disconnected(plan, error)

    def _wait_for_end(self, plan: NodePlan) -> gang.Event:
        """Wait for the rank's end for as long as the connection lasts."""
        try:
            end = self._end_alone(plan, math.inf)
        except HostError as error:
            return self._disconnected(plan, error)
        assert end  # noqa: S101  (there is no limit)
        return gang.Exited(end)

    def _end_alone(self, plan: NodePlan, seconds: float) -> RankExit | None:
        return wait_for_end(
            self._hosts[plan.node],
            plan,
            seconds=seconds,
            heartbeat_seconds=self.cluster.timeouts.heartbeat_seconds,
            connected=partial(self._note_connected, plan),
        )

    def _disconnected(self, plan: NodePlan, error: HostError) -> gang.Disconnected:
        self._hosts[plan.node].close()
        return gang.Disconnected(
            plan.node, error.text, at=time.time(), trouble=gang.trouble_of(error)
        )

    def _is_in_vain(self, plan: NodePlan) -> bool:
        """Return whether the folder was deleted, so that nothing can ever be stored."""
        with contextlib.suppress(OSError):
            return self._disks[plan.node].do(self.experiment.was_deleted)
        return False

    def _exit_of(self, plan: NodePlan, host: Host) -> RankExit:
        disk = self._disks[plan.node]
        disk.do(partial(self.experiment.take_up_again, self.journal.record.nonce))
        return follow_rank(
            host,
            self.experiment,
            plan,
            disk=disk,
            talk=self.talks[host],
            bases=self.journal.state.bases_of(self.plan.attempt),
            heartbeat_seconds=self.cluster.timeouts.heartbeat_seconds,
            connected=partial(self._note_connected, plan),
            manifest=partial(self._take_manifest, plan),
            notice=partial(self._take_notice, plan),
        )

    def _note_connected(self, plan: NodePlan) -> None:
        self._loop.put(gang.Connected(plan.node))

    def _take_manifest(self, plan: NodePlan, content: bytes) -> None:
        # Without a mirror, checkpoints come when all others do.
        if self.mirror:
            self.mirror.take(plan, content)

    def _take_notice(self, plan: NodePlan, words: str) -> None:
        if (plan.node, words) not in self._noticed:
            self._noticed.add((plan.node, words))
            self.journal.say(f"cannot be read there: {words}", plan.node)

    def _look(self, nodes: Collection[str]) -> gang.Looked:
        def answers(plan: NodePlan, host: Host) -> bool:
            request = State(folder=plan.folder, token=plan.token)
            try:
                ask(host, request, timeout_seconds=LOOK_SECONDS)
            except HostUnreachable:
                host.close()
                return False
            except UgroError:
                # Whatever is wrong there, it answers.
                pass
            return True

        work = {node: partial(answers, self._plans[node]) for node in nodes}
        found = self.fleet.each(work).values()
        return gang.Looked(any(answer is True for answer in found))

    def _tell(self, plan: NodePlan, order: StopOrder) -> gang.StopTold:
        host = self._hosts[plan.node]
        result = tell_to_stop(host, plan.folder, plan.token, order)
        return gang.StopTold(plan.node, result)


def _is_over(state: gang.GangState) -> bool:
    return state.stage is gang.Stage.OVER
