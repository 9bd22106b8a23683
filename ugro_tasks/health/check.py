"""The health of a cluster as it is now: its nodes are asked, what they say is judged, and kept where that is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..cluster.model import Cluster
from ..errors import HostError
from ..hosts.fleet import Fleet
from ..hosts.host import Host
from ..hosts.rsync_trial import rsync_trouble
from ..loading import loading
from .probe import Answers, probe

if TYPE_CHECKING:  # it is loaded while the nodes are waited for
    from .report import ClusterHealth


def check(cluster: Cluster, *, deep: bool = False) -> ClusterHealth:
    """Ask all nodes, and judge what they say.

    rsync's own connection is tried where it never worked, with `deep` everywhere.
    """
    with Fleet.of(cluster) as fleet, loading("health.report"):
        answers = probe(fleet, cluster)
        rsync = _rsync_troubles(fleet, answers, anew=deep)
    from .report import judge_cluster

    return judge_cluster(cluster, answers, rsync)


def _rsync_troubles(fleet: Fleet, answers: Answers, *, anew: bool) -> dict[str, str]:
    """Return {node: why rsync does not get there}."""

    def trouble(host: Host) -> str | None:
        answer = answers.of[host.node.name]
        if isinstance(answer, HostError) or not answer.facts.rsync:
            return None
        return rsync_trouble(host, anew=anew)

    if answers.rsync_fault:
        return {}
    found = fleet.map(trouble)
    return {node: str(words) for node, words in found.items() if words}


def keep(cluster: Cluster, found: ClusterHealth) -> None:
    """Write the health to the experiments folder, and what is wrong to health.log. Raises RecordError."""
    # Late: the nodes are asked first.
    from ..jobs.experiments import Experiments
    from ..jobs.log import open_log

    experiments = Experiments(cluster.experiments)
    experiments.make_folder()
    experiments.save_cluster_state(found)
    log = open_log("health", cluster)
    log.info(
        "%s: %s in %.1f s",
        cluster.name,
        "fit" if found.fit else "not fit",
        found.seconds,
    )
    for node, fault in found.faults:
        log.warning("%s: %s: %s", node, fault.name, fault.value)
