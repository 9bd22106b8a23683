"""One job from its gate to its end: probe, plan, one gang after the other, gather.

It may be killed anywhere and begun again by the next agent: what matters is in the experiment folder and on the
nodes. Prepare and start only say so where they were done before, and streams go on where their files end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from ..backends.ssh.gang_loop import Gang
from ..backends.ssh.gate import Gate
from ..backends.ssh.late_stop import LateStops
from ..backends.ssh.plan import make_plan
from ..backends.ssh.streams import stream_sizes
from ..cluster.model import Cluster
from ..errors import Interrupted, JobFailed, UgroError
from ..health.report import ClusterHealth, examine
from ..hosts.fleet import Fleet
from ..hosts.requests import Talks
from ..jobs.checkpoints import newest_whole
from ..jobs.experiment import Experiment
from ..jobs.experiments import Experiments
from ..jobs.journal import Journal
from ..jobs.outcome import CutShort, Outcome
from ..jobs.spec import Resume
from ..jobs.state import Attempt, Phase
from ..outputs.checkpoints import bring_all
from ..outputs.fetch import gather
from ..training.batch_sizes import model_to_look_for, summary
from .cause import find_cause
from .restart import End, Restart, next_step


class Supervision:
    """`run()` sees one job through to its end."""

    def __init__(
        self,
        experiments: Experiments,
        experiment: Experiment,
        fleet: Fleet,
        log: logging.Logger,
    ) -> None:
        self.experiments = experiments
        self.experiment = experiment
        self.fleet = fleet
        self.journal = Journal(experiment, log)
        self.cluster = experiment.cluster()
        self._talks = Talks()
        self._gate = Gate(self.journal, self.cluster, fleet, self._probe)
        self._late_stops = LateStops(self.journal, fleet)
        self._last: Gang | None = None  # whose outputs are not gathered

    def run(self) -> None:
        """Return when the job has ended: nothing of it is left, or its record names what is."""
        self._late_stops.begin()
        try:
            self._finish(*self._attempts())
        finally:
            self._talks.close()

    def _attempts(self) -> tuple[Outcome, End]:
        """Make one attempt after the other; give the outcome of the last, and how the job ends by it."""
        try:
            while True:
                outcome = self._attempt()
                self._talks.close()
                step = self._next_step(outcome)
                if isinstance(step, End):
                    return outcome, step
                self._end_attempt(outcome, step)
        except UgroError as error:
            outcome = Outcome(phase=Phase.FAILED, error=type(error), words=error.text)
            return outcome, End(phase=Phase.FAILED)

    def _next_step(self, outcome: Outcome) -> Restart | End:
        stop_asked = self.experiment.stop_asked
        return next_step(
            outcome, self.journal.record, self.journal.state, stop_asked=stop_asked
        )

    def _attempt(self) -> Outcome:
        """Run one gang from its start to its end, or what is left of that; give how it ended."""
        try:
            return self._run_gang()
        except CutShort as cut_short:
            return cut_short.outcome

    def _run_gang(self) -> Outcome:
        gang = self._gang()
        if gang is None or self.journal.state.phase in {Phase.QUEUED, Phase.PREPARING}:
            begun_before = gang is not None  # by an agent that was killed
            gang = gang or self._plan_gang()
            gang.launch(self._source(gang.plan.resume), begun_before=begun_before)
        self._last = gang
        away = (
            self.cluster.timeouts.away_seconds
            if self.journal.record.max_restarts
            else None
        )
        ends, asked = gang.run_to_end(away)
        if asked:
            words = "as asked; nothing of it is left on any node"
            return Outcome(phase=Phase.STOPPED, error=Interrupted, words=words)
        cause = find_cause(ends, self.experiment)
        if cause is not None:
            return Outcome(
                phase=Phase.FAILED, error=JobFailed, words=cause.message, cause=cause
            )
        self._gather_all(gang)
        return Outcome(phase=Phase.SUCCEEDED)

    def _end_attempt(self, outcome: Outcome, restart: Restart) -> None:
        """Write down how the attempt ended, and fetch what its ranks wrote; another follows."""
        if self.journal.attempt:
            self.journal.change_attempt(ended_at=time.time(), cause=outcome.as_cause())
        if self._last:
            reached = {
                rank.node for rank in self.journal.state.ranks if rank.proven_gone
            }
            for error in self._gather(self._last, reached):
                self.journal.say(f"not gathered: {error.text}")
            self._last = None
        why = outcome.words.splitlines()[0]
        self.journal.say(
            f"{why}; restart {restart.number} of {self.journal.record.max_restarts}"
        )
        self.journal.change(phase=Phase.QUEUED)

    # ---- the plan of an attempt ----

    def _plan_gang(self) -> Gang:
        """Plan the next attempt, and write it down."""
        number = len(self.journal.state.attempts) + 1
        if number == 1:
            admitted = self._gate.admit_first()
            resume = self.journal.record.resume
        else:
            admitted = self._gate.admit_again(self._stop_remains)
            if admitted.left_behind:
                self.journal.change_attempt(left_behind=admitted.left_behind)
                self._late_stops.begin()
            resume = self._newest_checkpoint()
        plan = make_plan(
            self.journal.record,
            admitted.cluster,
            admitted.health.facts(),
            attempt=number,
            resume=resume,
        )
        if number == 1:
            self._gate.refuse_too_large(plan)
        self.journal.save(plan=plan)
        self.journal.change(
            attempts=(
                *self.journal.state.attempts,
                Attempt(
                    number=number,
                    nodes=tuple(node.node for node in plan.nodes),
                    began_at=time.time(),
                    bases=stream_sizes(self.experiment, plan.nodes),
                    resume=resume,
                ),
            )
        )
        if plan.effective_batch:
            self.journal.say(summary(plan))
        if resume:
            self.journal.say(f"going on from {resume.checkpoint} (step {resume.step})")
        return Gang(self.journal, admitted.cluster, admitted.fleet, plan, self._talks)

    def _probe(self, fleet: Fleet, cluster: Cluster) -> ClusterHealth:
        self.journal.say(f"checking {len(cluster.nodes)} nodes")
        model = model_to_look_for(self.journal.record)
        health = examine(fleet, cluster, self._talks.ask, model, keep_port=True)
        self.journal.insist(lambda: self.experiments.save_cluster_state(health))
        return health

    # ---- a restart ----

    def _stop_remains(self) -> None:
        """Tell the ranks of the attempt before to stop, where it is not proven that they have."""
        plan = self.journal.record.plan
        unproven = {
            rank.node for rank in self.journal.state.ranks if not rank.proven_gone
        }
        if plan and unproven:
            gang = Gang(self.journal, self.cluster, self.fleet, plan, self._talks)
            gang.stop_remains(unproven)

    def _newest_checkpoint(self) -> Resume | None:
        """What the next attempt goes on from: this job's last whole checkpoint, or where the job itself began."""
        record = self.journal.record
        if record.plan:
            for error in bring_all(self.experiment, record.plan.nodes, self.fleet):
                self.journal.log.warning(
                    "%s: a checkpoint has not come: %s", self.experiment.job_id, error
                )
        passed: list[str] = []
        found = newest_whole(self.experiment, passed.append)
        if passed:
            others = f", nor are {len(passed) - 1} before it" if len(passed) > 1 else ""
            self.journal.say(f"{passed[0]}{others}")
        if found is None:
            return record.resume
        return Resume(
            job_id=self.experiment.job_id, checkpoint=found.name, step=found.step
        )

    # ---- the end ----

    def _gather_all(self, gang: Gang) -> None:
        """Everything of the last attempt comes home, and the state says so if it did."""
        for error in self._gather(gang, gang.wrote):
            self.journal.say(
                f"not gathered: {error.text}. Later: inv gather {self.experiment.job_id}"
            )
        self._note_if_whole()

    def _note_if_whole(self) -> None:
        state = self.journal.state
        ran = [attempt for attempt in state.attempts if attempt.ran]
        if ran and ran[-1].gathered and all(rank.proven_gone for rank in state.ranks):
            self.journal.change(gathered_at=time.time())

    def _gather(self, gang: Gang, nodes: Collection[str]) -> list[UgroError]:
        """Fetch what the ranks wrote on these nodes; gives why something of it has not come."""
        wrote = {node: names for node, names in gang.wrote.items() if node in nodes}
        errors: list[UgroError] = []
        if wrote:
            self.journal.say(f"gathering outputs of {', '.join(wrote)}")
            plans = [plan for plan in gang.plan.nodes if plan.node in wrote]
            errors = bring_all(self.experiment, plans, gang.fleet)
            clashing = {name for names in wrote.values() for name in names}
            errors += gather(
                self.experiment, plans, gang.fleet, only=wrote, clashing=clashing
            )
        if not errors and len(wrote) == len(gang.wrote):
            self.journal.change_attempt(gathered=True)
        return errors

    def _finish(self, outcome: Outcome, end: End) -> None:
        now = time.time()
        cause = outcome.as_cause()
        # In one write: whoever finds a job that runs and no attempt under way begins another.
        self.journal.change(
            attempt={"ended_at": now, "cause": cause} if self.journal.attempt else None,
            phase=end.phase,
            ended_at=now,
            cause=cause,
            exit_code=outcome.exit_code,
        )
        record, state = self.journal.record, self.journal.state
        self.journal.insist(
            lambda: self.experiments.add_to_history(self.experiment, record, state)
        )
        self.journal.say(
            f"{end.phase}: {outcome.words}" if outcome.words else f"{end.phase}"
        )
        if self._last and end.phase is not Phase.SUCCEEDED:
            # Whoever waits for the proof of a stop, or for the cause, need not wait for this.
            self._gather_all(self._last)
        elif not self._last:
            self._note_if_whole()
        for name in self._late_stops.still_away():
            self.journal.say(
                f"is still away; once it is back, end what it may still run: inv reset --nodes {name}",
                name,
            )

    # ---- helpers ----

    def _gang(self) -> Gang | None:
        """The gang of the attempt that is under way."""
        plan, attempt = self.journal.record.plan, self.journal.attempt
        if not plan or not attempt:
            return None
        cluster = self.cluster.subset(attempt.nodes)
        fleet = self.fleet  # by the connections that there are, where it is the whole
        if len(cluster.nodes) < len(self.cluster.nodes):
            fleet = Fleet.of(cluster)
        return Gang(self.journal, cluster, fleet, plan, self._talks)

    def _source(self, resume: Resume | None) -> Experiment | None:
        return Experiment(self.experiments.folder / resume.job_id) if resume else None
