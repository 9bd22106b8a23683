"""The health of a cluster: the probes of all nodes, turned into checks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from msgspec import Struct

from ..cluster.model import Cluster, Node
from ..errors import HostError, NodesBusy, NotFit, UgroError
from ..hosts.answers import ProbeAnswer, describe_holder
from ..hosts.fleet import Fleet
from ..hosts.nvidia import Gpu
from ..hosts.requests import Asking, ask
from .cluster_checks import COMPARED, judge_all
from .node_checks import Check, judge, rsync_check
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
        return all(node.fit for node in self.nodes) and all(
            check.ok for check in self.across
        )

    @property
    def faults(self) -> list[tuple[str, Check]]:
        """Return (node or "cluster", check) for every failed check."""
        own = [
            (node.node, check)
            for node in self.nodes
            for check in node.checks
            if not check.ok
        ]
        return own + [("cluster", check) for check in self.across if not check.ok]

    def busy(self) -> dict[str, str]:
        """Return {node: its holder, with the remedy for leftovers}."""
        remedies = {
            node: f"\n    {check.fix}"
            for node, check in self.faults
            if check.name == "leftovers"
        }
        return {
            node.node: node.held_by + remedies.get(node.node, "")
            for node in self.nodes
            if node.held_by
        }

    def refusal(self, *, force: bool, late: Collection[str] = ()) -> UgroError | None:
        """Return the reason to refuse a launch on these nodes, NotFit or NodesBusy; None to accept it.

        With `force`, unfit nodes are accepted. The environments of the nodes in `late` do not count,
        because they are rebuilt first.
        """
        if busy := self.busy():
            return NodesBusy(
                "\n".join(f"{node}: {holder}" for node, holder in busy.items())
            )
        faults = [
            (node, check)
            for node, check in self.faults
            if not (node in late and check.name == "environment")
            and not (late and check.name in _SAME)
        ]
        if not faults or (force and all(node.reachable for node in self.nodes)):
            return None
        return NotFit(
            "\n".join(f"{node}: {c.name}: {c.value}\n    {c.fix}" for node, c in faults)
        )

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
    return judge_cluster(
        cluster, probe(fleet, cluster, asking, model, keep_port=keep_port)
    )


def judge_cluster(cluster: Cluster, answers: Answers) -> ClusterHealth:
    """Return the health of the cluster for these answers. Pure, as `judge` is."""
    nodes = tuple(
        _judge_answer(cluster, node, answers.of[node.name]) for node in cluster.nodes
    )
    return ClusterHealth(
        cluster=cluster.name,
        probed_at=answers.probed_at,
        seconds=answers.seconds,
        nodes=nodes,
        across=(*_controller(answers), *judge_all(cluster, *_by_node(answers))),
    )


def _controller(answers: Answers) -> list[Check]:
    """Return the checks of this machine; [] if all is well."""
    return [rsync_check(None, answers.rsync_fault)] if answers.rsync_fault else []


def _judge_answer(
    cluster: Cluster, node: Node, answer: Answer | HostError
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
    return NodeHealth(
        **common,
        reachable=True,
        round_trip_seconds=answer.round_trip_seconds,
        clock_offset_seconds=answer.clock_offset_seconds,
        held_by=describe_holder(facts.holder) if facts.holder else None,
        gpus=facts.cards,
        checks=tuple(judge(cluster, node, facts, answer.clock_offset_seconds)),
        facts=facts,
    )


def _by_node(answers: Answers) -> tuple[dict[str, ProbeAnswer], dict[str, float]]:
    """Return (facts, clock offsets) of the reachable nodes."""
    reached = {
        name: answer
        for name, answer in answers.of.items()
        if isinstance(answer, Answer)
    }
    return (
        {name: answer.facts for name, answer in reached.items()},
        {name: answer.clock_offset_seconds for name, answer in reached.items()},
    )
