"""`inv clean`."""

from __future__ import annotations

from typing import Any

from .flags import CLUSTER_HELP, JSON_HELP, NODES_HELP, age, whole
from .task import task


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
    optional_name=True,
)
def clean(
    _context: Any,
    name: str | None = None,
    older_than: str | None = None,
    keep_last: str = "0",
    at_home: bool = False,
    dry_run: bool = False,
    nodes: str | None = None,
    cluster: str | None = None,
    json: bool = False,
) -> None:
    """Free the disks of the nodes from jobs that are over and gathered."""
    from ..cluster.file import load_cluster
    from ..jobs.experiments import Experiments
    from ..outputs.clean import Wish, clean
    from .show.clean import show_clean
    from .show.format import waiting

    chosen = load_cluster(cluster)
    wish = Wish(
        names=tuple(name.split(",")) if name else (),
        older_than_seconds=age(older_than, "--older-than"),
        keep_last=whole(keep_last, "--keep-last") or 0,
        at_home=at_home,
        dry_run=dry_run,
    )
    with waiting("looking for what can go"):
        found, errors = clean(Experiments(chosen.experiments), chosen.select(nodes), wish)
    show_clean(found, as_json=json)
    if errors:
        raise errors[0]
