"""`inv reset`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .flags import CLUSTER_HELP, JSON_HELP, NODES_HELP
from .task import is_dry, task

if TYPE_CHECKING:
    from ..health.report import ClusterHealth


@task(
    help={"nodes": NODES_HELP, "cluster": CLUSTER_HELP, "json": JSON_HELP},
    group="cluster",
)
def reset(
    context: Any,
    nodes: str | list[str] | None = None,
    cluster: str | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """End everything of UGRO on the nodes, whoever started it, and free their leases."""
    from .. import api
    from .show.reset import show_told

    if is_dry(context):
        return _show_holders(api.health(nodes, cluster, save=False))
    ended = api.reset(nodes, cluster)
    show_told(ended, as_json=json)
    return ended


def _show_holders(found: ClusterHealth) -> dict[str, Any]:
    from .show.format import note

    for node in found.nodes:
        state = node.held_by or "free"
        if not node.reachable:
            state = "not reachable"
        note(f"{node.node}: would end everything of UGRO there; now: {state}")
    note("nothing was done")
    return {node.node: node.held_by for node in found.nodes}
