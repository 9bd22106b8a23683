"""`inv health`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import NotFit
from .flags import CLUSTER_HELP, JSON_HELP, NODES_HELP
from .task import is_dry, task

if TYPE_CHECKING:
    from ..health.report import ClusterHealth


@task(
    help={
        "deep": "try all connections anew, and time an all-reduce across the nodes (launches a short job)",
        "nodes": NODES_HELP,
        "cluster": CLUSTER_HELP,
        "verbose": "show every check, not only what failed",
        "json": JSON_HELP,
    },
    group="start here",
)
def health(
    context: Any,
    deep: bool = False,
    nodes: str | list[str] | None = None,
    cluster: str | None = None,
    verbose: bool = False,
    json: bool = False,
) -> ClusterHealth:
    """Check every node, and say what is wrong and how it is fixed."""
    from .. import api
    from ..loading import loading
    from .show.format import note, waiting

    chosen = api.open_cluster(cluster, nodes)
    dry = is_dry(context)
    with waiting(f"probing {len(chosen.nodes)} nodes"), loading("cli.show.health"):
        found = api.health(cluster=chosen, deep=deep, save=not dry)
    from .show.health import show_health

    measured = None
    if deep and found.fit and dry:
        note("would time an all-reduce across the nodes; nothing was launched")
    elif deep and found.fit:
        with waiting("timing an all-reduce across the nodes"):
            measured = api.time_all_reduce(cluster=chosen)
    show_health(found, measured, verbose=verbose, as_json=json)
    if not found.fit:
        words = f"{len(found.faults)} checks failed"
        if deep:
            words += ", so nothing was timed"
        raise NotFit(words)
    return found
