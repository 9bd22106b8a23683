"""The ranks of one attempt on their nodes: all start or none does, all are followed, all are stopped."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection
from functools import partial

from ...cluster.model import Cluster
from ...errors import Interrupted, LaunchFailed, NodesBusy, StopUnproven, UgroError
from ...hosts.fleet import Fleet
from ...hosts.host import Host
from ...hosts.operations import Prepare, Start
from ...hosts.requests import Talks, node_zip
from ...jobs.experiment import METRICS_NAME, OWN_NAMES, Experiment
from ...jobs.journal import Journal
from ...jobs.names import attempt_folder
from ...jobs.outcome import CutShort, Outcome, RankExit
from ...jobs.plan import LaunchPlan, NodePlan
from ...jobs.state import Phase, RankState
from ...node.protocol import OUTPUTS_TOLD
from ...outputs.checkpoints import Mirror, deliver
from .stop import STOP_TRIES, StopOrder, stop_rank
from .streams import follow_rank

# How long a prepared node waits for the start, beyond the time that the slowest may take to prepare.
HOLD_SECONDS = 30.0


class Gang:
    """One attempt: `launch()`, then `see_through()`. Begun again by another agent, both go on from what there is."""

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
        self.hosts: dict[str, Host] = {host.node.name: host for host in fleet}
        # Nodes with something to gather beyond the metrics, which came as a stream, and its topmost names.
        self.wrote: dict[str, tuple[str, ...]] = {}
        self._discard = True  # what an undone launch has laid out
        self._ran = False  # a rank did, as a node says that was told to stop
        self._results: queue.SimpleQueue[RankExit | list[str] | Exception] = (
            queue.SimpleQueue()
        )

    # ---- the start ----

    def launch(self, source: Experiment | None, *, begun_before: bool = False) -> None:
        """Start all ranks; where one cannot start none does, and `CutShort` or UgroError says why.

        `source` is the job that has the checkpoint of the plan. Where somebody has `begun_before`, ranks may have run
        for long, and what they wrote stays.
        """
        self._discard = not begun_before
        self.journal.change(
            phase=Phase.PREPARING,
            ranks=tuple(RankState(rank=p.rank, node=p.node) for p in self.plan.nodes),
        )
        if source and self.plan.resume:
            self.journal.say(f"taking {self.plan.resume.checkpoint} to the nodes")
            self._on_all("delivery of the checkpoint", partial(self._deliver, source))
        code = self.experiment.code_archive()
        self._on_all("prepare", partial(self._prepare, code))
        self._on_all("start", self._start)
        self._note_begun(phase=Phase.RUNNING)
        for plan in self.plan.nodes:
            self.journal.say(f"rank {plan.rank} runs", plan.node)

    def _note_begun(self, **more: Phase) -> None:
        began_at = self.journal.state.started_at or time.time()
        self.journal.change(attempt={"ran": True}, started_at=began_at, **more)

    def _deliver(self, source: Experiment, plan: NodePlan, host: Host) -> None:
        assert self.plan.resume  # noqa: S101
        record, before = self.journal.record, range(1, self.plan.attempt)
        earlier = [
            f"../../{attempt_folder(record, number)}/output/checkpoints"
            for number in before
        ]
        deliver(source, self.plan.resume, host, plan, link_from=earlier)

    def _prepare(self, code: bytes, plan: NodePlan, host: Host) -> None:
        packed = node_zip()
        hold_seconds = self.cluster.timeouts.start_seconds + HOLD_SECONDS
        request = Prepare(
            token=plan.token,
            node=plan.node,
            folder=plan.folder,
            argv=plan.argv,
            env=plan.env,
            activation=plan.activation,
            node_bytes=len(packed),
            controller=str(self.experiments_folder),
            hold_seconds=hold_seconds,
            rendezvous_port=self.plan.master_port if plan.rank == 0 else None,
        )
        seconds = self.cluster.timeouts.start_seconds
        self.talks.ask(host, request, blob=packed + code, timeout_seconds=seconds)

    def _start(self, plan: NodePlan, host: Host) -> None:
        request = Start(folder=plan.folder)
        self.talks.ask(
            host, request, timeout_seconds=self.cluster.timeouts.start_seconds
        )

    def _on_all(self, step: str, action: Callable[[NodePlan, Host], object]) -> None:
        """Do the step on all nodes at once. Where one cannot, or a stop is asked for, everything is undone."""
        answers = self.fleet.each(
            {plan.node: partial(action, plan) for plan in self.plan.nodes}
        )
        faults = [
            answer for answer in answers.values() if isinstance(answer, UgroError)
        ]
        if not faults and not self.experiment.stop_asked:
            return
        self.journal.say("undoing: stopping what was prepared")
        left = self.stop(
            StopOrder(reason="undone", discard=self._discard), tries=STOP_TRIES
        )
        if self._ran and not self._discard:
            self._note_begun()
        words = "\n".join(fault.text for fault in faults)
        if left:
            faults_first = [words, *left] if words else left
            raise _cut_short(Phase.FAILED, StopUnproven, "\n".join(faults_first))
        if not faults:
            raise _cut_short(Phase.STOPPED, Interrupted, "before it started")
        if all(isinstance(fault, NodesBusy) for fault in faults):
            raise _cut_short(Phase.REFUSED, NodesBusy, words)
        raise _cut_short(
            Phase.FAILED,
            LaunchFailed,
            f"the {step} failed, so nothing runs anywhere:\n{words}",
        )

    # ---- from running to the end ----

    def see_through(self, away_seconds: float | None) -> tuple[list[RankExit], bool]:
        """Give every rank's end, and whether the job was asked to stop; the first failure stops the others.

        A node that is out of reach is waited for: for `away_seconds`, after which its rank counts as lost, or for
        ever. Raises `CutShort` where a node that could be reached did not show that nothing is left.
        """
        mirror = Mirror(self.experiment, self.hosts, self.journal.log)
        for plan in self.plan.nodes:
            manifest = partial(mirror.take, plan)
            self._in_thread(
                f"follow-{plan.node}",
                partial(self._follow, plan, manifest, away_seconds),
            )
        ends: list[RankExit] = []
        stopping, asked = False, False
        # After a stop: a line for each node that could not show that nothing is left.
        left: list[str] | None = None
        while len(ends) < len(self.plan.nodes) or (stopping and left is None):
            if left and self.experiment.given_up:
                break
            told = self._told(0.1)
            if isinstance(told, RankExit):
                ends.append(told)
                self._note(told)
            elif told is not None:
                left = told
            failed = any(end.failed for end in ends)
            if not stopping and not failed and len(ends) < len(self.plan.nodes):
                asked = self.experiment.stop_asked
            if not stopping and (asked or failed):
                stopping = True
                tries = None if away_seconds is None else STOP_TRIES
                self._in_thread("stop", partial(self._stop_all, asked, tries))
        mirror.close()
        self.catch_up({end.node for end in ends if end.gave_up} & self.proven_gone)
        # A rank that was lost told no names, and one with very many not all: there may be any.
        self.wrote = {
            end.node: end.outputs if 0 < len(end.outputs) < OUTPUTS_TOLD else OWN_NAMES
            for end in ends
            if set(end.outputs) - {METRICS_NAME} or end.lost
        }
        if left and (asked or away_seconds is None):
            phase = Phase.STOPPED if asked else Phase.FAILED
            raise _cut_short(phase, StopUnproven, "\n".join(left))
        return ends, asked

    def catch_up(self, nodes: Collection[str]) -> None:
        """Fetch the rest of the streams of these nodes, which had been given up and have answered since."""
        for plan in self.plan.nodes:
            if plan.node in nodes:
                # Its checkpoints come when all others do.
                self._follow(plan, lambda _: None, self.cluster.timeouts.away_seconds)
                self.journal.change_rank(plan.rank, connected=False)

    @property
    def proven_gone(self) -> set[str]:
        """The nodes that have shown that nothing of the job is left there."""
        return {rank.node for rank in self.journal.state.ranks if rank.proven_gone}

    def _follow(
        self,
        plan: NodePlan,
        manifest: Callable[[bytes], None],
        away_seconds: float | None,
    ) -> RankExit:
        attempts = self.journal.state.attempts
        return follow_rank(
            self.hosts[plan.node],
            self.experiment,
            plan,
            talk=self.talks[self.hosts[plan.node]],
            bases=next(
                (a.bases for a in attempts if a.number == self.plan.attempt), {}
            ),
            heartbeat_seconds=self.cluster.timeouts.heartbeat_seconds,
            away_seconds=away_seconds,
            connected=lambda yes: self.journal.change_rank(plan.rank, connected=yes),
            say=lambda words: self.journal.say(words, plan.node),
            manifest=manifest,
        )

    def _note(self, end: RankExit) -> None:
        self.journal.change_rank(
            end.rank,
            connected=False,
            exit_code=end.code,
            signal=end.signal,
            ended_at=end.at,
            lost=end.lost,
            proven_gone=not end.lost,
        )
        how = end.lost or (
            f"killed by signal {end.signal}" if end.signal else f"exit code {end.code}"
        )
        self.journal.say(
            f"rank {end.rank} ended: {'stopped' if end.stopped else how}", end.node
        )

    # ---- stop ----

    def _stop_all(self, asked: bool, tries: int | None) -> list[str]:
        self.journal.change(phase=Phase.STOPPING)
        if asked:
            self.journal.say("stopping all ranks, as asked")
            order = StopOrder(
                reason="asked", grace_seconds=self.cluster.timeouts.stop_grace_seconds
            )
            return self.stop(order)
        self.journal.say("a rank failed: stopping the others")
        return self.stop(StopOrder(reason="failure"), tries=tries)

    def stop(self, order: StopOrder, *, tries: int | None = None) -> list[str]:
        """Stop on all nodes at once; give a line for each node that could not show that nothing is left.

        A node out of reach is tried again, `tries` times or for as long as it takes.
        """
        work = {
            plan.node: partial(self._stop_one, plan, order, tries)
            for plan in self.plan.nodes
        }
        lines = self.fleet.each(work)
        return [
            line if isinstance(line, str) else line.text
            for line in lines.values()
            if line
        ]

    def _stop_one(
        self, plan: NodePlan, order: StopOrder, tries: int | None, host: Host
    ) -> str | None:
        result = stop_rank(
            host,
            plan.folder,
            plan.token,
            order,
            tries=tries,
            given_up=lambda: self.experiment.given_up,
            trying_again=lambda words: self.journal.say(words, plan.node),
        )
        if result.unreached:
            return result.words
        self._ran |= result.ran
        self.journal.change_rank(
            plan.rank, left_pids=result.left_pids, proven_gone=result.proven_gone
        )
        return f"{plan.node}: {result.words}" if result.words else None

    # ---- helpers ----

    @property
    def experiments_folder(self) -> str:
        """Who holds the nodes, in the words that another controller is shown."""
        return str(self.experiment.folder.parent)

    def _in_thread(self, name: str, work: Callable[[], RankExit | list[str]]) -> None:
        """`_told` gives what the work returns, or raises what it raises: no result is no proof of anything."""

        def run() -> None:
            try:
                self._results.put(work())
            except Exception as error:  # a thread's edge
                self._results.put(error)

        threading.Thread(target=run, name=name, daemon=True).start()

    def _told(self, seconds: float) -> RankExit | list[str] | None:
        try:
            result = self._results.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(result, Exception):
            raise result
        return result


def _cut_short(phase: Phase, error: type[UgroError], words: str) -> CutShort:
    return CutShort(Outcome(phase=phase, error=error, words=words))
