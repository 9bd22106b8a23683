"""Fetching the outputs of ranks.

Checkpoints with a manifest are fetched by `checkpoints.py`, whole and verified.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ..errors import HostError, RecordError, UgroError
from ..hosts.fleet import Fleet
from ..hosts.host import Host
from ..hosts.transfer import Transfer
from ..jobs.checkpoints import stored_manifests
from ..jobs.experiment import METRICS_NAME, OWN_NAMES, Experiment
from ..jobs.plan import NodePlan
from ..node.protocol import MANIFEST_SUFFIX

NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


def fetch_outputs(
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
