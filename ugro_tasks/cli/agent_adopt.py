"""`inv agent.adopt`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .flags import CLUSTER_HELP, JOB_HELP, JSON_HELP
from .task import is_dry, task

if TYPE_CHECKING:
    from ..jobs.adoption import Adoption


@task(
    help={
        "name": JOB_HELP,
        "yes": "take it over without asking, for programs",
        "cluster": CLUSTER_HELP,
        "json": JSON_HELP,
    },
    group="cluster",
    collection="agent",
)
def adopt(
    context: Any,
    name: str,
    yes: bool = False,
    cluster: str | None = None,
    json: bool = False,
) -> Adoption:
    """Take over a job that was launched by another user, on another machine or by an older UGRO."""
    from .. import api
    from ..errors import NotSigned
    from .show.adoption import show_adoption
    from .show.format import agree, note

    job = api.find(name, cluster)
    found = api.adoption(job)
    show_adoption(found, as_json=json)
    if is_dry(context):
        note("nothing was done")
        return found
    question = f"Sign {found.job_id} as yours?"
    if not yes and not agree(question, unattended="--yes"):
        raise NotSigned(f"{found.job_id} was not taken over; nothing was changed")
    api.adopt(job, shown=found)
    note(f"{found.job_id} is yours now")
    return found
