"""`inv init`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import NotFit
from .flags import CLUSTER_HELP, NODES_HELP
from .task import is_dry, task

if TYPE_CHECKING:
    from ..health.init import FirstTime
    from ..health.report import ClusterHealth


@task(
    help={
        "accept-new-host-keys": "record unknown host keys without asking",
        "nodes": NODES_HELP,
        "cluster": CLUSTER_HELP,
    },
    group="start here",
)
def init(
    context: Any,
    accept_new_host_keys: bool = False,
    nodes: str | list[str] | None = None,
    cluster: str | None = None,
) -> ClusterHealth | list[FirstTime]:
    """Prepare a cluster for the first time: host keys, login, folders, and what is missing."""
    from .. import api
    from .show.format import agree, note
    from .show.health import show_health

    if is_dry(context):
        return _show_first_time(api.first_time(nodes, cluster))
    asking = None if accept_new_host_keys else agree
    found = api.init(nodes, cluster, agree=asking, tell=note)
    show_health(found, None, verbose=False, as_json=False)
    if not found.fit:
        raise NotFit(f"{len(found.faults)} checks failed; fix them, then: inv health")
    return found


def _show_first_time(plans: list[FirstTime]) -> list[FirstTime]:
    from .show.format import note

    for plan in plans:
        if plan.unreached:
            note(plan.unreached)
        elif plan.new_key:
            note(f"{plan.node}: would record the host key of {plan.new_key}")
        note(f"{plan.node}: would make the folder {plan.project} where it is not there")
    note("nothing was done")
    return plans
