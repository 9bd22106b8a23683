"""The outputs of one job, fetched at its user's wish, also while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
from msgspec import Struct

from ..errors import HostError, RecordError, SeveralErrors, UgroError
from ..hosts.fleet import Fleet
from ..hosts.host import Host
from ..hosts.operations import State
from ..hosts.requests import ask
from ..jobs.attempt_names import attempt_folder, folder_of, token_of
from ..jobs.experiment import Experiment
from ..jobs.plan import NodePlan
from ..jobs.record import JobRecord
from ..jobs.state import JobState
from .checkpoints import bring_all
from .fetch import as_record_error, fetch_outputs


class Gathering(Struct, frozen=True, kw_only=True):
    """Where the outputs of a job are, or would come to."""

    job_id: str
    folder: str
    nodes: tuple[str, ...]  # whose outputs were fetched
    # Nodes without anything left, after a `clean`; their outputs came here before.
    cleaned: tuple[str, ...]


def would_gather(experiment: Experiment) -> Gathering:
    """Return the nodes to fetch from, and fetch nothing."""
    return _gathering(experiment, experiment.state().cleaned)


def gather(
    experiment: Experiment, tell: Callable[[str, int], None], *, verify: bool = False
) -> Gathering:
    """Fetch the outputs of a running or ended job; `tell` gets (node, percent).

    `verify` compares contents, not only sizes and times. Raises the errors of nodes, RecordError if the job never ran
    or the disk here is full.
    """
    record = experiment.signed_record()
    state = experiment.state()
    everywhere = _plans(experiment, record, state)
    plans = [plan for plan in everywhere if plan.node not in state.cleaned]
    if plans:
        cluster = experiment.cluster().subset([plan.node for plan in plans])
        with Fleet.of(cluster) as fleet:
            ended = state.phase.finished and _ended(state, plans, fleet)
            brought: list[UgroError] = []
            if state.phase.finished:  # else its agent fetches them
                brought = bring_all(
                    experiment, plans, fleet, verify=verify, progress=tell
                )
            errors = fetch_outputs(
                experiment, plans, fleet, verify=verify, progress=tell
            )
        if errors or brought:
            raise _together(experiment, errors, brought)
        if ended and not state.gathered_at:
            gathered = msgspec.structs.replace(
                experiment.state(), gathered_at=time.time()
            )
            try:
                experiment.save_state(gathered)
            except OSError as error:
                raise as_record_error(error, experiment) from error
    cleaned = [plan.node for plan in everywhere if plan not in plans]
    return _gathering(experiment, tuple(cleaned))


def _gathering(experiment: Experiment, cleaned: tuple[str, ...]) -> Gathering:
    nodes = [node for node in experiment.record().nodes if node not in cleaned]
    return Gathering(
        job_id=experiment.job_id,
        folder=str(experiment.folder),
        nodes=tuple(nodes),
        cleaned=cleaned,
    )


def _plans(
    experiment: Experiment, record: JobRecord, state: JobState
) -> Sequence[NodePlan]:
    """Return the plans of the last attempt that ran."""
    if record.plan is None:
        raise RecordError(
            f"{experiment.job_id} never ran, so there is nothing to gather"
        )
    ran = [attempt for attempt in state.attempts if attempt.ran]
    if not ran or ran[-1].number == record.plan.attempt:
        return record.plan.nodes
    nodes = {node.name: node for node in experiment.cluster().nodes}
    unique = attempt_folder(record, ran[-1].number)
    return [
        NodePlan(
            node=name, rank=rank, address=nodes[name].address, interface="", argv=(), env={},
            token=token_of(nodes[name], unique), folder=folder_of(nodes[name], unique),
        )
        for rank, name in enumerate(ran[-1].nodes)
    ]  # fmt: skip


def _ended(state: JobState, plans: Sequence[NodePlan], fleet: Fleet) -> bool:
    """Return whether all ranks are proven gone, at the job's end or by their nodes now."""
    unproven = {rank.node for rank in state.ranks if not rank.proven_gone}

    def gone(plan: NodePlan, host: Host) -> bool:
        told = ask(host, State(folder=plan.folder, token=plan.token))
        return not told.supervised and not told.processes

    work = {plan.node: partial(gone, plan) for plan in plans if plan.node in unproven}
    return all(found is True for found in fleet.each(work).values())


def _together(
    experiment: Experiment, errors: Sequence[UgroError], brought: Sequence[UgroError]
) -> UgroError:
    """Return one error for all.

    If the disk here is full, that is the only one; an unreachable node is named once.
    """
    away = {error.host for error in errors if isinstance(error, HostError)}
    distinct = list(errors)
    for error in brought:
        if not isinstance(error, HostError) or error.host not in away:
            distinct.append(error)
    for error in distinct:
        if isinstance(error, RecordError):
            return RecordError(f"{error.text}; then: inv gather {experiment.job_id}")
    if len(distinct) == 1:
        return distinct[0]
    return SeveralErrors(distinct, "\n".join(error.text for error in distinct))
