"""`inv results`."""

from __future__ import annotations

from typing import Any

from .flags import CLUSTER_HELP, JOB_HELP, JSON_HELP, open_experiments
from .task import task


@task(
    help={
        "name": JOB_HELP,
        "plot": "also draw the loss curve into this file, .png or .svg",
        "cluster": CLUSTER_HELP,
        "json": JSON_HELP,
    }
)
def results(
    _context: Any, name: str, plot: str | None = None, cluster: str | None = None, json: bool = False
) -> None:
    """Show what came of a job: the loss curve, metrics, throughput, cards, restarts, checkpoints."""
    from ..reports.results import results
    from .show.picture import draw
    from .show.results import show_results

    found = results(open_experiments(cluster).find(name))
    if plot:
        draw(found, plot)
    show_results(found, as_json=json)
