"""The first time, and the last resort: trust, folders, reset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .cluster import Cluster
from .errors import HostError, HostKeyUnknown, StopUnproven
from .health import ClusterHealth, examine
from .hosts import Fleet, Host
from .remote import ask
from .ssh import new_key_of

HOPS_AT_MOST = 4  # the host itself and the jump hosts before it
RESET_GRACE_SECONDS = 3.0


def trust_host_keys(
    cluster: Cluster, say: Callable[[str], None], agree: Callable[[str], bool] | None
) -> None:
    """Record each unknown host key in the user's known_hosts, after `agree` said yes to it; None agrees to all.

    A key that changed is never recorded; that, and any other trouble on the way to a host, is left for the health
    check to report. Raises HostKeyUnknown where `agree` says no.
    """
    fleet = Fleet.of(cluster)
    for _ in range(HOPS_AT_MOST):
        found = fleet.map(lambda host: new_key_of(host.node, cluster.timeouts.connect_seconds))
        keys = {
            key.name: (name, key) for name, key in found.items() if key and not isinstance(key, HostError)
        }
        for node, key in keys.values():
            say(f"{node}: {key.name} shows {key.fingerprint}")
            if agree and not agree(f"trust this key of {node}?"):
                raise HostKeyUnknown(node, "its key was not accepted; nothing was recorded for it")
            key.trust()
        if not keys:
            return


def make_folders(cluster: Cluster) -> ClusterHealth:
    """The project folder of every node that can be reached is there; the health of the cluster after that."""
    with Fleet.of(cluster) as fleet:
        fleet.map(lambda host: ask(host, "make_folder", project=host.node.project))
        return examine(fleet, cluster)


def reset(cluster: Cluster) -> dict[str, list[dict[str, Any]] | HostError]:
    """{node: the processes that were ended there, or why it could not be told}.

    Raises StopUnproven with host and pids where something would not end.
    """

    def end(host: Host) -> dict[str, Any]:
        return ask(host, "reset", slot=host.node.slot, grace_seconds=RESET_GRACE_SECONDS)

    with Fleet.of(cluster) as fleet:
        answers = fleet.map(end)
    left = [
        f"{node}: pid {process['pid']} would not end: {process['command']}"
        for node, answer in answers.items()
        if not isinstance(answer, HostError)
        for process in answer["left"]
    ]
    if left:
        raise StopUnproven("\n".join(left))
    return {node: a if isinstance(a, HostError) else a["ended"] for node, a in answers.items()}
