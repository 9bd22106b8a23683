"""`inv stop`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .flags import CLUSTER_HELP, JOB_HELP, JSON_HELP
from .task import is_dry, task

if TYPE_CHECKING:
    from ..jobs.state import JobState


@task(
    help={
        "name": JOB_HELP,
        "give-up": "end the job although a node that cannot be reached may still run it",
        "cluster": CLUSTER_HELP,
        "json": JSON_HELP,
    },
    group="run",
)
def stop(
    context: Any,
    name: str,
    give_up: bool = False,
    cluster: str | None = None,
    json: bool = False,
) -> JobState:
    """Stop a job on all nodes and wait until each has shown that nothing of it is left."""
    from .. import api
    from .interrupts import Interrupts
    from .show.follow import Follower
    from .show.format import note

    experiments = api.open_experiments(cluster)
    job = api.stoppable(experiments.find(name))
    if is_dry(context):
        state = job.state()
        nodes = ", ".join(job.record().nodes)
        note(f"would stop {job.job_id} ({state.phase}) on {nodes}; nothing was done")
        return state
    with Interrupts() as interrupts:
        shown = Follower(
            experiments,
            job,
            interrupts,
            quiet=True,
            as_json=json,
            offsets={},
        )
        shown.stop(give_up=give_up)
        return shown.state
