"""The gate before an attempt: are its nodes there, fit and free, and what can be done where they are not.

Environments that are behind are made before the first attempt. Before a restart the nodes are waited
for, and after a while it goes on without those that stay away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import msgspec

from ...cluster.model import Cluster
from ...environments.judge import behind
from ...environments.sync import Progress, fault_of, sync
from ...errors import Interrupted, NotFit
from ...health.report import ClusterHealth
from ...hosts.fleet import Fleet
from ...hosts.host import retry_pause
from ...jobs.journal import Journal
from ...jobs.outcome import CutShort, Outcome
from ...jobs.plan import LaunchPlan
from ...jobs.state import Phase
from ...training.batch_sizes import refusals
from .plan import make_plan


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """The nodes that an attempt can be made with."""

    cluster: Cluster
    fleet: Fleet
    health: ClusterHealth
    left_behind: tuple[str, ...] = ()
    """The nodes that stayed away."""


class Gate:
    """Lets an attempt begin, or raises CutShort with the reason.

    `probe` gives the health of a cluster by a fleet. Whatever takes long ends soon after a stop was
    asked for.
    """

    def __init__(
        self,
        journal: Journal,
        cluster: Cluster,
        fleet: Fleet,
        probe: Callable[[Fleet, Cluster], ClusterHealth],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.journal = journal
        self.cluster = cluster
        self.fleet = fleet
        self._probe = probe
        self._clock = clock
        self._sleep = sleep

    # ---- the first attempt ----

    def admit_first(self) -> Admitted:
        """Admit all nodes, once their environments are up to date and nothing is wrong with them."""
        health = self._probe(self.fleet, self.cluster)
        if not health.busy():
            health = self._synced(health)
        self._refuse_unfit(health)
        return Admitted(cluster=self.cluster, fleet=self.fleet, health=health)

    def refuse_too_large(self, plan: LaunchPlan) -> None:
        """Raise CutShort where a rank of the plan would not fit into its memory."""
        if self.journal.record.force:
            return
        too_large = refusals(plan)
        if too_large:
            raise CutShort(
                Outcome(phase=Phase.REFUSED, error=NotFit, words="\n".join(too_large))
            )

    def _synced(self, health: ClusterHealth) -> ClusterHealth:
        """Make the environments that are behind; give what was seen of the nodes last."""
        late = behind(self.cluster, health.facts()) if self.journal.record.sync else {}
        if not late:
            return health
        # Minutes pass until an environment is made: what is wrong anyway is said before.
        self._refuse_unfit(health, late)
        self.refuse_too_large(
            make_plan(self.journal.record, self.cluster, health.facts())
        )
        for node, why in late.items():
            self.journal.say(f"environment: {why}; it is rebuilt", node)
        self._make_environments(late)
        return self._probe(self.fleet, self.cluster)

    def _make_environments(self, late: Collection[str]) -> None:
        phases: dict[str, str] = {}

        def tell(node: str, progress: Progress) -> None:
            if self.journal.experiment.stop_asked:
                raise Interrupted("as asked")
            if phases.get(node) != progress.phase:
                phases[node] = progress.phase
                self.journal.say(f"environment: {progress.phase}", node)

        try:
            fault = fault_of(sync(self.fleet, self.cluster, tell, late))
        except Interrupted:
            fault = None
        self._unless_stopped(
            "while environments were made; what was in use stays in use"
        )
        if fault:
            raise CutShort(Outcome(phase=Phase.REFUSED, error=fault, words=fault.text))

    def _refuse_unfit(self, health: ClusterHealth, late: Collection[str] = ()) -> None:
        self._unless_stopped("before it started")
        error = health.refusal(force=self.journal.record.force, late=late)
        if error:
            raise CutShort(
                Outcome(phase=Phase.REFUSED, error=type(error), words=error.text)
            )

    # ---- a restart ----

    def admit_again(self, stop_remains: Callable[[], None]) -> Admitted:
        """Admit all nodes once they are back, or after a while those that are fit.

        `stop_remains` is called before each look: it tells what is left of the attempt before to stop.
        """
        timeouts = self.cluster.timeouts
        deadline = self._clock() + timeouts.return_seconds
        tried = 0
        while True:
            stop_remains()
            health = self._probe(self.fleet, self.cluster)
            away = self._away(health)
            if not away:
                return Admitted(cluster=self.cluster, fleet=self.fleet, health=health)
            self._unless_stopped("before it started again")
            if self._clock() > deadline:
                return self._without(away, health)
            if tried == 0:
                limit = f"for {timeouts.return_seconds:g} s at most"
                self.journal.say(f"waiting for {', '.join(away)}, {limit}")
            self._sleep(retry_pause(tried))
            tried += 1

    def _without(self, away: Collection[str], health: ClusterHealth) -> Admitted:
        """Admit the others, once they are found fit for the parts that they have to play then."""
        everybody = [node.name for node in self.cluster.nodes]
        least = self.journal.record.min_nodes or len(everybody)
        gone = list(away)
        while True:
            staying = [name for name in everybody if name not in gone]
            if len(staying) < least:
                raise CutShort(_not_back(gone, health))
            left = self.cluster.subset(staying)
            fleet = Fleet.of(left)
            health = self._probe(fleet, left)
            away = self._away(health)
            if not away:
                break
            gone += away
        self.journal.say(f"going on without {', '.join(gone)}")
        return Admitted(
            cluster=left, fleet=fleet, health=health, left_behind=tuple(gone)
        )

    def _away(self, health: ClusterHealth) -> list[str]:
        """Name the nodes that no attempt can be made with.

        Those that are out of reach or taken come first: what else is wrong may come of their absence.
        """
        away = [
            node.node for node in health.nodes if not node.reachable or node.held_by
        ]
        if away or self.journal.record.force:
            return away
        return [node.node for node in health.nodes if not node.fit]

    # ---- both ----

    def _unless_stopped(self, when: str) -> None:
        if self.journal.experiment.stop_asked:
            raise CutShort(Outcome(phase=Phase.STOPPED, error=Interrupted, words=when))


def _not_back(gone: Collection[str], health: ClusterHealth) -> Outcome:
    lines = [f"{', '.join(gone)} did not come back:"]
    for node, check in health.faults:
        if node in gone:
            lines.append(f"{node}: {check.name}: {check.value}")
    return Outcome(phase=Phase.FAILED, error=NotFit, words="\n".join(lines), final=True)
