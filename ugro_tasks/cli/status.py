"""`inv status`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .flags import CLUSTER_HELP, JOB_HELP, JSON_HELP
from .task import is_dry, task

if TYPE_CHECKING:
    from ..reports.status import JobLine, JobReport


@task(
    help={
        "name": JOB_HELP,
        "cluster": CLUSTER_HELP,
        "every": "all jobs, not only the newest twenty",
        "live": "ask the nodes, too",
        "json": JSON_HELP,
    },
    group="look",
    word="name",
)
def status(
    context: Any,
    name: str | None = None,
    cluster: str | None = None,
    every: bool = False,
    live: bool = False,
    json: bool = False,
) -> list[JobLine] | JobReport:
    """Show the jobs, or one of them in full."""
    from .. import api
    from .show.format import note
    from .show.status import show_job, show_jobs

    chosen = api.open_cluster(cluster)
    left_alone: dict[str, str] = {}
    if not is_dry(context):
        no_agent, left_alone = api.wake_agent(chosen)
        if no_agent:
            note(no_agent)
    if name is None:
        if live:
            raise UsageError("--live needs the name of a job")
        for why in left_alone.values():
            note(why)
        lines = api.status(chosen, limit=None if every else 20)
        show_jobs(lines, as_json=json)
        return lines
    report = api.job_report(name, chosen, live=live)
    if report.job_id in left_alone:
        note(left_alone[report.job_id])
    show_job(report, as_json=json)
    return report
