"""Home: all that a rank has on its node is here as well.

A rank is home when every stream of every attempt that ran (its log, the metrics of rank 0, the samples of its
node) and every file of its outputs is here and as large as there. `bring_home` makes it so, and a
job is gathered when that gave no error; `missing` says of a folder on a node what is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeGuard

import msgspec
from msgspec import Struct

from ..errors import HostError, NodeFault, UgroError
from ..hosts.answers import CleanedFolder
from ..hosts.fleet import Fleet
from ..hosts.host import Host
from ..jobs.attempt_names import folder_of, token_of
from ..jobs.experiment import Experiment
from ..jobs.plan import NodePlan
from ..jobs.record import JobRecord
from ..jobs.state import JobState
from ..jobs.streams import has_more, kinds_of, sizes_of_attempt
from ..node.streams import STREAMS
from .checkpoints import bring_all
from .fetch import as_record_error, fetch_outputs, missing_outputs
from .streams import WORDS, fetch_streams

MISSING_NAMED = 3


class RanAttempt(Struct, frozen=True, kw_only=True):
    """One attempt whose ranks ran, and what its nodes were told to run."""

    number: int
    plans: tuple[NodePlan, ...]
    is_last: bool
    gathered: bool = False

    def on(self, nodes: Sequence[str]) -> RanAttempt:
        """Return its part on these nodes."""
        plans = tuple(plan for plan in self.plans if plan.node in nodes)
        return msgspec.structs.replace(self, plans=plans)


def ran_attempts(
    experiment: Experiment, record: JobRecord, state: JobState
) -> list[RanAttempt]:
    """Return the attempts that ran, the last one at the end; of a job without notes of them its plan's."""
    plan = record.plan
    if plan is None:
        return []
    found = []
    ran = [attempt for attempt in state.attempts if attempt.ran]
    for attempt in ran:
        plans = plan.nodes
        if attempt.number != plan.attempt:
            plans = _plans_of(experiment, record, attempt.number, attempt.nodes)
        found.append(
            RanAttempt(
                number=attempt.number,
                plans=plans,
                is_last=attempt is ran[-1],
                gathered=attempt.gathered,
            )
        )
    return found or [RanAttempt(number=plan.attempt, plans=plan.nodes, is_last=True)]


def _plans_of(
    experiment: Experiment, record: JobRecord, number: int, names: Sequence[str]
) -> tuple[NodePlan, ...]:
    nodes = {node.name: node for node in experiment.cluster().nodes}
    return tuple(
        NodePlan(
            node=name, rank=rank, address=nodes[name].address, interface="", argv=(), env={},
            token=token_of(record, number, nodes[name]),
            folder=folder_of(record, number, nodes[name]),
        )
        for rank, name in enumerate(names)
    )  # fmt: skip


# ---- bringing ----


def bring_home(
    experiment: Experiment,
    attempts: Sequence[RanAttempt],
    fleet: Fleet,
    *,
    verify: bool = False,
    leave_links: bool = False,
    progress: Callable[[str, int], None] | None = None,
) -> list[UgroError]:
    """Fetch what is missing here of attempts that have ended; return the errors.

    Of an earlier attempt the files come that no later one has written over.
    """
    errors: list[UgroError] = []
    # The last one first: what it wrote counts.
    for attempt in reversed(attempts):
        faults, gone = bring_streams(experiment, attempt, fleet)
        errors += faults
        if attempt.gathered and not attempt.is_last:
            continue  # by an earlier version perhaps only its files
        errors += [_lost_with_its_folder(attempt, node) for node in sorted(gone)]
        away = {fault.host for fault in faults if _is_away(fault)}
        here = [plan for plan in attempt.plans if plan.node not in gone | away]
        new = not attempt.is_last
        brought = bring_all(
            experiment, here, fleet, only_new=new, verify=verify, progress=progress
        )
        errors += fetch_outputs(
            experiment,
            here,
            fleet,
            only_new=new,
            verify=verify,
            leave_links=leave_links,
            progress=progress,
        )
        errors += brought
    return errors


def bring_streams(
    experiment: Experiment, attempt: RanAttempt, fleet: Fleet
) -> tuple[list[UgroError], set[str]]:
    """Fetch the rest of the streams of an attempt's ranks, all nodes at once.

    Return the errors, and the nodes on which the attempt's folder is gone.
    """
    attempts = experiment.state().attempts

    def bring(plan: NodePlan, host: Host) -> bool:
        try:
            return fetch_streams(experiment, host, plan, attempt.number, attempts)
        except OSError as error:
            raise as_record_error(error, experiment) from error

    work = {plan.node: partial(bring, plan) for plan in attempt.plans}
    answers = fleet.each(work)
    errors = [answer for answer in answers.values() if isinstance(answer, UgroError)]
    return errors, {node for node, answer in answers.items() if answer is False}


def _lost_with_its_folder(attempt: RanAttempt, node: str) -> NodeFault:
    words = "the job's folder there is gone, and with it what had not come"
    return NodeFault(node, f"attempt {attempt.number}: {words}")


def _is_away(fault: UgroError) -> TypeGuard[HostError]:
    """Tell whether nothing can be had from a node now; one that could not do one thing may do another."""
    return isinstance(fault, HostError) and not isinstance(fault, NodeFault)


# ---- comparing ----


def missing(
    experiment: Experiment,
    attempt: RanAttempt,
    plan: NodePlan,
    host: Host,
    folder: CleanedFolder,
    state: JobState,
) -> str | None:
    """Say what a folder on a node has and this machine has not; None if it is home.

    Raises HostError and RecordError where it cannot be compared.
    """
    if folder.streams is None:
        return "it does not say how much is there"
    here = sizes_of_attempt(experiment, plan, attempt.number, state.attempts)
    there = {kind: folder.streams.get(STREAMS[kind], 0) for kind in kinds_of(plan)}
    more = has_more(here, there)
    found = [WORDS[kind] for kind in more]
    try:
        found += missing_outputs(
            experiment,
            plan,
            host,
            only_new=not attempt.is_last,
            leave_links=state.links_left_out,
            removed_here=state.removed_checkpoints,
        )
    except OSError as error:
        raise as_record_error(error, experiment) from error
    if not found:
        return None
    words = ", ".join(found[:MISSING_NAMED])
    if len(found) > MISSING_NAMED:
        words += f" and {len(found) - MISSING_NAMED} more"
    return f"more is there than here: {words}; first: inv gather {experiment.job_id}"
