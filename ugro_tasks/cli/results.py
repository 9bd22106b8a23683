"""`inv results`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .flags import CLUSTER_HELP, JOB_HELP, JSON_HELP
from .task import is_dry, task

if TYPE_CHECKING:
    from ..reports.results import Results


@task(
    help={
        "name": JOB_HELP,
        "plot": "also draw the loss curve into this file, .png or .svg",
        "cluster": CLUSTER_HELP,
        "json": JSON_HELP,
    },
    group="look",
)
def results(
    context: Any,
    name: str,
    plot: str | None = None,
    cluster: str | None = None,
    json: bool = False,
) -> Results:
    """Show what came of a job: the loss curve, metrics, throughput, cards, restarts, checkpoints."""
    from .. import api
    from .show.format import note
    from .show.picture import draw
    from .show.results import show_results

    found = api.results(name, cluster)
    if plot and is_dry(context):
        note(f"would draw {plot}; nothing was drawn")
    elif plot:
        draw(found, plot)
    show_results(found, as_json=json)
    return found
