"""`inv logs`."""

from __future__ import annotations

from typing import Any

from .flags import CLUSTER_HELP, JOB_HELP, whole
from .task import task


@task(
    help={
        "name": JOB_HELP,
        "rank": "only this rank",
        "lines": "how many of the last lines of each rank",
        "follow": "go on as lines come",
        "cluster": CLUSTER_HELP,
    },
    group="look",
)
def logs(
    _context: Any,
    name: str,
    rank: str | int | None = None,
    lines: str | int = 50,
    follow: bool = False,
    cluster: str | None = None,
) -> dict[int, list[str]]:
    """Show what the ranks printed."""
    from .. import api
    from .interrupts import Interrupts
    from .show.follow import Follower
    from .show.logs import show_log_tails

    experiments = api.open_experiments(cluster)
    experiment = experiments.find(name)
    only = whole(rank, "--rank")
    ends = api.log_ends(experiment) if follow else None
    tails = api.logs(
        experiment, rank=only, lines=whole(lines, "--lines") or 0, ends=ends
    )
    show_log_tails(experiment, tails)
    if follow:
        with Interrupts() as interrupts:
            ranks = None if only is None else [only]
            shown = Follower(
                experiments, experiment, interrupts, ranks=ranks, offsets=ends
            )
            shown.until_ended(interrupt_stops=False)
    return tails
