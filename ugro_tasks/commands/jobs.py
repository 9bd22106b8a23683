"""status, logs, results, gather: tasks that look at jobs."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from .common import CLUSTER_HELP, JOB_HELP, JSON_HELP, open_experiments, task, whole


@task(
    help={
        "name": JOB_HELP,
        "cluster": CLUSTER_HELP,
        "every": "all jobs, not only the newest twenty",
        "live": "ask the nodes, too",
        "json": JSON_HELP,
    },
    optional_name=True,
)
def status(
    _context: Any,
    name: str | None = None,
    cluster: str | None = None,
    every: bool = False,
    live: bool = False,
    json: bool = False,
) -> None:
    """Show the jobs, or one of them in full."""
    from .. import display, reports, summon

    experiments = open_experiments(cluster)
    if experiments.unfinished():
        summon.ensure_agent(experiments)
    if name is None:
        if live:
            raise UsageError("--live needs the name of a job")
        return display.jobs(reports.all_jobs(experiments, limit=None if every else 20), as_json=json)
    return display.job(reports.one_job(experiments.find(name), live=live), as_json=json)


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
    from .. import display, reports
    from ..follower import Follower
    from ..interrupts import Interrupts

    experiments = open_experiments(cluster)
    experiment = experiments.find(name)
    only = whole(rank, "--rank")
    tails = reports.log_tails(experiment, only, whole(lines, "--lines") or 0)
    display.log_tails(experiment, tails)
    if follow:
        with Interrupts() as interrupts:
            ranks = None if only is None else [only]
            shown = Follower(experiments, experiment, interrupts, ranks=ranks, from_start=False)
            shown.until_ended(interrupt_stops=False)


@task(help={"name": JOB_HELP, "cluster": CLUSTER_HELP, "json": JSON_HELP})
def results(_context: Any, name: str, cluster: str | None = None, json: bool = False) -> None:
    """Show what came of a job: parameters, duration, final metrics, checkpoints, logs."""
    from .. import display, reports

    display.results(reports.results(open_experiments(cluster).find(name)), as_json=json)


@task(help={"name": JOB_HELP, "cluster": CLUSTER_HELP})
def gather(_context: Any, name: str, cluster: str | None = None) -> None:
    """Fetch a job's outputs from the nodes, also while it runs."""
    from .. import display, gather

    experiment = open_experiments(cluster).find(name)
    with display.Percentages() as shown:
        gather.gather_again(experiment, shown.update)
    display.note(f"gathered into {experiment.folder}")
