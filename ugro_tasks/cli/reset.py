"""`inv reset`."""

from __future__ import annotations

from typing import Any

from ..errors import HostError
from .flags import CLUSTER_HELP, JSON_HELP, NODES_HELP
from .task import is_dry, task


@task(help={"nodes": NODES_HELP, "cluster": CLUSTER_HELP, "json": JSON_HELP}, group="cluster")
def reset(
    context: Any, nodes: str | list[str] | None = None, cluster: str | None = None, json: bool = False
) -> dict[str, Any]:
    """End everything of UGRO on the nodes, whoever started it, and free their leases."""
    from .. import api
    from .show.reset import show_reset

    if is_dry(context):
        return _show_holders(api.health(nodes, cluster, save=False))
    ended = api.reset(nodes, cluster)
    show_reset(ended, as_json=json)
    if unreached := [answer for answer in ended.values() if isinstance(answer, HostError)]:
        raise unreached[0]
    return ended


def _show_holders(found: Any) -> dict[str, Any]:
    from .show.format import note

    holders = {node.node: node.held_by for node in found.nodes}
    for node in found.nodes:
        state = (
            "not reachable" if not node.reachable else f"held by {node.held_by}" if node.held_by else "free"
        )
        note(f"{node.node}: would end everything of UGRO there; it is {state} now")
    note("nothing was done")
    return holders
