"""`inv sync-envs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import Interrupted, UgroError
from .flags import CLUSTER_HELP, JSON_HELP, NODES_HELP
from .task import task

if TYPE_CHECKING:
    from ..environments.sync import State, Synced


@task(
    help={
        "nodes": NODES_HELP,
        "cluster": CLUSTER_HELP,
        "dry-run": "show what is behind and what would be made, and change nothing",
        "offline": "fetch the packages on this machine and bring them: for nodes without internet",
        "json": JSON_HELP,
    },
    group="cluster",
)
def sync_envs(
    _context: Any,
    nodes: str | list[str] | None = None,
    cluster: str | None = None,
    dry_run: bool = False,
    offline: bool = False,
    json: bool = False,
) -> Mapping[str, Synced | State | UgroError]:
    """Bring the same training environment to every node, and prove it."""
    from .. import api
    from .show.sync_envs import show_environments, show_sync

    if dry_run:
        states = api.survey_envs(nodes, cluster)
        show_environments(states, as_json=json)
        return states
    from .show.bars import BuildLines  # late: few commands draw bars

    try:
        with BuildLines() as lines:
            results = api.sync_envs(nodes, cluster, offline=offline, tell=lines.update)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted: environments that were being made are not in use, those before them are\n"
            "    again: inv sync-envs"
        ) from None
    fault = api.fault_of_sync(results)
    show_sync(results, fault, as_json=json)
    if fault:
        raise fault
    return results
