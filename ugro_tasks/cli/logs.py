"""`inv logs`."""

from __future__ import annotations

from typing import Any

from .flags import CLUSTER_HELP, JOB_HELP, open_experiments, whole
from .task import task


@task(
    help={
        "name": JOB_HELP,
        "rank": "only this rank",
        "lines": "how many of the last lines of each rank",
        "follow": "go on as lines come",
        "cluster": CLUSTER_HELP,
    }
)
def logs(
    _context: Any,
    name: str,
    rank: str | None = None,
    lines: str = "50",
    follow: bool = False,
    cluster: str | None = None,
) -> None:
    """Show what the ranks printed."""
    from ..jobs.tail import end_of_lines
    from ..reports.logs import log_tails
    from .interrupts import Interrupts
    from .show.follow import Follower
    from .show.logs import show_log_tails

    experiments = open_experiments(cluster)
    experiment = experiments.find(name)
    only = whole(rank, "--rank")
    ends = {number: end_of_lines(path) for number, path in experiment.logs().items()} if follow else None
    tails = log_tails(experiment, only, whole(lines, "--lines") or 0, ends)
    show_log_tails(experiment, tails)
    if follow:
        with Interrupts() as interrupts:
            ranks = None if only is None else [only]
            shown = Follower(experiments, experiment, interrupts, ranks=ranks, offsets=ends)
            shown.until_ended(interrupt_stops=False)
