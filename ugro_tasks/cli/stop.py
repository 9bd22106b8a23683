"""`inv stop`."""

from __future__ import annotations

from typing import Any

from .flags import CLUSTER_HELP, JOB_HELP, JSON_HELP, open_experiments
from .task import task


@task(
    help={
        "name": JOB_HELP,
        "give-up": "end the job although a node that cannot be reached may still run it",
        "cluster": CLUSTER_HELP,
        "json": JSON_HELP,
    }
)
def stop(
    _context: Any, name: str, give_up: bool = False, cluster: str | None = None, json: bool = False
) -> None:
    """Stop a job on all nodes and wait until each has shown that nothing of it is left."""
    from .interrupts import Interrupts
    from .show.follow import Follower

    experiments = open_experiments(cluster)
    with Interrupts() as interrupts:
        experiment = experiments.find(name)
        Follower(experiments, experiment, interrupts, quiet=True, as_json=json, offsets={}).stop(
            give_up=give_up
        )
