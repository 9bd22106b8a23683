"""`inv health`."""

from __future__ import annotations

from typing import Any

from ..errors import NotFit
from .flags import CLUSTER_HELP, JSON_HELP, NODES_HELP
from .task import loading, task


@task(
    help={
        "deep": "also time an all-reduce across the nodes (launches a short job)",
        "nodes": NODES_HELP,
        "cluster": CLUSTER_HELP,
        "verbose": "show every check, not only what failed",
        "json": JSON_HELP,
    }
)
def health(
    _context: Any,
    deep: bool = False,
    nodes: str | None = None,
    cluster: str | None = None,
    verbose: bool = False,
    json: bool = False,
) -> None:
    """Check every node, and say what is wrong and how it is mended."""
    from ..cluster.file import load_cluster
    from ..health.probe import probe
    from ..hosts.fleet import Fleet
    from ..jobs.experiments import Experiments
    from ..jobs.log import open_log
    from .show.format import waiting

    chosen = load_cluster(cluster).select(nodes)
    with (
        waiting(f"probing {len(chosen.nodes)} nodes"),
        Fleet.of(chosen) as fleet,
        loading("health.report", "cli.show.health"),
    ):
        answers = probe(fleet, chosen)
    from ..health.report import judge_cluster
    from .show.health import show_health

    found = judge_cluster(chosen, answers)
    Experiments(chosen.experiments).save_cluster_state(found)
    log = open_log("health", chosen)
    log.info("%s: %s in %.1f s", chosen.name, "fit" if found.fit else "not fit", found.seconds)
    for node, check in found.faults:
        log.warning("%s: %s: %s", node, check.name, check.value)
    measured = None
    if deep and found.fit:
        from ..launch.network_test import measure

        with waiting("timing an all-reduce across the nodes"):
            measured = measure(chosen)
    show_health(found, measured, verbose=verbose, as_json=json)
    if not found.fit:
        raise NotFit(f"{len(found.faults)} checks failed" + (", so nothing was timed" if deep else ""))
