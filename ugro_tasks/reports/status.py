"""All jobs in a list, and one job in full. Nodes are asked only with `live`."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from ..errors import RecordError, UgroError
from ..jobs.experiment import Experiment
from ..jobs.experiments import Experiments
from ..jobs.plan import NodePlan
from ..jobs.record import JobRecord
from ..jobs.state import Event, JobState

if TYPE_CHECKING:  # most reports ask no node
    from ..hosts.answers import StateAnswer


class JobLine(msgspec.Struct, frozen=True, kw_only=True):
    """A job in the list. `damaged` is the reason if its folder cannot be read."""

    job_id: str
    state: JobState | None = None
    nodes: tuple[str, ...] = ()
    damaged: str | None = None


class NoAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The error of a node that could not be asked about a job."""

    error: str


class JobReport(msgspec.Struct, frozen=True, kw_only=True):
    """One job in full."""

    job_id: str
    record: JobRecord
    state: JobState
    events: list[Event]
    live: dict[str, StateAnswer | NoAnswer] | None = None


def all_jobs(experiments: Experiments, limit: int | None) -> list[JobLine]:
    """Return the newest jobs, newest first; unreadable ones are listed with the reason."""
    lines = []
    for experiment in islice(experiments.all(), limit):
        try:
            lines.append(
                JobLine(
                    job_id=experiment.job_id,
                    state=experiment.state(),
                    nodes=experiment.record().nodes,
                )
            )
        except RecordError as error:
            lines.append(JobLine(job_id=experiment.job_id, damaged=error.text))
    # The times in older ids are local ones. Without a state, a job stays behind the others.
    lines.sort(key=_submitted_at, reverse=True)
    return lines


def _submitted_at(line: JobLine) -> float:
    return line.state.submitted_at if line.state else 0.0


def one_job(experiment: Experiment, *, live: bool) -> JobReport:
    """Return one job in full, with `live` also the nodes' answers; raises RecordError."""
    record = experiment.record()
    return JobReport(
        job_id=experiment.job_id,
        record=record,
        state=experiment.state(),
        events=experiment.events()[0],
        live=_ask_nodes(experiment, record) if live else None,
    )


def _ask_nodes(
    experiment: Experiment, record: JobRecord
) -> dict[str, StateAnswer | NoAnswer]:
    # Late: only this needs SSH, and loading it takes longer than all the rest.
    from ..hosts.fleet import Fleet
    from ..hosts.host import Host
    from ..hosts.operations import State
    from ..hosts.requests import ask

    def state(plan: NodePlan, host: Host) -> StateAnswer:
        return ask(host, State(folder=plan.folder, token=plan.token))

    cluster = experiment.cluster()
    # Only nodes of the last attempt: those dropped at a restart have nothing of it.
    plans = record.plan.nodes if record.plan else ()
    work = {plan.node: partial(state, plan) for plan in plans}
    if not work:
        return {}
    with Fleet.of(cluster.subset(work)) as fleet:
        answers = fleet.each(work)
    found: dict[str, StateAnswer | NoAnswer] = {}
    for node, answer in answers.items():
        if isinstance(answer, UgroError):
            found[node] = NoAnswer(error=answer.text)
        else:
            found[node] = answer
    return found
