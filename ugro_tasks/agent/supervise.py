"""One job from its start to its end: one attempt after the other, and their records.

It may be killed anywhere and begun again by the next agent: all its knowledge is in the experiment folder and on the
nodes. A backend makes the attempts, and goes on with an attempt of an earlier agent.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Sequence
from typing import Any

from ..backends.api import AttemptEnd, Backend
from ..errors import JobFailed, RecordError, UgroError
from ..hosts.retry import retry_pause
from ..jobs.checkpoints import newest_whole
from ..jobs.experiments import Experiments
from ..jobs.journal import Journal
from ..jobs.outcome import Outcome
from ..jobs.phase import Phase, Reason
from ..jobs.plan import LaunchPlan
from ..jobs.spec import Resume
from ..jobs.state import Attempt
from ..jobs.streams import stream_sizes
from ..training.batch_sizes import summary
from .cause import find_cause
from .restart import End, Restart, next_step


class Supervision:
    """`run()` sees one job through to its end."""

    def __init__(
        self, experiments: Experiments, journal: Journal, backend: Backend
    ) -> None:
        self.experiments = experiments
        self.experiment = journal.experiment
        self.journal = journal
        self.cluster = self.experiment.cluster()
        self.backend = backend
        # The last attempt, while its outputs are not fetched.
        self._to_fetch: tuple[LaunchPlan, AttemptEnd] | None = None

    def run(self) -> None:
        """Run the job to its end: afterwards nothing of it is left, or its record names the rest."""
        self.backend.begin()
        try:
            self._finish(*self._attempts())
        finally:
            self.backend.close()
        self.journal.settle()

    def see_off(self) -> None:
        """Wait, after the end, until each node that may still run something of the job was told to stop."""
        self.backend.see_off()
        self.journal.settle()

    def _attempts(self) -> tuple[Outcome, End]:
        """Make one attempt after the other; give the outcome of the last, and how the job ends by it."""
        try:
            while True:
                outcome = self._attempt()
                self.backend.close()
                step = self._next_step(outcome)
                if isinstance(step, End):
                    return outcome, step
                self._end_attempt(outcome, step)
        except UgroError as error:
            outcome = Outcome(phase=Phase.FAILED, error=type(error), words=error.text)
            return outcome, End(phase=Phase.FAILED)

    def _next_step(self, outcome: Outcome) -> Restart | End:
        stop_asked = self.journal.stop_asked
        return next_step(
            outcome, self.journal.record, self.journal.state, stop_asked=stop_asked
        )

    def _attempt(self) -> Outcome:
        """Run one attempt from its start to its end, or the rest of an attempt of an earlier agent."""
        plan = self._plan_under_way()
        begun_before = plan is not None
        if plan is None:
            planned = self._plan()
            if isinstance(planned, Outcome):
                return planned
            plan = planned
        if self.journal.state.phase in {Phase.QUEUED, Phase.PREPARING}:
            undone = self.backend.start(plan, begun_before=begun_before)
            if undone:
                return undone
        return self._run_to_end(plan)

    def _run_to_end(self, plan: LaunchPlan) -> Outcome:
        # A job that may be started again does not wait for ever.
        restarts = self.journal.record.max_restarts
        away_seconds = self.cluster.timeouts.away_seconds if restarts else None
        end = self.backend.run_to_end(plan, away_seconds)
        self._to_fetch = plan, end
        if end.unproven:
            return end.unproven
        proven = [rank_exit for rank_exit in end.exits if rank_exit.succeeded]
        if len(proven) == len(plan.nodes):
            # Also where a request to stop came too late.
            self._fetch_all()
            return Outcome(phase=Phase.SUCCEEDED)
        if end.stopped_for:
            return _stopped(end, end.stopped_for)
        bases = self.journal.state.bases_of(plan.attempt)
        cause = find_cause(end.exits, self.experiment, bases)
        return Outcome(
            phase=Phase.FAILED, error=JobFailed, words=cause.message, cause=cause
        )

    def _end_attempt(self, outcome: Outcome, restart: Restart) -> None:
        """Fetch the outputs of the attempt's ranks, and write down how it ended; another follows."""
        ended = {"ended_at": time.time(), "cause": outcome.as_cause()}
        reached = {rank.node for rank in self.journal.state.ranks if rank.proven_gone}
        for error in self._fetch(reached):
            self.journal.say(f"not gathered: {error.text}")
        self._to_fetch = None
        why = outcome.words.splitlines()[0]
        self.journal.say(
            f"{why}; restart {restart.number} of {self.journal.record.max_restarts}"
        )
        # Nobody asks the nodes for the rest of an attempt that has ended.
        self.journal.write(self.experiment.sync_streams)
        # In one write, and last: an agent that dies before goes on with this attempt, whose end is known.
        self.journal.change(
            attempt=ended if self.journal.attempt else None, phase=Phase.QUEUED
        )

    # ---- the plan of an attempt ----

    def _plan_under_way(self) -> LaunchPlan | None:
        return self.journal.record.plan if self.journal.attempt else None

    def _plan(self) -> LaunchPlan | Outcome:
        """Have the next attempt planned, and write it down."""
        number = len(self.journal.state.attempts) + 1
        plan = self.backend.plan(number, self._resume)
        if isinstance(plan, Outcome):
            return plan
        attempt = Attempt(
            number=number,
            nodes=tuple(node.node for node in plan.nodes),
            began_at=time.time(),
            bases=stream_sizes(self.experiment, plan.nodes),
            resume=plan.resume,
        )
        self.journal.save(plan=plan)
        self.journal.change(attempts=(*self.journal.state.attempts, attempt))
        if plan.effective_batch:
            self.journal.say(summary(plan))
        if plan.resume:
            self.journal.say(
                f"going on from {plan.resume.checkpoint} (step {plan.resume.step})"
            )
        return plan

    def _resume(self) -> Resume | None:
        """Find the checkpoint for the next attempt: the job's last whole one, or the one the job itself began with."""
        record = self.journal.record
        if not self.journal.state.attempts:
            return record.resume
        if record.plan:
            self._fetch_checkpoints(record.plan)
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

    def _fetch_checkpoints(self, plan: LaunchPlan) -> None:
        """Fetch the checkpoints that the nodes have, for as long as the disk here takes none.

        A restart without them would do again what was done.
        """
        for tried in itertools.count():
            errors = self.backend.fetch_checkpoints(plan)
            if tried == 0:
                self._warn_of_missing(errors)
            not_stored = [error for error in errors if isinstance(error, RecordError)]
            in_vain = self.journal.stop_asked or self.experiment.was_deleted()
            if not not_stored or in_vain:
                return
            if tried == 0:
                why = not_stored[0].text
                self.journal.say(
                    f"waits with the restart until checkpoints can be stored: {why}"
                )
            time.sleep(retry_pause(tried))

    def _warn_of_missing(self, errors: Sequence[UgroError]) -> None:
        for error in errors:
            self.journal.log.warning(
                "%s: a checkpoint has not come: %s", self.experiment.job_id, error
            )

    # ---- the end ----

    def _fetch_all(self) -> None:
        """Fetch all that is missing here of the job, and note in the state when nothing is."""
        if self.experiment.was_deleted():
            return
        errors: list[UgroError] = []
        before = len(self.journal.state.attempts) + 1
        if self._to_fetch:
            plan, end = self._to_fetch
            before = plan.attempt
            gone = {rank.node for rank in self.journal.state.ranks if rank.proven_gone}
            errors = self._fetch(gone.union(end.wrote))
        errors += self.backend.fetch_earlier(before)
        for error in errors:
            later = f"Later: inv gather {self.experiment.job_id}"
            self.journal.say(f"not gathered: {error.text}. {later}")
        if not errors:
            self._note_if_whole()

    def _fetch(self, nodes: Collection[str]) -> list[UgroError]:
        """Fetch what is missing of the last attempt from these nodes; give the errors."""
        if self._to_fetch is None:
            return []
        plan, end = self._to_fetch
        wanted = [node.node for node in plan.nodes if node.node in nodes]
        wrote = [node for node in wanted if node in end.wrote]
        if wrote:
            self.journal.say(f"gathering outputs of {', '.join(wrote)}")
        errors = self.backend.fetch(plan, end, wanted)
        if not errors and len(wanted) == len(plan.nodes):
            self.journal.change_attempt(gathered=True)
        return errors

    def _note_if_whole(self) -> None:
        """Note that the job is gathered, if nothing of its last attempt can still come; of earlier ones all is here."""
        state = self.journal.state
        ran = [attempt for attempt in state.attempts if attempt.ran]
        all_gone = all(rank.proven_gone for rank in state.ranks)
        if ran and all_gone and (ran[-1].gathered or self._to_fetch is None):
            self.journal.change(gathered_at=time.time())

    def _add_to_history(self) -> None:
        """Add a line about the job; the next agent does it if it cannot be done now."""
        record, state = self.journal.record, self.journal.state
        try:
            self.experiments.add_to_history(self.experiment, record, state)
        except OSError as error:
            self.journal.log.warning("%s: %s", error.filename, error.strerror)

    def _finish(self, outcome: Outcome, end: End) -> None:
        # Nobody asks the nodes for the rest of a job that has ended.
        self.journal.write(self.experiment.sync_streams)
        now = time.time()
        cause = outcome.as_cause()
        last: dict[str, Any] = {}
        if self.journal.attempt:
            last = {"ended_at": now, "cause": cause}
        attempts = self.journal.state.attempts
        unproven = [
            rank.node for rank in self.journal.state.ranks if not rank.proven_gone
        ]
        if unproven and attempts:
            # Also of an attempt that has ended, where no other one could follow.
            before = attempts[-1].left_behind
            last["left_behind"] = tuple(dict.fromkeys([*before, *unproven]))
        # In one write: whoever finds a job that runs and no attempt under way begins another.
        self.journal.change(
            attempt=last,
            phase=end.phase,
            reason=outcome.reason,
            ended_at=now,
            cause=cause,
            exit_code=outcome.exit_code,
        )
        # A job in the history is looked at by no agent any more.
        self.journal.settle()
        self._add_to_history()
        self.journal.say(
            f"{end.phase}: {outcome.words}" if outcome.words else f"{end.phase}"
        )
        if end.phase is not Phase.SUCCEEDED:
            # Whoever waits for the proof of a stop, or for the cause, need not wait for this.
            self._fetch_all()
        self.backend.begin()
        left = {rank.node: rank.left_pids for rank in self.journal.state.ranks}
        for name in self.backend.still_away():
            self.journal.say(_still_to_stop(name, left.get(name, ())), name)


def _still_to_stop(node: str, left_pids: Sequence[int]) -> str:
    if left_pids:
        pids = " ".join(map(str, left_pids))
        return f"still has processes of it that would not end; where they are another user's: sudo kill -KILL {pids}"
    return (
        "is still away, and told to stop once it is back. Where the agent has ended by then: "
        f"inv reset --nodes {node}"
    )


def _stopped(end: AttemptEnd, reason: Reason) -> Outcome:
    words = "as asked; nothing of it is left on any node"
    resets = [
        f"{rank_exit.node} was reset by {rank_exit.stopped_by or 'somebody'}"
        for rank_exit in end.exits
        if rank_exit.was_reset and rank_exit.stopped_by
    ]
    if resets:
        words = f"{', '.join(resets)}; nothing of it is left on any node"
    return Outcome.stopped(words, reason)
