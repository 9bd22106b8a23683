"""Is a cluster fit to train? What the probes saw, judged: checks, each with its cause and its fix."""

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

_SAME = {f"same {name}" for name in COMPARED}  # across nodes, of their environments


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
    gpus: tuple[Gpu, ...] = ()
    # What it told of itself; None where it was not reached.
    facts: ProbeAnswer | None = None

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
        return all(node.fit for node in self.nodes) and all(
            check.ok for check in self.across
        )

    @property
    def faults(self) -> list[tuple[str, Check]]:
        """(node or "cluster", check) of everything that failed."""
        own = [
            (node.node, check)
            for node in self.nodes
            for check in node.checks
            if not check.ok
        ]
        return own + [("cluster", check) for check in self.across if not check.ok]

    def busy(self) -> dict[str, str]:
        """{node: who holds it, and what to do where nobody supervises that any more}."""
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
        """Why a launch on these nodes is refused: NodesBusy, NotFit; None where it is not.

        `force`: nodes that are not fit are taken. `late`: of these the environment is rebuilt first.
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
        """What each reachable node told of itself."""
        return {node.node: node.facts for node in self.nodes if node.facts is not None}


def examine(
    fleet: Fleet,
    cluster: Cluster,
    asking: Asking = ask,
    model: Mapping[str, Any] | None = None,
    *,
    keep_port: bool = False,
) -> ClusterHealth:
    """Probe all nodes and judge what they say; see `probe`."""
    return judge_cluster(
        cluster, probe(fleet, cluster, asking, model, keep_port=keep_port)
    )


def judge_cluster(cluster: Cluster, answers: Answers) -> ClusterHealth:
    """What the answers of the cluster's nodes mean."""
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
    """What is to be said of this machine: nothing where all is well."""
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
    """Give (facts, clock offsets) of the nodes that were reached."""
    reached = {
        name: answer
        for name, answer in answers.of.items()
        if isinstance(answer, Answer)
    }
    return (
        {name: answer.facts for name, answer in reached.items()},
        {name: answer.clock_offset_seconds for name, answer in reached.items()},
    )
