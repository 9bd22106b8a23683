"""`inv reset`."""

from __future__ import annotations

from typing import Any

from ..errors import HostError
from .flags import CLUSTER_HELP, JSON_HELP, NODES_HELP
from .task import task


@task(help={"nodes": NODES_HELP, "cluster": CLUSTER_HELP, "json": JSON_HELP})
def reset(_context: Any, nodes: str | None = None, cluster: str | None = None, json: bool = False) -> None:
    """End everything of UGRO on the nodes, whoever started it, and free their leases."""
    from ..backends.ssh.reset import reset
    from ..cluster.file import load_cluster
    from .show.reset import show_reset

    ended = reset(load_cluster(cluster).select(nodes))
    show_reset(ended, as_json=json)
    if unreached := [answer for answer in ended.values() if isinstance(answer, HostError)]:
        raise unreached[0]
