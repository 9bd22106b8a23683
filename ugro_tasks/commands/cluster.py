"""health, init, reset: tasks about the machines."""

from __future__ import annotations

from typing import Any

from ..errors import HostError, NotFit
from .common import CLUSTER_HELP, JSON_HELP, NODES_HELP, loading, task


@task(
    help={
        "deep": "also time an all-reduce across the nodes (launches a short job)",
        "nodes": NODES_HELP,
        "cluster": CLUSTER_HELP,
        "verbose": "show every check, not only what failed",
        "json": JSON_HELP,
    }
)
def health(
    _context: Any,
    deep: bool = False,
    nodes: str | None = None,
    cluster: str | None = None,
    verbose: bool = False,
    json: bool = False,
) -> None:
    """Check every node, and say what is wrong and how it is mended."""
    from .. import display
    from ..applog import open_log
    from ..cluster_file import load_cluster
    from ..experiments import Experiments
    from ..hosts import Fleet
    from ..probes import probe

    chosen = load_cluster(cluster).select(nodes)
    with (
        display.waiting(f"probing {len(chosen.nodes)} nodes"),
        Fleet.of(chosen) as fleet,
        loading("health", "display.nodes"),
    ):
        answers = probe(fleet, chosen)
    from ..health import judge_cluster

    found = judge_cluster(chosen, answers)
    Experiments(chosen.experiments).save_cluster_state(found)
    log = open_log("health", chosen)
    log.info("%s: %s in %.1f s", chosen.name, "fit" if found.fit else "not fit", found.seconds)
    for node, check in found.faults:
        log.warning("%s: %s: %s", node, check.name, check.value)
    measured = None
    if deep and found.fit:
        from .. import allreduce

        with display.waiting("timing an all-reduce across the nodes"):
            measured = allreduce.measure(chosen)
    display.health(found, measured, verbose=verbose, as_json=json)
    if not found.fit:
        raise NotFit(f"{len(found.faults)} checks failed" + (", so nothing was timed" if deep else ""))


@task(
    help={
        "accept-new-host-keys": "record unknown host keys without asking",
        "nodes": NODES_HELP,
        "cluster": CLUSTER_HELP,
    }
)
def init(
    _context: Any, accept_new_host_keys: bool = False, nodes: str | None = None, cluster: str | None = None
) -> None:
    """Prepare a cluster for the first time: host keys, login, folders, and what is missing."""
    from .. import display, setup
    from ..cluster_file import load_cluster
    from ..experiments import Experiments

    chosen = load_cluster(cluster).select(nodes)
    Experiments(chosen.experiments).make_folder()
    setup.trust_host_keys(chosen, display.note, display.agree if not accept_new_host_keys else None)
    found = setup.make_folders(chosen)
    display.health(found, None, verbose=False, as_json=False)
    if not found.fit:
        raise NotFit(f"{len(found.faults)} checks failed; mend them, then: inv health")


@task(help={"nodes": NODES_HELP, "cluster": CLUSTER_HELP, "json": JSON_HELP})
def reset(_context: Any, nodes: str | None = None, cluster: str | None = None, json: bool = False) -> None:
    """End everything of UGRO on the nodes, whoever started it, and free their leases."""
    from .. import display, setup
    from ..cluster_file import load_cluster

    ended = setup.reset(load_cluster(cluster).select(nodes))
    display.resets(ended, as_json=json)
    if unreached := [answer for answer in ended.values() if isinstance(answer, HostError)]:
        raise unreached[0]
