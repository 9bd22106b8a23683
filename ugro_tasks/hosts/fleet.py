"""All hosts of a cluster, worked on in parallel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from fabric.group import ThreadingGroup

from ..cluster.model import Cluster, Node
from ..errors import HostError, UgroError
from .host import Host, T
from .local import LocalHost
from .ssh.host import SshHost

E = TypeVar("E", bound=UgroError)


def connect(node: Node, connect_seconds: float) -> Host:
    """Make the host of a node, without contacting it yet."""
    if node.is_local:
        return LocalHost(node)
    return SshHost(node, connect_seconds)


class Fleet(ThreadingGroup):  # type: ignore[misc]
    """The hosts of a cluster, of either kind, in the order of their ranks.

    Fabric's group holds and closes them. Parallel work goes through `map` and `each`: Fabric's own
    methods identify hosts by their addresses and would confuse two nodes of one machine.
    """

    @classmethod
    def of(cls, cluster: Cluster) -> Fleet:
        """Make the hosts of the cluster's nodes."""
        limit = cluster.timeouts.connect_seconds
        hosts = [connect(node, limit) for node in cluster.nodes]
        fleet: Fleet = cls.from_connections(hosts)
        return fleet

    def map(self, function: Callable[[Host], T]) -> dict[str, T | HostError]:
        """Call `function(host)` on all hosts in parallel: {node name: its result or its HostError}.

        Partial failure is data. Any other exception is a bug and is raised after all are done.
        There is no time limit on the whole, since an environment may take minutes to build; each
        wait for a host has its own. Ctrl-C ends only the waiting; requests under way end when the
        fleet is closed.
        """
        threads = [_HostThread(host, function) for host in self]
        _run_all(threads)
        return {thread.host.node.name: thread.outcome(HostError) for thread in threads}

    def close(self) -> None:
        """Close all hosts at once: the end of a program of OpenSSH takes a moment."""
        threads = [_HostThread(host, lambda host: host.close()) for host in self]
        _run_all(threads)
        for thread in threads:
            thread.outcome(HostError)

    def each(self, work: Mapping[str, Callable[[Host], T]]) -> dict[str, T | UgroError]:
        """Call each host's own function in `work`: {node name: its result or its UgroError}.

        `work` is by node name, and so are the results, in the same order; other hosts are left
        alone. Otherwise as `map`.
        """
        hosts = {host.node.name: host for host in self}
        threads = []
        for name, function in work.items():
            threads.append(_HostThread(hosts[name], function))
        _run_all(threads)
        return {thread.host.node.name: thread.outcome(UgroError) for thread in threads}


def _run_all(threads: Sequence[_HostThread[T]]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class _HostThread(threading.Thread, Generic[T]):
    """Work on one host, in a thread that does not keep the program alive."""

    def __init__(self, host: Host, function: Callable[[Host], T]) -> None:
        super().__init__(name=f"on {host.node.name}", daemon=True)
        self.host = host
        self._function = function
        self._results: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do the work and store the result or the exception for the waiting thread."""
        try:
            self._results.append(self._function(self.host))
        # The edge of a thread: the waiting thread raises it.
        except BaseException as error:
            self._error = error

    def outcome(self, expected: type[E]) -> T | E:
        """Return the result, or an error of the expected type; raises any other exception."""
        if isinstance(self._error, expected):
            return self._error
        if self._error is not None:
            raise self._error
        return self._results[0]
