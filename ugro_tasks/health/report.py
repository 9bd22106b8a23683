"""The health of a cluster: the probes of all nodes, turned into checks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from msgspec import Struct

from ..cluster.model import Cluster, Node
from ..errors import HostError, NodesBusy, NotFit, UgroError
from ..hosts.answers import ProbeAnswer, describe_holder
from ..hosts.fleet import Fleet
from ..hosts.nvidia import Gpu
from ..hosts.requests import Asking, ask
from .cluster_checks import COMPARED, judge_all
from .node_checks import Check, judge, rsync_check, rsync_connection_check
from .probe import Answer, Answers, probe

_SAME = {f"same {name}" for name in COMPARED}  # checks across environments


class NodeHealth(Struct, frozen=True, kw_only=True):
    """The health of a node."""

    node: str
    rank: int
    address: str
    reachable: bool
    checks: tuple[Check, ...]
    round_trip_seconds: float | None = None
    clock_offset_seconds: float | None = None
    held_by: str | None = None
    gpus: tuple[Gpu, ...] = ()
    # None if it was not reached.
    facts: ProbeAnswer | None = None

    @property
    def fit(self) -> bool:
        """Return whether every check passed."""
        return all(check.ok for check in self.checks)


class ClusterHealth(Struct, frozen=True, kw_only=True):
    """The health of a cluster."""

    cluster: str
    probed_at: float
    seconds: float
    nodes: tuple[NodeHealth, ...]
    across: tuple[Check, ...]

    @property
    def fit(self) -> bool:
        """Return whether every check on every node and across them passed."""
        return not self.faults

    @property
    def faults(self) -> list[tuple[str, Check]]:
        """Return (node or "cluster", check) for every failed check."""
        checks = [(node.node, check) for node in self.nodes for check in node.checks]
        checks += [("cluster", check) for check in self.across]
        return [(name, check) for name, check in checks if not check.ok]

    def busy(self) -> dict[str, str]:
        """Return {node: its holder, with the remedy for leftovers}."""
        held = {node.node: node.held_by for node in self.nodes if node.held_by}
        for node, check in self.faults:
            if check.name == "leftovers" and node in held:
                held[node] += f"\n    {check.fix}"
        return held

    def refusal(self, *, force: bool, late: Collection[str] = ()) -> UgroError | None:
        """Return the reason to refuse a launch on these nodes, NotFit or NodesBusy; None for none.

        With `force`, unfit nodes are accepted. The environments of the nodes in `late` do not
        count, because they are rebuilt first.
        """
        busy = [f"{node}: {holder}" for node, holder in self.busy().items()]
        if busy:
            return NodesBusy("\n".join(busy))
        words = []
        for node, check in self.faults:
            is_own = check.name == "environment" and node in late
            is_shared = check.name in _SAME and len(late) > 0
            if is_own or is_shared:
                continue
            words.append(f"{node}: {check.name}: {check.value}\n    {check.fix}")
        forced = force and all(node.reachable for node in self.nodes)
        if not words or forced:
            return None
        return NotFit("\n".join(words))

    def facts(self) -> dict[str, ProbeAnswer]:
        """Return {node: its facts} of the reachable nodes."""
        return {node.node: node.facts for node in self.nodes if node.facts is not None}


def examine(
    fleet: Fleet,
    cluster: Cluster,
    asking: Asking = ask,
    model: Mapping[str, Any] | None = None,
    *,
    keep_port: bool = False,
) -> ClusterHealth:
    """Probe all nodes and judge their answers; see `probe`."""
    answers = probe(fleet, cluster, asking, model, keep_port=keep_port)
    return judge_cluster(cluster, answers)


def judge_cluster(
    cluster: Cluster, answers: Answers, rsync: Mapping[str, str] = MappingProxyType({})
) -> ClusterHealth:
    """Return the health of the cluster for these answers.

    `rsync` says why rsync does not get to a node: {node: words}.
    """
    nodes = []
    for node in cluster.nodes:
        trouble = rsync.get(node.name)
        nodes.append(_judge_answer(cluster, node, answers.of[node.name], trouble))
    facts, clock_offsets = _by_node(answers)
    across = judge_all(cluster, facts, clock_offsets)
    return ClusterHealth(
        cluster=cluster.name,
        probed_at=answers.probed_at,
        seconds=answers.seconds,
        nodes=tuple(nodes),
        across=(*_controller(answers), *across),
    )


def _controller(answers: Answers) -> list[Check]:
    """Return the checks of this machine; [] if all is well."""
    if not answers.rsync_fault:
        return []
    return [rsync_check(None, answers.rsync_fault)]


def _judge_answer(
    cluster: Cluster,
    node: Node,
    answer: Answer | HostError,
    rsync_trouble: str | None,
) -> NodeHealth:
    common: dict[str, Any] = {
        "node": node.name,
        "rank": node.rank,
        "address": node.address,
    }
    if isinstance(answer, HostError):
        check = Check(name="reachable", ok=False, value=answer.what, fix=answer.fix)
        return NodeHealth(**common, reachable=False, checks=(check,))
    facts = answer.facts
    checks = [*judge(cluster, node, facts, answer.clock_offset_seconds)]
    if rsync_trouble:
        checks.append(rsync_connection_check(rsync_trouble))
    return NodeHealth(
        **common,
        reachable=True,
        round_trip_seconds=answer.round_trip_seconds,
        clock_offset_seconds=answer.clock_offset_seconds,
        held_by=describe_holder(facts.holder) if facts.holder else None,
        gpus=facts.cards,
        checks=tuple(checks),
        facts=facts,
    )


def _by_node(answers: Answers) -> tuple[dict[str, ProbeAnswer], dict[str, float]]:
    """Return (facts, clock offsets) of the reachable nodes."""
    facts: dict[str, ProbeAnswer] = {}
    clock_offsets: dict[str, float] = {}
    for name, answer in answers.of.items():
        if isinstance(answer, Answer):
            facts[name] = answer.facts
            clock_offsets[name] = answer.clock_offset_seconds
    return facts, clock_offsets
