"""Fetching the outputs of ranks.

Checkpoints with a manifest are fetched by `checkpoints.py`, whole and verified.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec

from ..errors import HostError, RecordError, SeveralErrors, UgroError
from ..hosts.fleet import Fleet
from ..hosts.host import Host
from ..hosts.operations import State
from ..hosts.requests import ask
from ..hosts.transfer import Transfer
from ..jobs.checkpoints import stored_manifests
from ..jobs.experiment import METRICS_NAME, OWN_NAMES, Experiment
from ..jobs.names import attempt_folder, folder_of, token_of
from ..jobs.plan import NodePlan
from ..jobs.record import JobRecord
from ..jobs.state import JobState
from ..node.protocol import MANIFEST_SUFFIX
from .checkpoints import bring_all

NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


def gather(
    experiment: Experiment,
    plans: Sequence[NodePlan],
    fleet: Fleet,
    *,
    only: Collection[str] | None = None,
    clashing: Collection[str] = OWN_NAMES,
    verify: bool = False,
    progress: Callable[[str, int], None] | None = None,
) -> list[UgroError]:
    """Pull each rank's output folder, all nodes at once; return the errors.

    Files of rank 0 with a name of UGRO's own (`clashing`: those that may exist) go to ranks/0/.
    Mirrored checkpoints are left out. `verify` compares contents, not only sizes and times.
    `progress` gets (node, percent). Files that arrived before a failure are not pulled again. A
    full disk here is one error for all nodes.
    """
    telling = threading.Lock()
    errors: list[UgroError] = []
    # {node: bytes still to be sent, None if unknown}
    full: dict[str, int | None] = {}

    def pull(plan: NodePlan, host: Host) -> None:
        def tell(percent: int) -> None:
            with telling:
                if progress:
                    progress(plan.node, percent)

        transfer = Transfer(host)
        try:
            _pull(experiment, plan, transfer, clashing, verify, tell)
        except UgroError as error:
            errors.append(error)
        except OSError as error:
            if error.errno in NO_ROOM:
                full[plan.node] = _to_come(experiment, plan, transfer)
            else:
                errors.append(_as_record_error(error, experiment))

    chosen = [plan for plan in plans if only is None or plan.node in only]
    fleet.each({plan.node: partial(pull, plan) for plan in chosen})
    if full:
        return [_no_room(experiment, full), *errors]
    return errors


def _as_record_error(error: OSError, experiment: Experiment) -> RecordError:
    return RecordError(f"{error.filename or experiment.folder}: {error.strerror}")


def _pull(
    experiment: Experiment,
    plan: NodePlan,
    transfer: Transfer,
    clashing: Collection[str],
    verify: bool,
    tell: Callable[[int], None],
) -> None:
    source = _source(plan)
    target = experiment.outputs(plan.rank)
    target.mkdir(parents=True, exist_ok=True)
    aside: list[str] = []
    if plan.rank == 0:
        own = set(OWN_NAMES) - {METRICS_NAME}
        aside = [name for name in clashing if name in own]
    # Both at once: mostly nothing is aside, and waiting for that answer would cost a login.
    with ThreadPoolExecutor(1) as beside:
        other = None
        if aside:
            work = partial(_pull_aside, experiment, source, transfer, aside, verify)
            other = beside.submit(work)
        transfer.pull(
            source,
            f"{target}/",
            exclude=_left_out(experiment, plan),
            verify=verify,
            progress=tell,
        )
        if other:
            target = other.result()
    with contextlib.suppress(OSError):
        target.rmdir()  # of a rank that wrote nothing


def _pull_aside(
    experiment: Experiment,
    source: str,
    transfer: Transfer,
    names: Sequence[str],
    verify: bool,
) -> Path:
    target = experiment.folder / "ranks" / "0"
    target.mkdir(parents=True, exist_ok=True)
    transfer.pull(
        source, f"{target}/", only=[f"/{name}" for name in names], verify=verify
    )
    return target


def _source(plan: NodePlan) -> str:
    return f"{plan.folder}/output/"


def _left_out(experiment: Experiment, plan: NodePlan) -> list[str]:
    # metrics.jsonl comes as a stream, and may still be growing.
    own = OWN_NAMES if plan.rank == 0 else [METRICS_NAME]
    mirrored = stored_manifests(experiment, plan.rank)
    return [
        *(f"/{name}" for name in own),
        f"/checkpoints/*{MANIFEST_SUFFIX}",  # written by the mirror only, as the mark of a whole checkpoint
        *(f"/checkpoints/{name}" for name in sorted(mirrored)),
    ]


def _to_come(experiment: Experiment, plan: NodePlan, transfer: Transfer) -> int | None:
    with contextlib.suppress(HostError, OSError):
        target = experiment.outputs(plan.rank)
        return transfer.bytes_to_come(
            _source(plan), f"{target}/", exclude=_left_out(experiment, plan)
        )
    return None


def _no_room(experiment: Experiment, full: dict[str, int | None]) -> RecordError:
    free = shutil.disk_usage(experiment.folder).free
    words = [
        f"{experiment.folder}: {os.strerror(errno.ENOSPC)}: {_mebibytes(free)} free"
    ]
    for node, size in sorted(full.items()):
        if size:
            words.append(f"{node} has {_mebibytes(size)} more")
    return RecordError(
        f"{'; '.join(words)}\n    what arrived stays; see inv clean --at-home --dry-run"
    )


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def gather_again(
    experiment: Experiment,
    progress: Callable[[str, int], None],
    *,
    verify: bool = False,
) -> list[str]:
    """Pull the outputs of a running or ended job; return the nodes already cleaned by `inv clean`.

    Raises the errors of nodes, RecordError if the job never ran or the disk here is full.
    """
    record = experiment.record()
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
                    experiment, plans, fleet, verify=verify, progress=progress
                )
            errors = gather(experiment, plans, fleet, verify=verify, progress=progress)
        if errors or brought:
            raise _together(experiment, errors, brought)
        if ended and not state.gathered_at:
            gathered = msgspec.structs.replace(
                experiment.state(), gathered_at=time.time()
            )
            try:
                experiment.save_state(gathered)
            except OSError as error:
                raise _as_record_error(error, experiment) from error
    return [plan.node for plan in everywhere if plan not in plans]


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
