"""`inv clean`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .flags import CLUSTER_HELP, JSON_HELP, NODES_HELP, age, listed, whole
from .task import task

if TYPE_CHECKING:
    from ..outputs.clean import Cleaning


@task(
    help={
        "name": "only all jobs of this name, or one by its whole id; several: a,b",
        "older-than": "only jobs that ended longer ago: 12h, 30d, 4w",
        "keep-last": "leave the newest so many of these jobs as they are",
        "at-home": "also remove checkpoints here: all but the newest whole one and the best",
        "nodes": NODES_HELP,
        "cluster": CLUSTER_HELP,
        "dry-run": "show what would go, with its size, and remove nothing",
        "json": JSON_HELP,
    },
    group="cluster",
    words="name",
)
def clean(
    _context: Any,
    name: str | list[str] | None = None,
    older_than: str | None = None,
    keep_last: str | int = 0,
    at_home: bool = False,
    dry_run: bool = False,
    nodes: str | list[str] | None = None,
    cluster: str | None = None,
    json: bool = False,
) -> Cleaning:
    """Free the disks of the nodes from jobs that are over and gathered."""
    from .. import api
    from .show.clean import show_clean
    from .show.format import waiting

    chosen = api.open_cluster(cluster, nodes)
    seconds = age(older_than, "--older-than")
    kept = whole(keep_last, "--keep-last") or 0
    with waiting("looking for what can go"):
        found, errors = api.clean(
            listed(name),
            cluster=chosen,
            older_than_seconds=seconds,
            keep_last=kept,
            at_home=at_home,
            dry_run=dry_run,
        )
    show_clean(found, as_json=json)
    if errors:
        raise errors[0]
    return found
