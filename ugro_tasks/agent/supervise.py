"""One job from its gate to its end: probe, plan, one gang after the other, gather.

It may be killed anywhere and begun again by the next agent: what matters is in the experiment folder and on the
nodes. Prepare and start only say so where they were done before, and streams go on where their files end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Sequence

import msgspec

from ..backends.ssh.gang import Gang
from ..backends.ssh.plan import make_plan
from ..backends.ssh.stop import StopOrder, stop_rank
from ..backends.ssh.streams import stream_sizes
from ..cluster.model import Cluster
from ..environments.judge import behind
from ..environments.sync import Progress, fault_of, sync
from ..errors import Interrupted, JobFailed, NotFit, UgroError
from ..health.report import ClusterHealth, examine
from ..hosts.fleet import Fleet
from ..hosts.host import Host, retry_pause
from ..hosts.requests import Talks
from ..jobs.checkpoints import newest_whole
from ..jobs.experiment import Experiment
from ..jobs.experiments import Experiments
from ..jobs.journal import Journal
from ..jobs.names import attempt_folder, folder_of, token_of
from ..jobs.outcome import CutShort, Outcome
from ..jobs.plan import LaunchPlan
from ..jobs.spec import Resume
from ..jobs.state import Attempt, Phase
from ..outputs.checkpoints import bring_all
from ..outputs.fetch import gather
from ..training.batch_sizes import model_to_look_for, refusals, summary
from .cause import find_cause
from .restart import End, Restart, next_step


class Supervision:
    """`run()` sees one job through to its end."""

    def __init__(
        self, experiments: Experiments, experiment: Experiment, fleet: Fleet, log: logging.Logger
    ) -> None:
        self.experiments, self.experiment, self.fleet = experiments, experiment, fleet
        self.journal = Journal(experiment, log)
        self.cluster = experiment.cluster()
        self._talks = Talks()
        self._last: Gang | None = None  # whose outputs are not gathered
        # Threads that go on telling nodes which were left behind to stop: {node: its thread}.
        self._laggards: dict[str, threading.Thread] = {}

    def run(self) -> None:
        """Return when the job has ended: nothing of it is left, or its record names what is."""
        self._see_off()
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
        return next_step(outcome, self.journal.record, self.journal.state, stop_asked=stop_asked)

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
        away = self.cluster.timeouts.away_seconds if self.journal.record.max_restarts else None
        ends, asked = gang.see_through(away)
        if asked:
            words = "as asked; nothing of it is left on any node"
            return Outcome(phase=Phase.STOPPED, error=Interrupted, words=words)
        cause = find_cause(ends, self.experiment)
        if cause is not None:
            return Outcome(phase=Phase.FAILED, error=JobFailed, words=cause.message, cause=cause)
        self._gather_all(gang)
        return Outcome(phase=Phase.SUCCEEDED)

    def _end_attempt(self, outcome: Outcome, restart: Restart) -> None:
        """Write down how the attempt ended, and fetch what its ranks wrote; another follows."""
        if self.journal.attempt:
            self.journal.change_attempt(ended_at=time.time(), cause=outcome.as_cause())
        if self._last:
            reached = {rank.node for rank in self.journal.state.ranks if rank.proven_gone}
            for error in self._gather(self._last, reached):
                self.journal.say(f"not gathered: {error.text}")
            self._last = None
        why = outcome.words.splitlines()[0]
        self.journal.say(f"{why}; restart {restart.number} of {self.journal.record.max_restarts}")
        self.journal.change(phase=Phase.QUEUED)

    # ---- the plan of an attempt ----

    def _plan_gang(self) -> Gang:
        """The next attempt, planned and written down."""
        record, number = self.journal.record, len(self.journal.state.attempts) + 1
        if number == 1:
            cluster, health = self.cluster, self._probe(self.fleet, self.cluster)
            if not health.busy():
                health = self._synced(health)
            self._gate(health)
            resume = record.resume
        else:
            cluster, health = self._muster()
            resume = self._newest_checkpoint()
        plan = make_plan(record, cluster, health.facts(), attempt=number, resume=resume)
        if number == 1:
            self._refuse_too_large(plan)
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
        return Gang(self.journal, cluster, self._fleet_of(cluster), plan, self._talks)

    def _probe(self, fleet: Fleet, cluster: Cluster) -> ClusterHealth:
        self.journal.say(f"checking {len(cluster.nodes)} nodes")
        model = model_to_look_for(self.journal.record)
        health = examine(fleet, cluster, self._talks.ask, model, keep_port=True)
        self.journal.insist(lambda: self.experiments.save_cluster_state(health))
        return health

    def _synced(self, health: ClusterHealth) -> ClusterHealth:
        """The same, or what a new probe saw after environments that were behind have been made; raises `CutShort`."""
        late = behind(self.cluster, health.facts()) if self.journal.record.sync else {}
        if not late:
            return health
        phases: dict[str, str] = {}

        def tell(node: str, progress: Progress) -> None:
            if self.experiment.stop_asked:
                raise Interrupted("as asked")
            if phases.get(node) != progress.phase:
                phases[node] = progress.phase
                self.journal.say(f"environment: {progress.phase}", node)

        # Minutes pass until an environment is made: what is wrong anyway is said before.
        self._gate(health, late)
        self._refuse_too_large(make_plan(self.journal.record, self.cluster, health.facts()))
        for node, why in late.items():
            self.journal.say(f"environment: {why}; it is made anew", node)
        try:
            fault = fault_of(sync(self.fleet, self.cluster, tell, late))
        except Interrupted:
            fault = None
        self._unless_stopped("while environments were made; what was in use stays in use")
        if fault:
            raise CutShort(Outcome(phase=Phase.REFUSED, error=fault, words=fault.text))
        return self._probe(self.fleet, self.cluster)

    def _unless_stopped(self, when: str) -> None:
        if self.experiment.stop_asked:
            raise CutShort(Outcome(phase=Phase.STOPPED, error=Interrupted, words=when))

    def _gate(self, health: ClusterHealth, late: Collection[str] = ()) -> None:
        self._unless_stopped("before it started")
        if error := health.refusal(force=self.journal.record.force, late=late):
            raise CutShort(Outcome(phase=Phase.REFUSED, error=type(error), words=error.text))

    def _refuse_too_large(self, plan: LaunchPlan) -> None:
        if not self.journal.record.force and (too_large := refusals(plan)):
            words = "\n".join(too_large)
            raise CutShort(Outcome(phase=Phase.REFUSED, error=NotFit, words=words))

    # ---- a restart ----

    def _muster(self) -> tuple[Cluster, ClusterHealth]:
        """The nodes for the next attempt: all of them, or after a while those that are fit; raises `CutShort`."""
        timeouts = self.cluster.timeouts
        deadline, tried = time.monotonic() + timeouts.return_seconds, 0
        while True:
            self._stop_remains()
            health = self._probe(self.fleet, self.cluster)
            away = self._away(health)
            if not away:
                return self.cluster, health
            self._unless_stopped("before it started again")
            if time.monotonic() > deadline:
                return self._go_on_without(away, health)
            if tried == 0:
                wait = f"waiting for {', '.join(away)}, for {timeouts.return_seconds:g} s at most"
                self.journal.say(wait)
            time.sleep(retry_pause(tried))
            tried += 1

    def _go_on_without(self, away: Sequence[str], health: ClusterHealth) -> tuple[Cluster, ClusterHealth]:
        """The others, once they are found fit for the parts that they have to play then; raises `CutShort`."""
        everybody, left, gone = self.cluster.nodes, self.cluster, list[str]()
        while away:
            gone += away
            if len(everybody) - len(gone) < (self.journal.record.min_nodes or len(everybody)):
                faults = [(node, check) for node, check in health.faults if node in gone]
                lines = [f"{node}: {check.name}: {check.value}" for node, check in faults]
                words = "\n".join([f"{', '.join(gone)} did not come back:", *lines])
                raise CutShort(Outcome(phase=Phase.FAILED, error=NotFit, words=words, final=True))
            left = self.cluster.subset([node.name for node in everybody if node.name not in gone])
            health = self._probe(self._fleet_of(left), left)
            away = self._away(health)
        self.journal.say(f"going on without {', '.join(gone)}")
        self.journal.change_attempt(left_behind=tuple(gone))
        self._see_off()
        return left, health

    def _away(self, health: ClusterHealth) -> list[str]:
        """The nodes that no attempt can be made with. What else is wrong may come of their absence."""
        away = [node.node for node in health.nodes if not node.reachable or node.held_by]
        unfit = [node.node for node in health.nodes if not node.fit and not self.journal.record.force]
        return away or unfit

    def _stop_remains(self) -> None:
        """Tell the ranks of the attempt before to stop, where it is not proven that they have."""
        plan = self.journal.record.plan
        unproven = {rank.node for rank in self.journal.state.ranks if not rank.proven_gone}
        if plan and unproven:
            rest = msgspec.structs.replace(plan, nodes=tuple(p for p in plan.nodes if p.node in unproven))
            gang = Gang(self.journal, self.cluster, self.fleet, rest, self._talks)
            gang.stop(StopOrder(reason="failure"), tries=1)
            gang.catch_up(unproven & gang.proven_gone)

    def _see_off(self) -> None:
        """Go on telling the nodes that were left behind to stop what they had, for as long as the agent lives."""
        attempts = self.journal.state.attempts
        hosts = {host.node.name: host for host in self.fleet}
        for name in {name for attempt in attempts for name in attempt.left_behind} - self._told_of():
            last = [attempt for attempt in attempts if name in attempt.nodes][-1]
            if last.ended_at is None:  # it is with us again
                continue
            self._laggards[name] = threading.Thread(
                target=self._stop_late,
                args=(hosts[name], last.number),
                name=f"see-off-{name}",
                daemon=True,
            )
            self._laggards[name].start()

    def _told_of(self) -> set[str]:
        return {name for name, thread in self._laggards.items() if thread.is_alive()}

    def _stop_late(self, host: Host, number: int) -> None:
        unique = attempt_folder(self.journal.record, number)
        result = stop_rank(
            host,
            folder_of(host.node, unique),
            token_of(host.node, unique),
            StopOrder(reason="failure"),
            given_up=lambda: False,  # nobody waits for this
            trying_again=lambda words: self.journal.log.info("%s: %s", host.node.name, words),
        )
        self.journal.say(f"is back; {result.words or 'nothing of the job is left there'}", host.node.name)

    def _newest_checkpoint(self) -> Resume | None:
        """What the next attempt goes on from: this job's last whole checkpoint, or where the job itself began."""
        record = self.journal.record
        if record.plan:
            for error in bring_all(self.experiment, record.plan.nodes, self.fleet):
                self.journal.log.warning("%s: a checkpoint has not come: %s", self.experiment.job_id, error)
        passed: list[str] = []
        found = newest_whole(self.experiment, passed.append)
        if passed:
            others = f", nor are {len(passed) - 1} before it" if len(passed) > 1 else ""
            self.journal.say(f"{passed[0]}{others}")
        if found is None:
            return record.resume
        return Resume(job_id=self.experiment.job_id, checkpoint=found.name, step=found.step)

    # ---- the end ----

    def _gather_all(self, gang: Gang) -> None:
        """Everything of the last attempt comes home, and the state says so if it did."""
        for error in self._gather(gang, gang.wrote):
            self.journal.say(f"not gathered: {error.text}. Later: inv gather {self.experiment.job_id}")
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
            errors += gather(self.experiment, plans, gang.fleet, only=wrote, clashing=clashing)
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
        self.journal.insist(lambda: self.experiments.add_to_history(self.experiment, record, state))
        self.journal.say(f"{end.phase}: {outcome.words}" if outcome.words else f"{end.phase}")
        if self._last and end.phase is not Phase.SUCCEEDED:
            # Whoever waits for the proof of a stop, or for the cause, need not wait for this.
            self._gather_all(self._last)
        elif not self._last:
            self._note_if_whole()
        for name in self._told_of():
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
        return Gang(self.journal, cluster, self._fleet_of(cluster), plan, self._talks)

    def _fleet_of(self, cluster: Cluster) -> Fleet:
        """The hosts of the cluster, by the connections that there are where it is the whole."""
        return self.fleet if len(cluster.nodes) == len(self.cluster.nodes) else Fleet.of(cluster)

    def _source(self, resume: Resume | None) -> Experiment | None:
        return Experiment(self.experiments.folder / resume.job_id) if resume else None
