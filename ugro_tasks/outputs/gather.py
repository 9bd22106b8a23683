"""The outputs of one job, fetched at its user's wish, also while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from ..errors import HostError, NodeFault, RecordError, SeveralErrors, UgroError
from ..hosts.fleet import Fleet
from ..jobs.experiment import Experiment
from .fetch import as_record_error, fetch_outputs
from .home import bring_home, ran_attempts


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
    experiment: Experiment,
    tell: Callable[[str, int], None],
    *,
    verify: bool = False,
    leave_links: bool = False,
) -> Gathering:
    """Fetch the outputs of a running or ended job; `tell` gets (node, percent).

    `verify` compares contents, not only sizes and times. With `leave_links` a job counts as gathered without what links
    out of its outputs lead to; its events name them. Raises the errors of nodes, RecordError if the job never ran or
    the disk here is full.
    """
    record = experiment.signed_record()
    state = experiment.state()
    attempts = ran_attempts(experiment, record, state)
    if not attempts:
        raise RecordError(
            f"{experiment.job_id} never ran, so there is nothing to gather"
        )
    if not state.phase.finished:
        attempts = attempts[-1:]
    everywhere = {plan.node for attempt in attempts for plan in attempt.plans}
    nodes = sorted(everywhere.difference(state.cleaned))
    attempts = [attempt.on(nodes) for attempt in attempts]
    if nodes:
        with Fleet.of(experiment.cluster().subset(nodes)) as fleet:
            if state.phase.finished:
                errors = bring_home(
                    experiment,
                    attempts,
                    fleet,
                    verify=verify,
                    leave_links=leave_links,
                    progress=tell,
                )
            else:  # its agent fetches streams and checkpoints
                errors = fetch_outputs(
                    experiment,
                    attempts[-1].plans,
                    fleet,
                    verify=verify,
                    leave_links=leave_links,
                    progress=tell,
                )
        if errors:
            raise _together(experiment, errors)
        if state.phase.finished:
            note_gathered(experiment, leave_links=leave_links)
    return _gathering(experiment, tuple(sorted(everywhere.intersection(state.cleaned))))


def note_gathered(experiment: Experiment, *, leave_links: bool) -> None:
    """Write down that all of the job is here; raises RecordError."""
    state = experiment.state()
    gathered = msgspec.structs.replace(
        state,
        gathered_at=state.gathered_at or time.time(),
        links_left_out=leave_links,
    )
    if gathered == state:
        return
    try:
        experiment.save_state(gathered)
    except OSError as error:
        raise as_record_error(error, experiment) from error


def _gathering(experiment: Experiment, cleaned: tuple[str, ...]) -> Gathering:
    nodes = [node for node in experiment.record().nodes if node not in cleaned]
    return Gathering(
        job_id=experiment.job_id,
        folder=str(experiment.folder),
        nodes=tuple(nodes),
        cleaned=cleaned,
    )


def _together(experiment: Experiment, errors: Sequence[UgroError]) -> UgroError:
    """Return one error for all.

    If the disk here is full, that is the only one; an unreachable node is named once.
    """
    named = {_name_of(error): error for error in reversed(errors)}
    distinct = list(reversed(named.values()))
    for error in distinct:
        if isinstance(error, RecordError):
            return RecordError(f"{error.text}; then: inv gather {experiment.job_id}")
    if len(distinct) == 1:
        return distinct[0]
    return SeveralErrors(distinct, "\n".join(error.text for error in distinct))


def _name_of(error: UgroError) -> str:
    """Return what tells an error from others: its node where that is away, else its words."""
    if isinstance(error, HostError) and not isinstance(error, NodeFault):
        return error.host
    return error.text
