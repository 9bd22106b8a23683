"""All jobs, and one in full. No node is asked, but by `live`."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import Any

import msgspec

from ..errors import RecordError, UgroError
from ..jobs.experiment import Experiment
from ..jobs.experiments import Experiments
from ..jobs.plan import NodePlan
from ..jobs.record import JobRecord
from ..jobs.state import Event, JobState


class JobLine(msgspec.Struct, frozen=True, kw_only=True):
    """A job in a list. `damaged` says why nothing more is known."""

    job_id: str
    state: JobState | None = None
    nodes: tuple[str, ...] = ()
    damaged: str | None = None


class JobReport(msgspec.Struct, frozen=True, kw_only=True):
    """One job in full."""

    job_id: str
    record: JobRecord
    state: JobState
    events: list[Event]
    live: dict[str, dict[str, Any]] | None = None


def all_jobs(experiments: Experiments, limit: int | None) -> list[JobLine]:
    """The newest jobs, newest first; a folder that cannot be read is among them, with the reason."""
    lines = []
    for experiment in islice(experiments.all(), limit):
        try:
            lines.append(
                JobLine(job_id=experiment.job_id, state=experiment.state(), nodes=experiment.record().nodes)
            )
        except RecordError as error:
            lines.append(JobLine(job_id=experiment.job_id, damaged=error.text))
    return lines


def one_job(experiment: Experiment, *, live: bool) -> JobReport:
    """Everything about one job; with `live` also what its nodes say now. Raises RecordError."""
    record = experiment.record()
    return JobReport(
        job_id=experiment.job_id,
        record=record,
        state=experiment.state(),
        events=experiment.events()[0],
        live=_ask_nodes(experiment, record) if live else None,
    )


def _ask_nodes(experiment: Experiment, record: JobRecord) -> dict[str, dict[str, Any]]:
    # Nothing else here needs SSH, and loading it takes longer than all the rest.
    from ..hosts.fleet import Fleet
    from ..hosts.host import Host
    from ..hosts.requests import ask

    def state(plan: NodePlan, host: Host) -> dict[str, Any]:
        return ask(host, "state", folder=plan.folder, token=plan.token)

    cluster = experiment.cluster()
    # Not a node that was left behind at a restart: nothing of the last attempt is there.
    work = {plan.node: partial(state, plan) for plan in (record.plan.nodes if record.plan else ())}
    if not work:
        return {}
    with Fleet.of(cluster.subset(work)) as fleet:
        answers = fleet.each(work)
    return {node: {"error": a.text} if isinstance(a, UgroError) else a for node, a in answers.items()}
