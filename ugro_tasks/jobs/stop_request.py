"""A stop as the one who asks for it sees it: the agent carries it out, and asks again where a node does not answer."""

from __future__ import annotations

import time

from .experiment import Experiment

# Beyond the job's own grace, before it is said that a node has not answered.
PATIENCE_SECONDS = 30.0


class StopRequest:
    """Asks for a job to be stopped, and knows when the proof that nothing is left of it should have come."""

    def __init__(self, experiment: Experiment, *, give_up: bool = False) -> None:
        """Ask; raises RecordError. With `give_up` no node is waited for that cannot be reached."""
        self.experiment = experiment
        experiment.ask_to_stop(give_up=give_up)
        grace = experiment.cluster().timeouts.stop_grace_seconds
        self.patience_seconds = grace + PATIENCE_SECONDS
        self._deadline = time.monotonic() + self.patience_seconds

    @property
    def overdue(self) -> bool:
        """Whether the proof should have come by now."""
        return time.monotonic() > self._deadline

    def unproven(self, why: str) -> str:
        """Say from which nodes the proof has not come; `why` stands before their names."""
        ranks = self.experiment.state().ranks
        missing = [rank.node for rank in ranks if not rank.proven_gone]
        return (
            f"{self.experiment.job_id}: {why} from {', '.join(missing) or 'any node'}"
        )
