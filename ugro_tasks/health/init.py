"""The first time on a cluster: folders."""

from __future__ import annotations

from ..cluster.model import Cluster
from ..hosts.fleet import Fleet
from ..hosts.operations import MakeFolder
from ..hosts.requests import ask
from .report import ClusterHealth, examine


def make_folders(cluster: Cluster) -> ClusterHealth:
    """The project folder of every node that can be reached is there; the health of the cluster after that."""
    with Fleet.of(cluster) as fleet:
        fleet.map(lambda host: ask(host, MakeFolder(project=host.node.project)))
        return examine(fleet, cluster)
