"""A backend without hosts, threads or a wire: three machines in memory, on which ranks run as soon as they are told."""
# ruff: noqa: ARG002 (a stand-in has the whole seam, whether it needs it or not)

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from tests.unit.factories import make_node_plan, make_plan_of
from ugro_tasks.backends.api import AttemptEnd, Backend
from ugro_tasks.cluster.model import Cluster
from ugro_tasks.errors import (
    HostUnreachable,
    LaunchFailed,
    NodesBusy,
    NotFit,
    StopUnproven,
    UgroError,
)
from ugro_tasks.jobs.journal import Journal
from ugro_tasks.jobs.outcome import Outcome, RankExit
from ugro_tasks.jobs.phase import Phase, Reason
from ugro_tasks.jobs.plan import LaunchPlan, NodePlan
from ugro_tasks.jobs.spec import Resume
from ugro_tasks.jobs.state import RankState

POLL_SECONDS = 0.01


class FakeMachine:
    """A machine, and what is true of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.away = False
        self.held = False
        self.unfit = False
        self.refusal: type[UgroError] | None = None
        self.left_pids: tuple[int, ...] = ()
        self.runs = False
        self.starts = 0
        self.exit: dict[str, Any] | None = None
        self.log = b""
        self.metrics = b""

    def start(self) -> None:
        """Begin a rank, unless it runs."""
        if self.runs:
            return
        self.runs = True
        self.starts += 1
        self.exit = None

    def end(self, **record: Any) -> None:
        """End the rank."""
        if self.runs:
            self.runs = False
            self.exit = record

    def stop(self, reason: str) -> str | None:
        """Stop the rank; say what is wrong where it is not proven gone."""
        if self.away:
            return f"{self.name} cannot be told to stop; later: inv reset --nodes {self.name}"
        self.end(signal=15, stopped=reason)
        if self.left_pids:
            return f"{self.name}: pids {self.left_pids} live on"
        return None


class FakeMachines:
    """Three of them; see `machines.Machines`."""

    def __init__(self, cluster: Cluster) -> None:
        self.of = {node.name: FakeMachine(node.name) for node in cluster.nodes}

    def backend(self, journal: Journal, cluster: Cluster) -> Backend:
        """Make a backend that runs a job on them."""
        return FakeBackend(journal, cluster, self.of)

    def cut(self, name: str) -> None:
        """Cut a machine off."""
        self.of[name].away = True

    def mend(self, name: str) -> None:
        """Let it be reached again."""
        self.of[name].away = False

    def hold(self, name: str) -> None:
        """Let another job have it."""
        self.of[name].held = True

    def spoil(self, name: str) -> None:
        """Make it unfit."""
        self.of[name].unfit = True

    def refuse(self, name: str, *, busy: bool) -> None:
        """Let it refuse to start anything."""
        self.of[name].refusal = NodesBusy if busy else LaunchFailed

    def leave(self, name: str, pids: tuple[int, ...]) -> None:
        """Let processes live on."""
        self.of[name].left_pids = pids

    def write(self, name: str, log: bytes = b"", metrics: bytes = b"") -> None:
        """Let the rank print and measure."""
        self.of[name].log += log
        self.of[name].metrics += metrics

    def end(self, name: str, **record: Any) -> None:
        """End the rank."""
        self.of[name].end(**record)

    def runs(self, name: str) -> bool:
        """Say whether a rank runs there."""
        return self.of[name].runs

    def starts(self, name: str) -> int:
        """Count the ranks that were begun there."""
        return self.of[name].starts


class FakeBackend:
    """See `backends/api.py`."""

    def __init__(
        self, journal: Journal, cluster: Cluster, machines: dict[str, FakeMachine]
    ) -> None:
        self.journal = journal
        self.experiment = journal.experiment
        self.cluster = cluster
        self.machines = machines
        self._left_behind: set[str] = set()

    def begin(self) -> None:
        """Remember what was left behind."""
        for attempt in self.journal.state.attempts:
            self._left_behind.update(attempt.left_behind)

    # ---- plan ----

    def plan(
        self, number: int, resume: Callable[[], Resume | None]
    ) -> LaunchPlan | Outcome:
        """Take the machines that are there and free."""
        names = list(self.machines)
        if number == 1:
            refused = self._refusal(names)
        else:
            refused, names = self._wait_for_all(names)
        if refused:
            return refused
        nodes = tuple(
            make_node_plan(rank, node=name) for rank, name in enumerate(names)
        )
        return make_plan_of(nodes, attempt=number, resume=resume())

    def _refusal(self, names: Sequence[str]) -> Outcome | None:
        if self.journal.stop_asked:
            return Outcome.stopped("before it started")
        held = [name for name in names if self.machines[name].held]
        if held:
            words = f"{', '.join(held)}: taken"
            return Outcome(phase=Phase.REFUSED, error=NodesBusy, words=words)
        unfit = [name for name in names if self._is_unfit(name)]
        if unfit:
            words = f"{', '.join(unfit)}: not fit"
            return Outcome(phase=Phase.REFUSED, error=NotFit, words=words)
        return None

    def _is_unfit(self, name: str) -> bool:
        machine = self.machines[name]
        return machine.away or (machine.unfit and not self.journal.record.force)

    def _wait_for_all(self, names: list[str]) -> tuple[Outcome | None, list[str]]:
        deadline = time.monotonic() + self.cluster.timeouts.return_seconds
        while True:
            self.stop()
            away = [
                name
                for name in names
                if self.machines[name].held or self._is_unfit(name)
            ]
            if not away:
                return None, names
            if self.journal.stop_asked:
                return Outcome.stopped("before it started again"), []
            if time.monotonic() > deadline:
                return self._go_without(away, names)
            time.sleep(POLL_SECONDS)

    def _go_without(
        self, away: list[str], names: list[str]
    ) -> tuple[Outcome | None, list[str]]:
        left = [name for name in names if name not in away]
        if len(left) < (self.journal.record.min_nodes or len(names)):
            words = f"{', '.join(away)} did not come back"
            return Outcome(
                phase=Phase.FAILED, error=NotFit, words=words, final=True
            ), []
        self.journal.change_attempt(left_behind=tuple(away))
        self._left_behind.update(away)
        return None, left

    # ---- start ----

    def start(self, plan: LaunchPlan, *, begun_before: bool) -> Outcome | None:
        """Start all, or none."""
        ranks = tuple(RankState(rank=node.rank, node=node.node) for node in plan.nodes)
        self.journal.change(phase=Phase.PREPARING, ranks=ranks)
        faults = [fault for node in plan.nodes if (fault := self._fault(node))]
        if faults or self.journal.stop_asked:
            return self._undo(plan, faults, begun_before=begun_before)
        for node in plan.nodes:
            self.machines[node.node].start()
        self._note_ran(phase=Phase.RUNNING)
        return None

    def _fault(self, node: NodePlan) -> UgroError | None:
        machine = self.machines[node.node]
        if machine.away:
            return HostUnreachable(node.node, "away")
        return machine.refusal(f"{node.node}: no") if machine.refusal else None

    def _undo(
        self, plan: LaunchPlan, faults: Sequence[UgroError], *, begun_before: bool
    ) -> Outcome:
        ran = any(self.machines[node.node].runs for node in plan.nodes)
        left = self._stop_all(plan.nodes, "undone")
        if ran and begun_before:
            self._note_ran()
        words = "\n".join([*(fault.text for fault in faults), *left])
        if left:
            return Outcome(phase=Phase.FAILED, error=StopUnproven, words=words)
        if not faults:
            return Outcome.stopped("before it started")
        if all(isinstance(fault, NodesBusy) for fault in faults):
            return Outcome(phase=Phase.REFUSED, error=NodesBusy, words=words)
        return Outcome(phase=Phase.FAILED, error=LaunchFailed, words=words)

    def _note_ran(self, **changes: Any) -> None:
        began_at = self.journal.state.started_at or time.time()
        self.journal.change(attempt={"ran": True}, started_at=began_at, **changes)

    # ---- to the end ----

    def run_to_end(self, plan: LaunchPlan, away_seconds: float | None) -> AttemptEnd:
        """Look at the machines until all ranks have ended."""
        watch = _Watch(self, plan, away_seconds)
        while not watch.is_over():
            time.sleep(POLL_SECONDS)
            watch.look()
        exits = tuple(watch.exits.values())
        wrote = tuple(end.node for end in exits if end.outputs or end.lost)
        return AttemptEnd(
            exits=exits,
            stopped_for=Reason.ASKED if watch.asked else None,
            wrote=wrote,
            unproven=watch.unproven(),
        )

    def stop(self) -> None:
        """Stop what is not proven gone."""
        unproven = {r.node for r in self.journal.state.ranks if not r.proven_gone}
        plan = self.journal.record.plan
        if plan:
            nodes = [node for node in plan.nodes if node.node in unproven]
            self._stop_all(nodes, "failure")

    def _stop_all(self, nodes: Sequence[NodePlan], reason: str) -> list[str]:
        left = []
        for node in nodes:
            machine = self.machines[node.node]
            words = machine.stop(reason)
            if words:
                left.append(words)
            if not machine.away:
                self.journal.change_rank(
                    node.rank, proven_gone=not words, left_pids=machine.left_pids
                )
        return left

    # ---- fetch ----

    def fetch(
        self, plan: LaunchPlan, end: AttemptEnd, nodes: Collection[str]
    ) -> list[UgroError]:
        """Fetch nothing, since nothing is on these machines; those that are away say so."""
        wanted = [name for name in end.wrote if name in nodes]
        return self._unreached(wanted)

    def fetch_earlier(self, before: int) -> list[UgroError]:
        """Fetch nothing, as `fetch`."""
        attempts = self.journal.state.attempts
        wanted = [a for a in attempts if a.ran and a.number < before and not a.gathered]
        return self._unreached([node for attempt in wanted for node in attempt.nodes])

    def fetch_checkpoints(self, plan: LaunchPlan) -> list[UgroError]:
        """Fetch nothing, as `fetch`."""
        return self._unreached([node.node for node in plan.nodes])

    def _unreached(self, names: Sequence[str]) -> list[UgroError]:
        return [
            HostUnreachable(name, "away") for name in names if self.machines[name].away
        ]

    # ---- the end ----

    def see_off(self) -> None:
        """Wait for nobody."""

    def still_away(self) -> set[str]:
        """Name those left behind that are away."""
        return {name for name in self._left_behind if self.machines[name].away}

    def close(self) -> None:
        """Have nothing to close."""


class _Watch:
    """One run to the end."""

    def __init__(
        self, backend: FakeBackend, plan: LaunchPlan, away_seconds: float | None
    ) -> None:
        self.backend = backend
        self.journal = backend.journal
        self.plan = plan
        self.away_seconds = away_seconds
        self.exits: dict[str, RankExit] = {}
        self.asked = False
        self.left: list[str] = []
        self._stopping = False
        self._stopped: set[str] = set()
        self._away_since: dict[str, float] = {}

    def is_over(self) -> bool:
        """Say whether nothing more is waited for."""
        given_up = self.journal.given_up
        all_ended = len(self.exits) == len(self.plan.nodes)
        if self._stopping and len(self._stopped) < len(self.plan.nodes):
            return given_up
        return all_ended or (given_up and bool(self.left))

    def look(self) -> None:
        """Look at all machines once."""
        for node in self.plan.nodes:
            if node.node not in self.exits:
                self._look_at(node, self.backend.machines[node.node])
        failed = any(rank_exit.failed for rank_exit in self.exits.values())
        asked = self.journal.stop_asked
        if not self._stopping and (failed or asked):
            self._stopping = True
            self.asked = not failed
            self.journal.change(phase=Phase.STOPPING)
        if self._stopping:
            self._stop_those_that_can_be()

    def _look_at(self, node: NodePlan, machine: FakeMachine) -> None:
        if machine.away:
            since = self._away_since.setdefault(node.node, time.monotonic())
            self.journal.change_rank(node.rank, connected=False)
            limit = self.away_seconds
            if limit is not None and time.monotonic() - since > limit:
                self._note(node, {"lost": f"{node.node} is away", "gave_up": True})
            return
        self._away_since.pop(node.node, None)
        self.journal.change_rank(node.rank, connected=True)
        self._bring_streams(node, machine)
        if machine.exit is not None:
            self._note(node, machine.exit)

    def _bring_streams(self, node: NodePlan, machine: FakeMachine) -> None:
        experiment = self.journal.experiment
        streams = {experiment.log(node.rank): machine.log}
        if node.rank == 0:
            streams[experiment.metrics] = machine.metrics
        for file, content in streams.items():
            file.append_stream(content[file.size() :])

    def _note(self, node: NodePlan, record: dict[str, Any]) -> None:
        end = RankExit(
            node=node.node,
            rank=node.rank,
            at=time.time(),
            **{**record, "outputs": tuple(record.get("outputs", ()))},
        )
        self.exits[node.node] = end
        self.journal.change_rank(
            node.rank,
            connected=False,
            exit_code=end.code,
            signal=end.signal,
            lost=end.lost,
            ended_at=end.at,
            proven_gone=not end.lost,
        )

    def _stop_those_that_can_be(self) -> None:
        """Stop each machine once; one that is away is waited for, unless its rank counts as lost."""
        reason = "asked" if self.asked else "failure"
        for node in self.plan.nodes:
            lost = node.node in self.exits and bool(self.exits[node.node].lost)
            waits = self.backend.machines[node.node].away and not lost
            if node.node in self._stopped or waits:
                continue
            self._stopped.add(node.node)
            self.left += self.backend._stop_all([node], reason)

    def unproven(self) -> Outcome | None:
        """Give the outcome where something may be left."""
        given_up = self.journal.given_up
        missing = [
            f"{node.node} cannot be told to stop; later: inv reset --nodes {node.node}"
            for node in self.plan.nodes
            if self._stopping and node.node not in self._stopped
        ]
        left = [*self.left, *missing]
        waited = self.asked or given_up or self.away_seconds is None
        if not left or not waited:
            return None
        phase = Phase.STOPPED if self.asked else Phase.FAILED
        reason = Reason.ASKED if self.asked else None
        words = "\n".join(left)
        return Outcome(phase=phase, error=StopUnproven, words=words, reason=reason)
