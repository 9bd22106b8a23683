"""Host keys to be trusted before a host can be reached."""

from __future__ import annotations

from collections.abc import Callable

from ..cluster.model import Cluster, Node
from ..errors import HostKeyUnknown
from .fleet import Fleet
from .ssh.host import SshHost
from .ssh.known_hosts import NewKey, UnknownKey
from .ssh.way import HOPS_AT_MOST


def new_key_of(node: Node, connect_seconds: float) -> NewKey | None:
    """Return the next unknown key on the way to a node, a jump host's first; None if all are known.

    Raises HostError for any other obstacle.
    """
    if node.is_local:
        return None
    host = SshHost(node, connect_seconds)
    try:
        host.open()
    except HostKeyUnknown as error:
        unknown = error.__cause__
        if isinstance(unknown, UnknownKey):
            return NewKey(unknown)
        raise
    finally:
        host.close()
    return None


def trust_host_keys(
    cluster: Cluster, say: Callable[[str], None], agree: Callable[[str], bool] | None
) -> None:
    """Record unknown host keys in the user's known_hosts, each after `agree`; None agrees to all.

    A changed key is never recorded; it is reported by the health check, like any other trouble on
    the way. Raises HostKeyUnknown if `agree` returns False.
    """
    fleet = Fleet.of(cluster)
    limit = cluster.timeouts.connect_seconds
    for _ in range(HOPS_AT_MOST + 1):
        found = fleet.map(lambda host: new_key_of(host.node, limit))
        # By the name in known_hosts: nodes may share a jump host.
        keys = {}
        for node, key in found.items():
            if isinstance(key, NewKey):
                keys[key.name] = (node, key)
        for node, key in keys.values():
            say(f"{node}: {key.name} shows {key.fingerprint}")
            if agree and not agree(f"trust this key of {node}?"):
                what = "its key was not accepted; nothing was recorded for it"
                raise HostKeyUnknown(node, what)
            key.trust()
        if not keys:
            return
