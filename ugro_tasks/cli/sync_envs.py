"""sync-envs: the same training environment on every node."""

from __future__ import annotations

from typing import Any

from ..errors import Interrupted
from .flags import CLUSTER_HELP, JSON_HELP, NODES_HELP
from .task import task


@task(
    help={
        "nodes": NODES_HELP,
        "cluster": CLUSTER_HELP,
        "dry-run": "show what is behind and what would be made, and change nothing",
        "offline": "fetch the packages on this machine and bring them: for nodes without internet",
        "json": JSON_HELP,
    }
)
def sync_envs(
    _context: Any,
    nodes: str | None = None,
    cluster: str | None = None,
    dry_run: bool = False,
    offline: bool = False,
    json: bool = False,
) -> None:
    """Bring the same training environment to every node, and prove it."""
    from ..cluster.file import load_cluster
    from ..environments.sync import fault_of, survey, sync
    from ..hosts.fleet import Fleet
    from .show.sync_envs import show_environments, show_sync

    whole = load_cluster(cluster)
    chosen = whole.select(nodes)
    names = {node.name for node in chosen.nodes}
    with Fleet.of(chosen) as fleet:
        if dry_run:
            return show_environments(survey(fleet, whole, names), as_json=json)
        from .show.bars import BuildLines  # late: few commands draw bars

        try:
            with BuildLines() as lines:
                results = sync(fleet, whole, lines.update, names, offline=offline)
        except KeyboardInterrupt:
            raise Interrupted(
                "interrupted: environments that were being made are not in use, those before them are\n"
                "    again: inv sync-envs"
            ) from None
    fault = fault_of(results)
    show_sync(results, fault, as_json=json)
    if fault:
        raise fault
    return None
