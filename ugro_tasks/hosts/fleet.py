"""All hosts of a cluster at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from fabric.group import ThreadingGroup

from ..cluster.model import Cluster, Node
from ..errors import HostError, UgroError
from .host import Host, T
from .local import LocalHost
from .ssh import SshHost

E = TypeVar("E", bound=UgroError)


def connect(node: Node, connect_seconds: float) -> Host:
    """Make the host of a node; nothing is contacted yet."""
    if node.transport == "local":
        return LocalHost(node)
    return SshHost(node, connect_seconds)


class Fleet(ThreadingGroup):  # type: ignore[misc]
    """The hosts of a cluster, of whatever kind, in the order of their ranks.

    Fabric's group holds and closes them. What is done on all of them goes through `map`: Fabric's own calls know hosts
    by their addresses, and would take two nodes of one machine for one.
    """

    @classmethod
    def of(cls, cluster: Cluster) -> Fleet:
        """Make the hosts of the cluster's nodes."""
        hosts = [
            connect(node, cluster.timeouts.connect_seconds) for node in cluster.nodes
        ]
        fleet: Fleet = cls.from_connections(hosts)
        return fleet

    def map(self, function: Callable[[Host], T]) -> dict[str, T | HostError]:
        """Call `function(host)` on all hosts at once: {node name: its result or the HostError that it met}.

        Partial failure is data. Any other exception is a bug and is raised once all are done. There is no limit on the
        whole, since an environment may take minutes to build; each wait for a host has one of its own. Ctrl-C ends the
        wait here, and what the threads still ask of a host ends when the fleet is closed.
        """
        errands = [_Errand(host, function) for host in self]
        _run(errands)
        return {errand.host.node.name: errand.outcome(HostError) for errand in errands}

    def each(self, work: Mapping[str, Callable[[Host], T]]) -> dict[str, T | UgroError]:
        """Do the work of each node, all at once: {node name: its result or the UgroError that it met}.

        `work` is by node name, and so are the results, in the same order; a host without work is left
        alone. Otherwise as `map`.
        """
        hosts = {host.node.name: host for host in self}
        errands = [_Errand(hosts[name], function) for name, function in work.items()]
        _run(errands)
        return {errand.host.node.name: errand.outcome(UgroError) for errand in errands}


def _run(errands: Sequence[_Errand[T]]) -> None:
    for errand in errands:
        errand.start()
    for errand in errands:
        errand.join()


class _Errand(threading.Thread, Generic[T]):
    """What is done on one host, in a thread that does not keep the program from ending."""

    def __init__(self, host: Host, function: Callable[[Host], T]) -> None:
        super().__init__(name=f"on {host.node.name}", daemon=True)
        self.host = host
        self._function = function
        self._results: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do it, and keep what comes of it; the thread that waits raises what is to be raised."""
        try:
            self._results.append(self._function(self.host))
        except BaseException as error:  # a thread's edge
            self._error = error

    def outcome(self, expected: type[E]) -> T | E:
        """Give the result or the error, where it is of the expected kind; raises any other exception."""
        if isinstance(self._error, expected):
            return self._error
        if self._error is not None:
            raise self._error
        return self._results[0]
