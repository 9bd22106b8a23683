"""`inv gather`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .flags import CLUSTER_HELP, JOB_HELP
from .task import is_dry, task

if TYPE_CHECKING:
    from ..outputs.gather import Gathering


@task(
    help={
        "name": JOB_HELP,
        "verify": "compare contents, not only sizes and times, with what has come already",
        "leave-links": "without what links out of the outputs lead to; the job counts as gathered",
        "cluster": CLUSTER_HELP,
    },
    group="look",
)
def gather(
    context: Any,
    name: str,
    verify: bool = False,
    leave_links: bool = False,
    cluster: str | None = None,
) -> Gathering:
    """Fetch a job's outputs from the nodes, also while it runs."""
    from .. import api
    from .show.format import note

    job = api.find(name, cluster)
    if is_dry(context):
        found = api.gather(job, dry_run=True)
        nodes = ", ".join(found.nodes) or "no node"
        note(f"would fetch into {found.folder} from {nodes}; nothing was done")
        return found
    from .show.bars import Percentages  # late: few commands draw bars

    with Percentages() as shown:
        found = api.gather(
            job, verify=verify, leave_links=leave_links, tell=shown.update
        )
    if found.cleaned:
        nodes = ", ".join(found.cleaned)
        note(
            f"nothing is left on {nodes} since inv clean; what was there came home before"
        )
    note(f"gathered into {found.folder}")
    return found
