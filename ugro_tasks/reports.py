"""What a job's folder says, put together for a reader: status, logs. No node is asked, but by `live`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import msgspec

from .errors import HostError, RecordError, UsageError
from .experiments import Experiment, Experiments
from .job import Event, JobRecord, JobState
from .watch import last_lines


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
    from .hosts import Fleet, Host
    from .remote import ask

    plans = {plan.node: plan for plan in record.plan.nodes} if record.plan else {}

    def state(host: Host) -> dict[str, Any]:
        plan = plans[host.node.name]
        return ask(host, "state", folder=plan.folder, token=plan.token)

    cluster = experiment.cluster()
    # Not a node that was left behind at a restart: nothing of the last attempt is there.
    asked = ",".join(node.name for node in cluster.nodes if node.name in plans)
    if not asked:
        return {}
    with Fleet.of(cluster.select(asked)) as fleet:
        answers = fleet.map(state)
    return {node: {"error": a.text} if isinstance(a, HostError) else a for node, a in answers.items()}


def log_tails(
    experiment: Experiment, rank: int | None, count: int, ends: Mapping[int, int] | None = None
) -> dict[int, list[str]]:
    """{rank: its last lines, before `ends` of its log}; a rank that has not printed yet has none.

    Raises UsageError for a rank that is none.
    """
    logs, ranks = experiment.logs(), len(experiment.record().nodes)
    if rank is not None and not 0 <= rank < ranks:
        raise UsageError(f"--rank {rank}: {experiment.job_id} has the ranks 0 to {ranks - 1}")
    chosen = {number: path for number, path in logs.items() if rank in {None, number}}
    return {number: last_lines(path, count, (ends or {}).get(number)) for number, path in chosen.items()}
