"""One job on its nodes: gate, prepare, start, follow, stop, gather.

It may be killed anywhere and begun again by the next agent: what matters is in the experiment folder and on the
nodes. Prepare and start only say so where they were done before, and streams go on where their files end.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from .causes import find_cause
from .errors import (
    HostError,
    Interrupted,
    JobFailed,
    LaunchFailed,
    NodesBusy,
    NotFit,
    StopUnproven,
    UgroError,
)
from .experiments import METRICS_NAME, Experiment, Experiments
from .gather import gather
from .health import ClusterHealth, examine
from .hosts import Fleet, Host
from .job import Cause, Event, NodePlan, Phase, RankState
from .plan import make_plan
from .remote import Conversation, ask, node_zip
from .streams import End, follow_rank, retry_pause

T = TypeVar("T")

# A rank whose peer is gone waits in a collective and cannot react to TERM.
FAILURE_GRACE_SECONDS = 2.0
# How long a prepared node waits for the start, beyond the time that the slowest may take to prepare.
HOLD_SECONDS = 30.0


class Supervision:
    """`run()` sees one job through to its end."""

    def __init__(
        self, experiments: Experiments, experiment: Experiment, fleet: Fleet, log: logging.Logger
    ) -> None:
        self.experiments, self.experiment, self.fleet, self.log = experiments, experiment, fleet, log
        self.record, self.state = experiment.record(), experiment.state()
        self.cluster = experiment.cluster()
        self._changing = threading.RLock()
        self._talks: dict[str, Conversation] = {}
        # The nodes with something to gather, and its topmost names.
        self._wrote: dict[str, tuple[str, ...]] = {}
        self._results: queue.SimpleQueue[End | list[str] | Exception] = queue.SimpleQueue()

    def run(self) -> None:
        """Returns when the job has ended: nothing of it is left, or its record names what is."""
        try:
            if self.state.phase in {Phase.QUEUED, Phase.PREPARING}:
                try:
                    self._launch()
                finally:
                    for talk in self._talks.values():
                        talk.close()
            self._see_through()
        except _Over as over:
            self._finish(over)
            if over.phase is not Phase.SUCCEEDED:
                self._gather()  # whoever waits for the proof of a stop, or for the cause, need not wait for this
        except UgroError as error:
            self._finish(_Over(Phase.FAILED, type(error), error.text))

    # ---- launch ----

    def _launch(self) -> None:
        """All ranks run; otherwise none does, and `_Over` or UgroError says why."""
        if self.record.plan is None:
            self._say(f"checking {len(self.cluster.nodes)} nodes")
            health = examine(self.fleet, self.cluster, self._ask)
            self._insist(lambda: self.experiments.save_cluster_state(health))
            self._gate(health)
            made = make_plan(self.record, self.cluster, health.facts())
            self.record = msgspec.structs.replace(self.record, plan=made)
            self._insist(lambda: self.experiment.save_record(self.record))
        self._change(
            phase=Phase.PREPARING, ranks=tuple(RankState(rank=p.rank, node=p.node) for p in self._plans)
        )
        code = self.experiment.code_archive()
        self._on_all("prepare", lambda host, plan: self._prepare(host, plan, code))
        self._on_all("start", self._start)
        self._change(phase=Phase.RUNNING, started_at=time.time())
        for plan in self._plans:
            self._say(f"rank {plan.rank} runs", plan.node)

    def _gate(self, health: ClusterHealth) -> None:
        if self.experiment.stop_asked:
            raise _Over(Phase.STOPPED, Interrupted, "before it started")
        if busy := health.busy():
            raise _Over(
                Phase.REFUSED, NodesBusy, "\n".join(f"{node}: {holder}" for node, holder in busy.items())
            )
        unreachable = not all(node.reachable for node in health.nodes)
        if not health.fit and (unreachable or not self.record.force):
            words = [f"{node}: {check.name}: {check.value}\n    {check.fix}" for node, check in health.faults]
            raise _Over(Phase.REFUSED, NotFit, "\n".join(words))

    def _prepare(self, host: Host, plan: NodePlan, code: bytes) -> None:
        packed = node_zip()
        request = {name: getattr(plan, name) for name in ("token", "node", "folder", "argv", "env")}
        self._ask(
            host,
            "prepare",
            blob=packed + code,
            node_bytes=len(packed),
            timeout_seconds=self.cluster.timeouts.start_seconds,
            controller=str(self.experiments.folder),
            hold_seconds=self.cluster.timeouts.start_seconds + HOLD_SECONDS,
            **request,
        )

    def _start(self, host: Host, plan: NodePlan) -> None:
        self._ask(host, "start", timeout_seconds=self.cluster.timeouts.start_seconds, folder=plan.folder)

    def _ask(self, host: Host, operation: str, **request: Any) -> dict[str, Any]:
        talk = self._talks.setdefault(host.node.name, Conversation(host))
        return talk.ask(operation, **request)

    def _on_all(self, step: str, action: Callable[[Host, NodePlan], Any]) -> None:
        """The step on all nodes at once. Where one cannot do it, or a stop is asked for, everything is undone."""
        plans = {plan.node: plan for plan in self._plans}
        faults: list[UgroError] = []

        def attempt(host: Host) -> None:
            try:
                action(host, plans[host.node.name])
            except UgroError as error:
                faults.append(error)

        self.fleet.map(attempt)
        if not faults and not self.experiment.stop_asked:
            return
        self._say("undoing: stopping what was prepared")
        left = self._stop("undone", FAILURE_GRACE_SECONDS, tries=3, discard=True)
        words = "\n".join(fault.text for fault in faults)
        if left:
            raise _Over(Phase.FAILED, StopUnproven, "\n".join([*([words] if words else []), *left]))
        if not faults:
            raise _Over(Phase.STOPPED, Interrupted, "before it started")
        if all(isinstance(fault, NodesBusy) for fault in faults):
            raise _Over(Phase.REFUSED, NodesBusy, words)
        raise _Over(Phase.FAILED, LaunchFailed, f"the {step} failed, so nothing runs anywhere:\n{words}")

    # ---- from running to the end ----

    def _see_through(self) -> None:
        """Follow every rank; the first failure, or a stop that is asked for, stops the others. Raises `_Over`."""
        for plan in self._plans:
            self._in_thread(f"follow-{plan.node}", self._follow, plan)
        ends: list[End] = []
        stopping, asked = False, False
        # After a stop: a line for each node that could not show that nothing is left.
        left: list[str] | None = None
        while len(ends) < len(self._plans) or (stopping and left is None):
            told = self._told(0.1)
            if isinstance(told, End):
                ends.append(told)
                self._note(told)
            elif told is not None:
                left = told
            failed = any(end.failed for end in ends)
            if not stopping and not failed and len(ends) < len(self._plans):
                asked = self.experiment.stop_asked
            if not stopping and (asked or failed):
                stopping = True
                self._in_thread("stop", self._stop_gang, asked)
        self._wrote = {end.node: end.outputs for end in ends if set(end.outputs) - {METRICS_NAME} or end.lost}
        if left:
            raise _Over(Phase.STOPPED if asked else Phase.FAILED, StopUnproven, "\n".join(left))
        if asked:
            raise _Over(Phase.STOPPED, Interrupted, "as asked; nothing of it is left on any node")
        if cause := find_cause(ends, self.experiment):
            raise _Over(Phase.FAILED, JobFailed, cause.message, cause)
        self._gather()
        raise _Over(Phase.SUCCEEDED)

    def _follow(self, plan: NodePlan) -> End:
        return follow_rank(
            self._host(plan),
            self.experiment,
            plan,
            heartbeat_seconds=self.cluster.timeouts.heartbeat_seconds,
            connected=lambda yes: self._change_rank(plan.rank, connected=yes),
            say=lambda words: self._say(words, plan.node),
        )

    def _note(self, end: End) -> None:
        self._change_rank(
            end.rank,
            connected=False,
            exit_code=end.code,
            signal=end.signal,
            ended_at=end.at,
            lost=end.lost,
            proven_gone=not end.lost,
        )
        how = end.lost or (f"killed by signal {end.signal}" if end.signal else f"exit code {end.code}")
        self._say(f"rank {end.rank} ended: {'stopped' if end.stopped else how}", end.node)

    # ---- stop ----

    def _stop_gang(self, asked: bool) -> list[str]:
        self._change(phase=Phase.STOPPING)
        self._say("stopping all ranks, as asked" if asked else "a rank failed: stopping the others")
        grace = self.cluster.timeouts.stop_grace_seconds if asked else FAILURE_GRACE_SECONDS
        return self._stop("asked" if asked else "failure", grace)

    def _stop(
        self, reason: str, grace_seconds: float, *, tries: int | None = None, discard: bool = False
    ) -> list[str]:
        """Stop on all nodes at once; gives a line for each node that could not show that nothing is left.

        A node out of reach is tried again, `tries` times or for as long as it takes.
        """
        plans = {plan.node: plan for plan in self._plans}

        def stop(host: Host) -> str | None:
            plan, tried = plans[host.node.name], 0
            while True:
                try:
                    answer = ask(
                        host,
                        "stop",
                        timeout_seconds=grace_seconds + 25,
                        folder=plan.folder,
                        token=plan.token,
                        grace_seconds=grace_seconds,
                        reason=reason,
                        discard=discard,
                    )
                except HostError as error:
                    tried += 1
                    if tries and tried >= tries:
                        return f"{error.text}\n    it could not be told to stop; later: inv reset --nodes {plan.node}"
                    if tried == 1:
                        self._say(f"cannot be told to stop, trying again. {error.text}", plan.node)
                    time.sleep(retry_pause(tried))
                    continue
                pids = tuple(int(process["pid"]) for process in answer["left"])
                if not discard:
                    self._change_rank(plan.rank, left_pids=pids, proven_gone=not pids)
                return (
                    f"{plan.node}: still there after KILL: pids {', '.join(map(str, pids))}" if pids else None
                )

        lines = self.fleet.map(stop)
        return [line if isinstance(line, str) else line.text for line in lines.values() if line]

    # ---- the end ----

    def _gather(self) -> None:
        if not self._wrote:
            return
        self._say(f"gathering outputs of {', '.join(self._wrote)}")
        clashing = {name for names in self._wrote.values() for name in names}
        for error in gather(self.experiment, self._plans, self.fleet, only=self._wrote, clashing=clashing):
            self._say(f"not gathered: {error.text}. Later: inv gather {self.experiment.job_id}")

    def _finish(self, over: _Over) -> None:
        cause = over.cause or (Cause(message=over.words) if over.words else None)
        self._change(phase=over.phase, ended_at=time.time(), cause=cause, exit_code=over.exit_code)
        self._insist(lambda: self.experiments.add_to_history(self.experiment, self.record, self.state))
        self._say(f"{over.phase}" + (f": {over.words}" if over.words else ""))

    # ---- helpers ----

    @property
    def _plans(self) -> tuple[NodePlan, ...]:
        return self.record.plan.nodes if self.record.plan else ()

    def _host(self, plan: NodePlan) -> Host:
        host: Host = next(host for host in self.fleet if host.node.name == plan.node)
        return host

    def _say(self, message: str, node: str | None = None) -> None:
        self.log.info("%s %s%s", self.experiment.job_id, f"{node}: " if node else "", message)
        self._insist(lambda: self.experiment.add_event(Event(time=time.time(), node=node, message=message)))

    def _change(self, **changes: Any) -> None:
        with self._changing:
            self.state = msgspec.structs.replace(self.state, **changes)
            self._insist(lambda: self.experiment.save_state(self.state))

    def _change_rank(self, rank: int, **changes: Any) -> None:
        with self._changing:
            ranks = [msgspec.structs.replace(r, **changes) if r.rank == rank else r for r in self.state.ranks]
            self._change(ranks=tuple(ranks))

    def _insist(self, write: Callable[[], None]) -> None:
        """Write to the experiment folder, for as long as it takes: a full disk here must not end a job there."""
        warned = False
        while True:
            try:
                return write()
            except OSError as error:
                if not warned:
                    self.log.error(
                        "%s: %s; trying again", error.filename or self.experiment.folder, error.strerror
                    )
                warned = True
                time.sleep(1)

    def _in_thread(self, name: str, work: Callable[[T], End | list[str]], argument: T) -> None:
        """`_told` gives what the work returns, or raises what it raises: no result is no proof of anything."""

        def run() -> None:
            try:
                self._results.put(work(argument))
            except Exception as error:  # a thread's edge
                self._results.put(error)

        threading.Thread(target=run, name=name, daemon=True).start()

    def _told(self, seconds: float) -> End | list[str] | None:
        try:
            result = self._results.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(result, Exception):
            raise result
        return result


class _Over(Exception):
    """The job has ended: how, and the exit code that tells so."""

    def __init__(
        self, phase: Phase, error: type[UgroError] | None = None, words: str = "", cause: Cause | None = None
    ) -> None:
        super().__init__(words)
        self.phase, self.words, self.cause = phase, words, cause
        self.exit_code = error.exit_code if error else 0
