"""Is a cluster fit to train? What the probes saw, judged: checks, each with its cause and its fix."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from .checks import Check, judge
from .cluster import Cluster, Node
from .comparisons import judge_all, visited_by
from .errors import HostError
from .hosts import Fleet, Host
from .nvidia import parse_gpus
from .recipes import place_of
from .remote import ask, describe_holder

PORT_SECONDS = 4.0  # how long master and workers look for each other
PROBE_SECONDS = 90.0  # the first import of torch on a slow disk takes that long


class NodeHealth(Struct, frozen=True, kw_only=True):
    """A node as its probe found it."""

    node: str
    rank: int
    address: str
    reachable: bool
    checks: tuple[Check, ...]
    round_trip_seconds: float | None = None
    clock_offset_seconds: float | None = None
    held_by: str | None = None
    gpus: tuple[dict[str, str], ...] = ()
    facts: dict[str, Any] = {}

    @property
    def fit(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)


class ClusterHealth(Struct, frozen=True, kw_only=True):
    """A cluster as its probes found it."""

    cluster: str
    probed_at: float
    seconds: float
    nodes: tuple[NodeHealth, ...]
    across: tuple[Check, ...]

    @property
    def fit(self) -> bool:
        """Whether every check on every node and across them passed."""
        return all(node.fit for node in self.nodes) and all(check.ok for check in self.across)

    @property
    def faults(self) -> list[tuple[str, Check]]:
        """(node or "cluster", check) of everything that failed."""
        own = [(node.node, check) for node in self.nodes for check in node.checks if not check.ok]
        return own + [("cluster", check) for check in self.across if not check.ok]

    def busy(self) -> dict[str, str]:
        """{node: who holds it, and what to do where nobody supervises that any more}."""
        remedies = {node: f"\n    {check.fix}" for node, check in self.faults if check.name == "leftovers"}
        return {node.node: node.held_by + remedies.get(node.node, "") for node in self.nodes if node.held_by}

    def facts(self) -> dict[str, Mapping[str, Any]]:
        """What each reachable node told of itself."""
        return {node.node: node.facts for node in self.nodes if node.reachable}


def examine(
    fleet: Fleet,
    cluster: Cluster,
    asking: Callable[..., dict[str, Any]] = ask,
    model: Mapping[str, Any] | None = None,
) -> ClusterHealth:
    """Probe all nodes at once, one round trip each, and judge what they say.

    `asking` is how a node is asked: `remote.ask`, or a conversation that goes on. `model` is looked for on each
    node, see `shares.model_to_look_for`.
    """
    begun, probed_at = time.monotonic(), time.time()
    nonce, salt = secrets.token_hex(8), secrets.randbits(16)
    answers = fleet.map(lambda host: _probe(host, cluster, nonce, salt, asking, model))
    nodes = tuple(_judge_answer(cluster, node, answers[node.name]) for node in cluster.nodes)
    return ClusterHealth(
        cluster=cluster.name,
        probed_at=probed_at,
        seconds=time.monotonic() - begun,
        nodes=nodes,
        across=tuple(judge_all(cluster, *_by_node(nodes))),
    )


class _Answer(Struct, frozen=True):
    facts: dict[str, Any]
    round_trip_seconds: float
    clock_offset_seconds: float


def _probe(
    host: Host,
    cluster: Cluster,
    nonce: str,
    salt: int,
    asking: Callable[..., dict[str, Any]],
    model: Mapping[str, Any] | None,
) -> _Answer:
    node, master = host.node, cluster.master
    alone = len(cluster.nodes) == 1
    sent = time.time()
    facts = asking(
        host,
        "probe",
        timeout_seconds=PROBE_SECONDS,
        interpreter=node.environment.interpreter(node.project),
        project=node.project,
        slot=node.slot,
        wants_cuda=node.gpu_model is not None,
        role="master" if node.rank == 0 else "worker",
        address=node.address,
        master=master.address,
        port=cluster.master_port,
        workers=0 if alone else len(cluster.nodes) - 1,
        port_seconds=PORT_SECONDS,
        nonce=nonce,
        peers=None if alone else _meetings(cluster, node, salt),
        model=model,
        environment=place_of(node),
    )
    received = time.time()
    # The node's clock at the middle of its own work against ours at the middle of the whole.
    offset = (facts["started"] + facts["ended"]) / 2 - (sent + received) / 2
    uncertain = (received - sent - (facts["ended"] - facts["started"])) / 2
    return _Answer(facts, host.round_trip_seconds, 0.0 if abs(offset) <= uncertain else offset)


def _meetings(cluster: Cluster, node: Node, salt: int) -> dict[str, Any]:
    """Whom a node visits, and who visits it; the ports are chosen there, from the range of its kernel."""
    visits = {
        peer.name: {"address": peer.address, "salt": salt + peer.rank} for peer in visited_by(cluster, node)
    }
    visitors = [other.name for other in cluster.nodes if node in visited_by(cluster, other)]
    return {"name": node.name, "salt": salt + node.rank, "visits": visits, "visited_by": visitors}


def _judge_answer(cluster: Cluster, node: Node, answer: _Answer | HostError) -> NodeHealth:
    common: dict[str, Any] = {"node": node.name, "rank": node.rank, "address": node.address}
    if isinstance(answer, HostError):
        check = Check(name="reachable", ok=False, value=answer.what, fix=answer.fix)
        return NodeHealth(**common, reachable=False, checks=(check,))
    facts, holder = answer.facts, _holder(answer.facts)
    return NodeHealth(
        **common,
        reachable=True,
        round_trip_seconds=answer.round_trip_seconds,
        clock_offset_seconds=answer.clock_offset_seconds,
        held_by=describe_holder(holder) if holder else None,
        gpus=parse_gpus(facts["gpus"]["stdout"]),
        checks=tuple(judge(cluster, node, facts, answer.clock_offset_seconds)),
        facts=facts,
    )


def _holder(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The lease's holder, or an orphan with a token; {} where the node is free."""
    holder: dict[str, Any] = facts["lease"] or next(iter(facts["jobs"]), {})
    return holder


def _by_node(nodes: tuple[NodeHealth, ...]) -> tuple[dict[str, Mapping[str, Any]], dict[str, float]]:
    """(facts, clock offsets) of the nodes that were reached."""
    reached = [node for node in nodes if node.reachable]
    return (
        {node.node: node.facts for node in reached},
        {node.node: node.clock_offset_seconds or 0.0 for node in reached},
    )
