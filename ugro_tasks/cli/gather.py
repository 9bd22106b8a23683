"""`inv gather`."""

from __future__ import annotations

from typing import Any

from .flags import CLUSTER_HELP, JOB_HELP, open_experiments
from .task import task


@task(
    help={
        "name": JOB_HELP,
        "verify": "compare contents, not only sizes and times, with what has come already",
        "cluster": CLUSTER_HELP,
    }
)
def gather(_context: Any, name: str, verify: bool = False, cluster: str | None = None) -> None:
    """Fetch a job's outputs from the nodes, also while it runs."""
    from ..outputs.fetch import gather_again
    from .show.bars import Percentages
    from .show.format import note

    experiment = open_experiments(cluster).find(name)
    with Percentages() as shown:
        cleaned = gather_again(experiment, shown.update, verify=verify)
    if cleaned:
        note(f"nothing is left on {', '.join(cleaned)} since inv clean; what was there came home before")
    note(f"gathered into {experiment.folder}")
