"""`inv init`."""

from __future__ import annotations

from typing import Any

from ..errors import NotFit
from .flags import CLUSTER_HELP, NODES_HELP
from .task import task


@task(
    help={
        "accept-new-host-keys": "record unknown host keys without asking",
        "nodes": NODES_HELP,
        "cluster": CLUSTER_HELP,
    }
)
def init(
    _context: Any, accept_new_host_keys: bool = False, nodes: str | None = None, cluster: str | None = None
) -> None:
    """Prepare a cluster for the first time: host keys, login, folders, and what is missing."""
    from ..cluster.file import load_cluster
    from ..health.init import make_folders
    from ..hosts.trust import trust_host_keys
    from ..jobs.experiments import Experiments
    from .show.format import agree, note
    from .show.health import show_health

    chosen = load_cluster(cluster).select(nodes)
    Experiments(chosen.experiments).make_folder()
    trust_host_keys(chosen, note, agree if not accept_new_host_keys else None)
    found = make_folders(chosen)
    show_health(found, None, verbose=False, as_json=False)
    if not found.fit:
        raise NotFit(f"{len(found.faults)} checks failed; mend them, then: inv health")
