"""The last resort: end everything of UGRO on the nodes, or all of one job, by what the nodes know of it."""

from __future__ import annotations

import os

from ...cluster.model import Cluster
from ...errors import HostError, StopUnproven
from ...hosts.answers import Process, ResetAnswer
from ...hosts.fleet import Fleet
from ...hosts.host import Host
from ...hosts.operations import Reset
from ...hosts.requests import ask
from ...node.processes import user_name
from .stop import PROOF_SECONDS

RESET_GRACE_SECONDS = 3.0


def reset(
    cluster: Cluster,
    job_id: str | None = None,
    grace_seconds: float = RESET_GRACE_SECONDS,
) -> dict[str, list[Process] | HostError]:
    """End everything of UGRO on the nodes: {node: the processes ended there, or the error of a node out of reach}.

    With `job_id`, only what is of this job; no record of it is needed. `grace_seconds` is the time from TERM to KILL.

    Raises StopUnproven with host and pids if something would not end.
    """
    by = f"{user_name(os.geteuid())}@{os.uname().nodename}"

    def end(host: Host) -> ResetAnswer:
        slot = host.node.slot
        request = Reset(slot=slot, job=job_id, grace_seconds=grace_seconds, by=by)
        return ask(host, request, timeout_seconds=grace_seconds + PROOF_SECONDS)

    with Fleet.of(cluster) as fleet:
        answers = fleet.map(end)
    left = [
        f"{node}: pid {process.pid} would not end: {process.command}{_remedy(process)}"
        for node, answer in answers.items()
        if not isinstance(answer, HostError)
        for process in answer.left
    ]
    if left:
        raise StopUnproven("\n".join(left))
    return {
        node: a if isinstance(a, HostError) else a.ended for node, a in answers.items()
    }


def _remedy(process: Process) -> str:
    if process.user is None:
        return ""
    return f"\n    it is {process.user}'s; end it there: sudo kill -KILL {process.pid}"
