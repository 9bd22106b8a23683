"""A request to stop a job.

The agent carries it out, and repeats it until each node has answered.
"""

from __future__ import annotations

import time

from ..errors import StopUnproven, UgroError
from ..node.processes import is_paused
from .experiment import Experiment
from .experiments import Experiments
from .state import JobState
from .watch import watch

# Added to the job's own grace before a node counts as silent.
PATIENCE_SECONDS = 30.0


class StopRequest:
    """Asks for a job to be stopped, and knows the deadline for the proof."""

    def __init__(self, experiment: Experiment, *, give_up: bool = False) -> None:
        """Ask to stop, with `give_up` without waiting for unreachable nodes.

        Raises RecordError, and NotSigned for a job that no agent of this user would stop.
        """
        self.experiment = experiment
        grace = experiment.cluster().timeouts.stop_grace_seconds
        experiment.ask_to_stop(give_up=give_up)
        self.patience_seconds = grace + PATIENCE_SECONDS
        self._deadline = time.monotonic() + self.patience_seconds

    @property
    def overdue(self) -> bool:
        """Return whether the deadline for the proof has passed."""
        return time.monotonic() > self._deadline

    def unproven(self, why: str) -> str:
        """Write a message: `why`, the nodes without proof, and what comes of the request."""
        ranks = self.experiment.state().ranks
        missing = [rank.node for rank in ranks if not rank.proven_gone]
        nodes = ", ".join(missing) or "any node"
        follows = "the agent goes on asking"
        agent = Experiments(self.experiment.folder.parent).agent_pid()
        if agent and is_paused(agent):
            follows = f"the agent is halted by a signal; to go on: kill -CONT {agent}"
        return f"{self.experiment.job_id}: {why} from {nodes}; {follows}"


def stoppable(experiment: Experiment) -> Experiment:
    """Return the job, unless it has ended: then UgroError is raised; for a copy of its folder RecordError."""
    phase = experiment.state().phase
    if phase.finished:
        raise UgroError(
            f"{experiment.job_id} has ended already ({phase}); there is nothing to stop"
        )
    experiment.check_is_no_copy()
    return experiment


def stop(experiment: Experiment, *, give_up: bool = False) -> JobState:
    """Ask for a job to be stopped, and return its last state when nothing of it is left.

    Raises UgroError where it has ended already, and StopUnproven where the proof does not come in time.
    """
    request = StopRequest(stoppable(experiment), give_up=give_up)
    for _ in watch(Experiments(experiment.folder.parent), experiment):
        if request.overdue:
            why = f"no proof after {request.patience_seconds:.0f} s"
            raise StopUnproven(request.unproven(why))
    return experiment.state()
