"""A job on hosts reached by SSH, or on this machine."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ...cluster.model import Cluster
from ...environments.judge import behind
from ...environments.sync import Progress, fault_of, sync
from ...errors import Interrupted, UgroError
from ...health.report import ClusterHealth, examine
from ...hosts.fleet import Fleet
from ...hosts.requests import Talks
from ...jobs.experiments import Experiments
from ...jobs.journal import Journal
from ...jobs.outcome import Outcome
from ...jobs.plan import LaunchPlan
from ...jobs.spec import Resume
from ...outputs.checkpoints import Mirror, bring_all
from ...outputs.fetch import fetch_outputs
from ...outputs.home import RanAttempt, bring_home, bring_streams, ran_attempts
from ...training.batch_sizes import model_to_look_for
from ..api import AttemptEnd
from . import gate
from .gang_loop import Gang
from .gate import Admitted, GateState, Look, too_large
from .late_stop import LateStops
from .loop import Loop, Say
from .plan import make_plan


class SshBackend:
    """Runs the attempts of one job on the hosts of a fleet; see `backends/api.py`."""

    def __init__(
        self,
        journal: Journal,
        cluster: Cluster,
        fleet: Fleet,
        experiments: Experiments,
        *,
        fleet_of: Callable[[Cluster], Fleet] = Fleet.of,
    ) -> None:
        self.journal = journal
        self.cluster = cluster
        self.experiment = journal.experiment
        self.experiments = experiments
        # By connections that are there already, where the whole cluster takes part.
        self._fleets = {tuple(node.name for node in cluster.nodes): fleet}
        self._fleet_of = fleet_of
        self._talks = Talks()
        self._late_stops = LateStops(journal, fleet)
        self._mirror: Mirror | None = None
        self._gate: Loop[GateState, gate.Event, gate.Act] = Loop(
            gate.step, self._carry_out, self.journal
        )

    def begin(self) -> None:
        """Go on telling nodes left behind to stop."""
        self._late_stops.begin()

    # ---- plan ----

    def plan(
        self, number: int, resume: Callable[[], Resume | None]
    ) -> LaunchPlan | Outcome:
        """Let the attempt through the gate, and plan it for the admitted nodes."""
        admitted = self._admit(Look.FIRST if number == 1 else Look.BACK)
        if isinstance(admitted, Outcome):
            return admitted
        if admitted.left_behind:
            self.journal.change_attempt(left_behind=admitted.left_behind)
            self._late_stops.begin()
        plan = make_plan(
            self.journal.record,
            self._part(admitted.nodes),
            admitted.health.facts(),
            attempt=number,
            resume=resume(),
        )
        refused = too_large(self.journal.record, plan) if number == 1 else None
        return refused or plan

    def _admit(self, look: Look) -> Admitted | Outcome:
        record = self.journal.record
        state = GateState(record=record, cluster=self.cluster, look=look)
        seen = self._gate.run(state, until=lambda state: state.result is not None)
        assert seen.result  # noqa: S101
        return seen.result

    def _carry_out(self, act: gate.Act) -> None:
        match act:
            case gate.Probe():
                self._gate.in_thread("probe", lambda: self._look(act.nodes))
            case gate.StopRemains():
                self._gate.in_thread("stop", self._stop_and_look)
            case gate.MakeEnvironments():
                self._gate.in_thread("environments", lambda: self._make(act.nodes))
            case Say():
                self.journal.say(act.words, act.node)

    def _look(self, nodes: tuple[str, ...]) -> gate.Probed:
        cluster = self._part(nodes)
        health = self._probe(cluster)
        late = behind(cluster, health.facts()) if self.journal.record.sync else {}
        return gate.Probed(health, late)

    def _stop_and_look(self) -> gate.Probed:
        self.stop()
        return gate.Probed(self._probe(self.cluster))

    def _probe(self, cluster: Cluster) -> ClusterHealth:
        self.journal.say(f"checking {len(cluster.nodes)} nodes")
        model = model_to_look_for(self.journal.record)
        fleet = self._fleet(cluster)
        health = examine(fleet, cluster, self._talks.ask, model, keep_port=True)
        try:
            self.experiments.save_cluster_state(health)
        except OSError as error:
            # Nothing depends on it.
            self.journal.log.warning("%s: %s", error.filename, error.strerror)
        return health

    def _make(self, nodes: tuple[str, ...]) -> gate.EnvironmentsMade:
        phases: dict[str, str] = {}

        def tell(node: str, progress: Progress) -> None:
            if self.journal.stop_asked:
                raise Interrupted("as asked")
            if phases.get(node) != progress.phase:
                phases[node] = progress.phase
                self.journal.say(f"environment: {progress.phase}", node)

        fleet = self._fleet(self.cluster)
        try:
            return gate.EnvironmentsMade(
                fault_of(sync(fleet, self.cluster, tell, nodes))
            )
        except Interrupted:
            # The gate is told of the stop by itself.
            return gate.EnvironmentsMade()

    # ---- start, run, stop ----

    def start(self, plan: LaunchPlan, *, begun_before: bool) -> Outcome | None:
        """Start the gang."""
        return self._gang(plan).launch(begun_before=begun_before)

    def run_to_end(self, plan: LaunchPlan, away_seconds: float | None) -> AttemptEnd:
        """Follow the gang to its end."""
        gang = self._gang(plan)
        try:
            return gang.run_to_end(away_seconds)
        finally:
            self._mirror = gang.mirror

    def stop(self) -> None:
        """Tell those ranks of the last attempt to stop that are not proven gone; fetch the rest of their streams."""
        plan = self.journal.record.plan
        ranks = self.journal.state.ranks
        unproven = {rank.node for rank in ranks if not rank.proven_gone}
        if plan and unproven:
            self._gang(plan).stop_remains(unproven)

    def _gang(self, plan: LaunchPlan) -> Gang:
        cluster = self._part([node.node for node in plan.nodes])
        return Gang(self.journal, cluster, self._fleet(cluster), plan, self._talks)

    # ---- fetch ----

    def fetch(
        self, plan: LaunchPlan, end: AttemptEnd, nodes: Collection[str]
    ) -> list[UgroError]:
        """Fetch the streams that were not followed to their end, checkpoints, and all other outputs."""
        ended = {end_of.node for end_of in end.exits if not end_of.gave_up}
        ended.difference_update(end.unread)
        wanted = [node for node in plan.nodes if node.node in nodes]
        unheard = tuple(node for node in wanted if node.node not in ended)
        wrote = [node for node in wanted if node.node in end.wrote or node in unheard]
        if not wrote:
            return []
        self._wait_for_mirror()
        fleet = self._fleet(self._part([node.node for node in plan.nodes]))
        attempt = RanAttempt(number=plan.attempt, plans=unheard, is_last=True)
        errors, _ = bring_streams(self.experiment, attempt, fleet)
        errors += bring_all(self.experiment, wrote, fleet)
        errors += fetch_outputs(self.experiment, wrote, fleet)
        return errors

    def fetch_earlier(self, before: int) -> list[UgroError]:
        """Fetch what is missing of earlier attempts, by the fleet of all nodes."""
        attempts = [
            attempt
            for attempt in ran_attempts(
                self.experiment, self.journal.record, self.journal.state
            )
            if attempt.number < before and not attempt.gathered
        ]
        if not attempts:
            return []
        return bring_home(self.experiment, attempts, self._fleet(self.cluster))

    def fetch_checkpoints(self, plan: LaunchPlan) -> list[UgroError]:
        """Fetch the whole checkpoints, by the fleet of all nodes: a node left behind may be back."""
        self._wait_for_mirror()
        return bring_all(self.experiment, plan.nodes, self._fleet(self.cluster))

    def _wait_for_mirror(self) -> None:
        if self._mirror:
            self._mirror.wait()
            self._mirror = None

    # ---- the end ----

    def see_off(self) -> None:
        """Tell the nodes to stop that have not shown that nothing of the job is left, until each has answered."""
        self._late_stops.wait()

    def still_away(self) -> set[str]:
        """Name the nodes left behind that have not been reached since."""
        return self._late_stops.still_away()

    def close(self) -> None:
        """End the conversations with the nodes."""
        self._talks.close()

    # ---- helpers ----

    def _part(self, nodes: Collection[str]) -> Cluster:
        """Give the cluster, or its part with these nodes."""
        if len(nodes) == len(self.cluster.nodes):
            return self.cluster
        return self.cluster.subset(nodes)

    def _fleet(self, cluster: Cluster) -> Fleet:
        names = tuple(node.name for node in cluster.nodes)
        if names not in self._fleets:
            self._fleets[names] = self._fleet_of(cluster)
        return self._fleets[names]
