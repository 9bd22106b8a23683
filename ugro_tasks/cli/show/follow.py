"""Following a job to its end, or until all its ranks run."""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import Interrupted, JobEnded, NotGathered, StopUnproven
from ...jobs.experiment import Experiment
from ...jobs.experiments import Experiments
from ...jobs.phase import Phase
from ...jobs.state import JobState
from ...jobs.stop_request import StopRequest
from ...jobs.watch import watch
from ..interrupts import Interrupts
from .format import note, show_json
from .job_view import JobView


class Follower:
    """Shows one job on the terminal, or prints it as JSON at the end."""

    def __init__(
        self,
        experiments: Experiments,
        experiment: Experiment,
        interrupts: Interrupts,
        *,
        ranks: list[int] | None = None,
        offsets: Mapping[int, int] | None = None,  # in the ranks' logs, to go on from
        quiet: bool = False,
        verbose: bool = False,
        as_json: bool = False,
    ) -> None:
        self.experiments = experiments
        self.experiment = experiment
        self.interrupts = interrupts
        self.ranks = [] if quiet or as_json else ranks
        self.offsets = offsets
        self.as_json = as_json
        self.view = JobView(
            experiment, offsets=offsets, verbose=verbose, as_json=as_json
        )
        self._stop: StopRequest | None = None

    @property
    def state(self) -> JobState:
        """Return the job's state as last read."""
        return self.view.state

    def until_ended(self, *, interrupt_stops: bool) -> None:
        """Follow the job to its end; raise JobEnded unless it succeeded.

        With `interrupt_stops`, Ctrl-C stops the job and waits for the proof; else the job goes on.
        """
        if self._follow(frozenset(), interrupt_stops=interrupt_stops):
            self._end()
        else:
            note(
                f"{self.experiment.job_id} goes on; again: inv attach {self.experiment.name}"
            )

    def until_running(self) -> None:
        """Wait until all ranks run; raise JobEnded if the job fails before."""
        self._follow(frozenset({Phase.RUNNING}), interrupt_stops=True)
        if self.state.phase.finished:
            self._end()
        elif self.as_json:
            self._show_as_json()
        else:
            note(
                f"{self.experiment.job_id} runs; follow it: inv attach {self.experiment.name}"
            )

    def stop(self, *, give_up: bool = False) -> None:
        """Stop the job and wait for the proof; raise StopUnproven with host and pids without one.

        With `give_up` the job ends even if a node cannot be reached.
        """
        self._ask_to_stop(give_up=give_up)
        try:
            self.until_ended(interrupt_stops=True)
        except JobEnded as done:
            if done.exit_code != Interrupted.exit_code:
                # For example stopped, but not proven to be gone.
                raise
            note(done.text)

    def _follow(self, until: frozenset[Phase], *, interrupt_stops: bool) -> bool:
        """Show the job until it has ended or is in a phase of `until`; False if Ctrl-C left it."""
        with self.view:
            for item in watch(
                self.experiments,
                self.experiment,
                ranks=self.ranks,
                offsets=self.offsets,
            ):
                if self.interrupts.take():
                    if not interrupt_stops:
                        return False
                    if self._stop:
                        raise self._unproven(self._stop, "left before the proof")
                    self._ask_to_stop()
                    until = frozenset()
                if self._stop and self._stop.overdue:
                    raise self._unproven(self._stop, "no proof yet")
                self.view.show(item)
                if isinstance(item, JobState) and item.phase in until:
                    return True
            self.view.show_lines()
        return True

    def _ask_to_stop(self, *, give_up: bool = False) -> None:
        self._stop = StopRequest(self.experiment, give_up=give_up)
        note(f"stopping {self.experiment.job_id} on all nodes")

    def _end(self) -> None:
        if self.as_json:
            self._show_as_json()
        if self.state.phase is not Phase.SUCCEEDED:
            raise JobEnded(self._cause_in_words(), self.state.exit_code)
        self.view.show_success()
        if self.state.is_missing_here:
            raise NotGathered(
                f"{self.experiment.job_id} succeeded, but not all of it is here; "
                f"get it: inv gather {self.experiment.job_id}"
            )

    def _cause_in_words(self) -> str:
        words = f"{self.experiment.job_id} {self.state.phase}"
        cause = self.state.cause
        if cause:
            last_lines = [f"    {line}" for line in cause.last_lines]
            words = "\n".join([f"{words}: {cause.message}", *last_lines])
        if self.state.phase is Phase.FAILED:
            words += f"\nsee: inv logs {self.experiment.name}"
        return words

    def _show_as_json(self) -> None:
        show_json({"job_id": self.experiment.job_id, "state": self.state})

    def _unproven(self, request: StopRequest, why: str) -> StopUnproven:
        return StopUnproven(
            f"{request.unproven(why)}. See: inv status {self.experiment.name}. "
            f"A node that will not come back: inv stop {self.experiment.name} --give-up"
        )
