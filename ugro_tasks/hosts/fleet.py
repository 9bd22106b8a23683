"""All hosts of a cluster at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fabric.exceptions import GroupException
from fabric.group import ThreadingGroup

from ..cluster.model import Cluster, Node
from ..errors import HostError
from .host import Host, T
from .local import LocalHost
from .ssh import SshHost


def connect(node: Node, connect_seconds: float) -> Host:
    """The host of a node; nothing is contacted yet."""
    return LocalHost(node) if node.transport == "local" else SshHost(node, connect_seconds)


# ---- a group of hosts ----


class Fleet(ThreadingGroup):  # type: ignore[misc]
    """All hosts of a cluster, in the order of their ranks."""

    @classmethod
    def of(cls, cluster: Cluster) -> Fleet:
        """The hosts of the cluster's nodes."""
        hosts = [connect(node, cluster.timeouts.connect_seconds) for node in cluster.nodes]
        fleet: Fleet = cls.from_connections(hosts)
        return fleet

    def map(self, function: Callable[[Host], T]) -> dict[str, T | HostError]:
        """`function(host)` on all hosts at once: {node name: its result or the HostError that it met}.

        Partial failure is data. Any other exception is a bug and is raised.
        """
        try:
            results: Mapping[Host, Any] = self._do("call", function)
        except GroupException as group:
            results = group.result
        for result in results.values():
            if isinstance(result, BaseException) and not isinstance(result, HostError):
                raise result
        return {host.node.name: results[host] for host in self}
