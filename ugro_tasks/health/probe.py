"""Probing all nodes at once, one round trip each.

The answers have all facts for `report.py`, which is not imported here.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from msgspec import Struct

from ..cluster.model import Cluster, Node
from ..environments.recipe import place_of
from ..errors import HostError
from ..hosts import operations
from ..hosts.answers import ProbeAnswer
from ..hosts.fleet import Fleet
from ..hosts.host import Host
from ..hosts.operations import Meetings, Visit
from ..hosts.requests import Asking, ask
from ..hosts.rsync import rsync_fault_here

PORT_SECONDS = 4.0  # for master and workers to find each other
PROBE_SECONDS = 90.0  # the first import of torch on a slow disk takes long
PEERS_VISITED = 4  # by each node, besides the master


class Answers(Struct, frozen=True, kw_only=True):
    """The answers of all nodes, or their errors."""

    probed_at: float
    seconds: float
    of: dict[str, Answer | HostError]
    rsync_fault: str | None = None  # of this machine's own rsync


def probe(
    fleet: Fleet,
    cluster: Cluster,
    asking: Asking = ask,
    model: Mapping[str, Any] | None = None,
    *,
    keep_port: bool = False,
) -> Answers:
    """Ask all nodes for their facts.

    `asking` sends a request: `ask`, or the method of an open conversation. Each node looks for the
    files of `model`, see `model_to_look_for`. With `keep_port` the master keeps the port it found,
    for a launch in the same conversation.
    """
    begun = time.monotonic()
    probed_at = time.time()
    nonce = secrets.token_hex(8)
    salt = secrets.randbits(16)
    with ThreadPoolExecutor(1) as beside:
        here = None
        if any(not node.is_local for node in cluster.nodes):
            here = beside.submit(rsync_fault_here)
        answers = fleet.map(
            lambda host: _probe(host, cluster, nonce, salt, asking, model, keep_port)
        )
    return Answers(
        probed_at=probed_at,
        seconds=time.monotonic() - begun,
        of=answers,
        rsync_fault=here.result() if here else None,
    )


class Answer(Struct, frozen=True):
    """The facts of a node, and the offset of its clock from this machine's."""

    facts: ProbeAnswer
    round_trip_seconds: float
    clock_offset_seconds: float


def _probe(
    host: Host,
    cluster: Cluster,
    nonce: str,
    salt: int,
    asking: Asking,
    model: Mapping[str, Any] | None,
    keep_port: bool,
) -> Answer:
    node = host.node
    master = cluster.master
    alone = len(cluster.nodes) == 1
    sent = time.time()
    request = operations.Probe(
        interpreter=node.environment.interpreter(node.project),
        project=node.project,
        slot=node.slot,
        wants_cuda=node.gpu_model is not None,
        role="master" if node.rank == 0 else "worker",
        address=node.address,
        master=master.address,
        port=cluster.master_port,
        port_seconds=PORT_SECONDS,
        nonce=nonce,
        keep_port=keep_port,
        peers=None if alone else _meetings(cluster, node, salt),
        model=model,
        environment=place_of(node),
    )
    facts = asking(host, request, timeout_seconds=PROBE_SECONDS)
    received = time.time()
    # The node's clock at the middle of its work, less ours at the middle of the round trip.
    offset = (facts.started + facts.ended) / 2 - (sent + received) / 2
    travelled = (received - sent) - (facts.ended - facts.started)
    if abs(offset) <= travelled / 2:
        offset = 0.0  # within the uncertainty of this measurement
    return Answer(facts, host.round_trip_seconds, offset)


def _meetings(cluster: Cluster, node: Node, salt: int) -> Meetings:
    visits = {}
    for peer in visited_by(cluster, node):
        visits[peer.name] = Visit(address=peer.address, salt=salt + peer.rank)
    visitors = [
        other.name for other in cluster.nodes if node in visited_by(cluster, other)
    ]
    return Meetings(
        name=node.name, salt=salt + node.rank, visits=visits, visited_by=visitors
    )


def visited_by(cluster: Cluster, node: Node) -> list[Node]:
    """Return the nodes to try for the check `peers`: the next few and the master, or all others."""
    others = [*cluster.nodes[node.rank + 1 :], *cluster.nodes[: node.rank]]
    visited = others[:PEERS_VISITED]
    if cluster.master in others[PEERS_VISITED:]:
        visited.append(cluster.master)
    return visited
