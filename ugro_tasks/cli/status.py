"""`inv status`."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from .flags import CLUSTER_HELP, JOB_HELP, JSON_HELP, open_experiments
from .task import task


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
    from ..jobs.agent_process import try_agent
    from ..reports.status import all_jobs, one_job
    from .show.format import note
    from .show.status import show_job, show_jobs

    experiments = open_experiments(cluster)
    if experiments.unfinished() and (why := try_agent(experiments)):
        note(why)
    if name is None:
        if live:
            raise UsageError("--live needs the name of a job")
        return show_jobs(all_jobs(experiments, limit=None if every else 20), as_json=json)
    return show_job(one_job(experiments.find(name), live=live), as_json=json)
