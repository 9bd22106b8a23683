"""Host keys that have to be trusted before a host can be reached."""

from __future__ import annotations

from collections.abc import Callable

from ..cluster.model import Cluster, Node
from ..errors import HostKeyUnknown
from .fleet import Fleet
from .known_hosts import NewKey, UnknownKey
from .ssh import SshHost

HOPS_AT_MOST = 4  # the host itself and the jump hosts before it


def new_key_of(node: Node, connect_seconds: float) -> NewKey | None:
    """Find the key that has to be trusted before the node can be reached, its jump host's first; None where none has.

    Raises HostError for anything else that is in the way.
    """
    if node.transport == "local":
        return None
    host = SshHost(node, connect_seconds)
    try:
        host.open()
    except HostKeyUnknown as error:
        unknown = error.__cause__
        if isinstance(unknown, UnknownKey):
            return NewKey(unknown.name, unknown.key)
        raise
    finally:
        host.close()
    return None


def trust_host_keys(
    cluster: Cluster, say: Callable[[str], None], agree: Callable[[str], bool] | None
) -> None:
    """Record each unknown host key in the user's known_hosts, after `agree` said yes to it; None agrees to all.

    A key that changed is never recorded; that, and any other trouble on the way to a host, is left for the health
    check to report. Raises HostKeyUnknown where `agree` says no.
    """
    fleet = Fleet.of(cluster)
    for _ in range(HOPS_AT_MOST):
        found = fleet.map(
            lambda host: new_key_of(host.node, cluster.timeouts.connect_seconds)
        )
        keys = {}  # by the name in known_hosts: nodes may share a jump host
        for node, key in found.items():
            if isinstance(key, NewKey):
                keys[key.name] = (node, key)
        for node, key in keys.values():
            say(f"{node}: {key.name} shows {key.fingerprint}")
            if agree and not agree(f"trust this key of {node}?"):
                raise HostKeyUnknown(
                    node, "its key was not accepted; nothing was recorded for it"
                )
            key.trust()
        if not keys:
            return
