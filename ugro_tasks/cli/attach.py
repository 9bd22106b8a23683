"""`inv attach`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .flags import CLUSTER_HELP, JOB_HELP, JSON_HELP
from .task import task

if TYPE_CHECKING:
    from ..jobs.state import JobState


@task(
    help={
        "name": JOB_HELP,
        "cluster": CLUSTER_HELP,
        "quiet": "no output of the ranks",
        "json": JSON_HELP,
    },
    group="run",
)
def attach(
    _context: Any,
    name: str,
    cluster: str | None = None,
    quiet: bool = False,
    json: bool = False,
) -> JobState:
    """Follow a job again, from its beginning; Ctrl-C only leaves."""
    from .. import api
    from .interrupts import Interrupts
    from .show.follow import Follower

    experiments = api.open_experiments(cluster)
    with Interrupts() as interrupts:
        shown = Follower(
            experiments, experiments.find(name), interrupts, quiet=quiet, as_json=json
        )
        shown.until_ended(interrupt_stops=False)
        return shown.state
