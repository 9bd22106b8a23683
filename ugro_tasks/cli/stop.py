"""`inv stop`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import JobNotFound, NotSigned, RecordError
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
) -> JobState | dict[str, Any]:
    """Stop a job on all nodes and wait until each has shown that nothing of it is left."""
    from .. import api
    from .interrupts import Interrupts
    from .show.follow import Follower
    from .show.format import note

    experiments = api.open_experiments(cluster)
    try:
        job = api.stoppable(experiments.find(name))
    except JobNotFound:
        if not api.is_job_id(name) or is_dry(context):
            raise
        # Its record is lost, but not what the nodes know of it.
        return _stop_on_nodes(name, cluster, as_json=json)
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
        try:
            shown.stop(give_up=give_up)
        except NotSigned:
            raise
        except RecordError as error:
            if api.stop_is_asked(job):
                raise
            # The disk here takes no request, but the nodes do.
            note(error.text)
            return _stop_on_nodes(job.job_id, cluster, as_json=json)
        return shown.state


def _stop_on_nodes(
    job_id: str, cluster: str | None, *, as_json: bool
) -> dict[str, Any]:
    from .. import api
    from .show.reset import show_told

    ended = api.stop_on_nodes(job_id, cluster)
    show_told(ended, as_json=as_json)
    return ended
