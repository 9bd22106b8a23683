"""The first time on a cluster: host keys and folders."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from ..cluster.model import Cluster, Node
from ..errors import HostError
from ..hosts.fleet import Fleet
from ..hosts.operations import MakeFolder
from ..hosts.requests import ask
from ..hosts.ssh.known_hosts import NewKey
from ..hosts.trust import new_key_of, trust_host_keys
from ..jobs.experiments import Experiments
from .report import ClusterHealth, examine


class FirstTime(Struct, frozen=True, kw_only=True):
    """What `init` would do on a node."""

    node: str
    project: str  # the folder that is made where it is not there
    new_key: str | None  # the host's key that would have to be trusted first
    unreached: str | None = None  # why it could not be asked


def prepare(
    cluster: Cluster,
    agree: Callable[[str], bool] | None,
    tell: Callable[[str], None],
) -> ClusterHealth:
    """Record unknown host keys, make the folders, and return the health of the cluster after that.

    `agree` and `tell` as in `trust_host_keys`. Raises HostKeyUnknown, and RecordError for a folder on this machine.
    """
    Experiments(cluster.experiments).make_folder()
    trust_host_keys(cluster, tell, agree)
    return make_folders(cluster)


def make_folders(cluster: Cluster) -> ClusterHealth:
    """Create the project folder on every reachable node; return the health after that."""
    with Fleet.of(cluster) as fleet:
        fleet.map(lambda host: ask(host, MakeFolder(project=host.node.project)))
        return examine(fleet, cluster)


def first_time(cluster: Cluster) -> list[FirstTime]:
    """Return what `prepare` would do on each node, and do nothing."""
    patience = cluster.timeouts.connect_seconds
    with Fleet.of(cluster) as fleet:
        answers = fleet.map(lambda host: new_key_of(host.node, patience))
    return [_first_time(node, answers[node.name]) for node in cluster.nodes]


def _first_time(node: Node, answer: NewKey | HostError | None) -> FirstTime:
    if isinstance(answer, HostError):
        return FirstTime(
            node=node.name, project=node.project, new_key=None, unreached=answer.text
        )
    new_key = f"{answer.name} {answer.fingerprint}" if answer else None
    return FirstTime(node=node.name, project=node.project, new_key=new_key)
