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
from functools import partial

from ..errors import HostError, NodeFault, RecordError, UgroError
from ..hosts.copy import Copy, NotCome
from ..hosts.fleet import Fleet
from ..hosts.host import ARRIVED_STAYS, Host
from ..hosts.transfer import Transfer
from ..jobs.checkpoints import stored_manifests
from ..jobs.experiment import METRICS_NAME, Experiment
from ..jobs.outputs import CHECKPOINTS
from ..jobs.plan import NodePlan
from ..jobs.state import Event
from ..node.protocol import MANIFEST_SUFFIX
from ..text import first_of

# Of what a link leads to, to be said before it comes.
LARGE_BYTES = 1 << 30
NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


def fetch_outputs(
    experiment: Experiment,
    plans: Sequence[NodePlan],
    fleet: Fleet,
    *,
    only: Collection[str] | None = None,
    only_new: bool = False,
    verify: bool = False,
    leave_links: bool = False,
    progress: Callable[[str, int], None] | None = None,
) -> list[UgroError]:
    """Pull each rank's output folder, all nodes at once; return the errors.

    Mirrored checkpoints are left out, with `only_new` all files of which there is one here.
    Links that do not come are an error that names them, with `leave_links` an event of the job.
    `verify` compares contents, not only sizes and times. `progress` gets (node, percent). Files that
    arrived before a failure are not pulled again. A full disk here is one error for all nodes.
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
            not_come = _pull(
                experiment,
                plan,
                transfer,
                only_new=only_new,
                verify=verify,
                leave_links=leave_links,
                tell=tell,
            )
            _say_what_has_not_come(experiment, plan, not_come, leave_links=leave_links)
        except UgroError as error:
            errors.append(error)
        except OSError as error:
            if error.errno in NO_ROOM:
                full[plan.node] = _to_come(experiment, plan, transfer)
            else:
                errors.append(as_record_error(error, experiment))

    chosen = [plan for plan in plans if only is None or plan.node in only]
    fleet.each({plan.node: partial(pull, plan) for plan in chosen})
    if full:
        return [_no_room(experiment, full), *errors]
    return errors


def as_record_error(error: OSError, experiment: Experiment) -> RecordError:
    return RecordError(f"{error.filename or experiment.folder}: {error.strerror}")


def _pull(
    experiment: Experiment,
    plan: NodePlan,
    transfer: Transfer,
    *,
    only_new: bool,
    verify: bool,
    leave_links: bool,
    tell: Callable[[int], None],
) -> NotCome:
    """Pull a rank's outputs; return what has not come."""
    outputs = experiment.outputs
    target = outputs.make(plan.rank)

    def announce(link: str, leads_to: str, size: int) -> None:
        if size >= LARGE_BYTES:
            words = f"{link} leads to {leads_to}: {_mebibytes(size)} to come"
            _say(experiment, plan, words)

    try:
        not_come = transfer.pull_outputs(
            _source(plan),
            f"{target.place}/",
            exclude=_left_out(experiment, plan),
            never_links=[CHECKPOINTS],
            only_new=only_new,
            verify=verify,
            leave_links=leave_links,
            announce=announce,
            progress=tell,
        )
    finally:
        outputs.remove_link_at_checkpoints(plan.rank)
        if plan.rank == 0:
            outputs.link_for_people()
    outputs.remove_if_empty(plan.rank)
    return not_come


def _say_what_has_not_come(
    experiment: Experiment, plan: NodePlan, not_come: NotCome, *, leave_links: bool
) -> None:
    """Name all of it; raises NodeFault, unless it is links and `leave_links` wished for that."""
    whats = []
    fixes = []
    if not_come.faults:
        whats.append(first_of(not_come.faults))
        fixes.append(ARRIVED_STAYS)
    links = first_of(not_come.links)
    if links and leave_links:
        _say(experiment, plan, f"links left out: {links}")
    elif links:
        whats.append(f"what these links lead to does not come: {links}")
        fixes.append(f"without them: inv gather {experiment.job_id} --leave-links")
    if whats:
        raise NodeFault(plan.node, "; ".join(whats), "; ".join(fixes))


def _say(experiment: Experiment, plan: NodePlan, words: str) -> None:
    with contextlib.suppress(OSError):
        experiment.add_event(Event(time=time.time(), node=plan.node, message=words))


def missing_outputs(
    experiment: Experiment,
    plan: NodePlan,
    host: Host,
    *,
    only_new: bool,
    leave_links: bool,
    removed_here: Collection[str],
) -> list[str]:
    """Name the files that a pull would bring, and nodes' reasons for what it could not.

    Checkpoints removed here on purpose are left out. Raises HostError and OSError.
    """
    removed = [f"/{CHECKPOINTS}/{name}" for name in removed_here]
    return Copy(host).missing(
        _source(plan),
        f"{experiment.outputs.of(plan.rank).place}/",
        exclude=[*_left_out(experiment, plan), *removed],
        never_links=[CHECKPOINTS],
        only_new=only_new,
        leave_links=leave_links,
    )


def _source(plan: NodePlan) -> str:
    return f"{plan.folder}/output/"


def _left_out(experiment: Experiment, plan: NodePlan) -> list[str]:
    mirrored = sorted(stored_manifests(experiment, plan.rank))
    return [
        # It comes as a stream, and may still be growing.
        f"/{METRICS_NAME}",
        f"/{CHECKPOINTS}/*{MANIFEST_SUFFIX}",
        *(f"/{CHECKPOINTS}/{name}" for name in mirrored),
    ]


def _to_come(experiment: Experiment, plan: NodePlan, transfer: Transfer) -> int | None:
    with contextlib.suppress(HostError, OSError):
        target = experiment.outputs.of(plan.rank)
        return transfer.bytes_to_come(
            _source(plan), f"{target.place}/", exclude=_left_out(experiment, plan)
        )
    return None


def _no_room(experiment: Experiment, full: dict[str, int | None]) -> RecordError:
    free = shutil.disk_usage(experiment.files.place).free
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
