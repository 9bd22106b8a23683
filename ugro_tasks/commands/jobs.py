"""status, logs, results, gather, clean: tasks about jobs that run or ran."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from .common import CLUSTER_HELP, JOB_HELP, JSON_HELP, NODES_HELP, age, open_experiments, task, whole


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
    if experiments.unfinished() and (why := summon.try_agent(experiments)):
        display.note(why)
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
    from ..watch import end_of_lines

    experiments = open_experiments(cluster)
    experiment = experiments.find(name)
    only = whole(rank, "--rank")
    ends = {number: end_of_lines(path) for number, path in experiment.logs().items()} if follow else None
    tails = reports.log_tails(experiment, only, whole(lines, "--lines") or 0, ends)
    display.log_tails(experiment, tails)
    if follow:
        with Interrupts() as interrupts:
            ranks = None if only is None else [only]
            shown = Follower(experiments, experiment, interrupts, ranks=ranks, offsets=ends)
            shown.until_ended(interrupt_stops=False)


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
    from .. import display, results

    found = results.results(open_experiments(cluster).find(name))
    if plot:
        display.draw(found, plot)
    display.results(found, as_json=json)


@task(
    help={
        "name": JOB_HELP,
        "verify": "compare contents, not only sizes and times, with what has come already",
        "cluster": CLUSTER_HELP,
    }
)
def gather(_context: Any, name: str, verify: bool = False, cluster: str | None = None) -> None:
    """Fetch a job's outputs from the nodes, also while it runs."""
    from .. import display, gather

    experiment = open_experiments(cluster).find(name)
    with display.Percentages() as shown:
        cleaned = gather.gather_again(experiment, shown.update, verify=verify)
    if cleaned:
        display.note(
            f"nothing is left on {', '.join(cleaned)} since inv clean; what was there came home before"
        )
    display.note(f"gathered into {experiment.folder}")


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
    from .. import cleaning, display
    from ..cluster_file import load_cluster
    from ..experiments import Experiments

    chosen = load_cluster(cluster)
    wish = cleaning.Wish(
        names=tuple(name.split(",")) if name else (),
        older_than_seconds=age(older_than, "--older-than"),
        keep_last=whole(keep_last, "--keep-last") or 0,
        at_home=at_home,
        dry_run=dry_run,
    )
    with display.waiting("looking for what can go"):
        found, errors = cleaning.clean(Experiments(chosen.experiments), chosen.select(nodes), wish)
    display.cleaning(found, as_json=json)
    if errors:
        raise errors[0]
