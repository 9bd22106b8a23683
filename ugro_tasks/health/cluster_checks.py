"""Checks across a cluster, made from the facts of several nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ..cluster.model import Cluster, Node
from ..environments.recipe import minor_of
from ..hosts.answers import Peers, ProbeAnswer
from .node_checks import CLOCK_MAX_SECONDS, Check
from .probe import visited_by

Facts = Mapping[str, ProbeAnswer]  # by node, of reachable nodes


def judge_all(
    cluster: Cluster, facts: Facts, clock_offsets: Mapping[str, float]
) -> Iterator[Check]:
    """Yield the checks across the nodes: equal versions, clocks, MTUs, and the ways between them.

    Both mappings are by node. Pure.
    """
    if len(facts) < 2:
        return
    yield from _machines(cluster, facts)
    yield from _versions(facts)
    yield _clock_spread(clock_offsets)
    yield from _mtus(cluster, facts)
    yield from _peers(cluster, facts, clock_offsets)


def _versions(facts: Facts) -> Iterator[Check]:
    for name, version_of in COMPARED.items():
        versions = {node: version_of(told) for node, told in facts.items()}
        known = {version for version in versions.values() if version}
        if not known:
            continue
        same = len(known) == 1
        value = ", ".join(known)
        if not same:
            words = [
                f"{node} {version or 'none'}" for node, version in versions.items()
            ]
            value = ", ".join(words)
        yield Check(
            name=f"same {name}",
            ok=same,
            value=value,
            fix=_FIXES.get(name, "install the same versions everywhere"),
        )


def _clock_spread(clock_offsets: Mapping[str, float]) -> Check:
    offsets = list(clock_offsets.values())
    spread = max(offsets) - min(offsets)
    return Check(
        name="clock spread",
        ok=spread <= CLOCK_MAX_SECONDS,
        value=f"{spread:.1f} s",
        fix="let all machines keep time: sudo timedatectl set-ntp true",
    )


def _mtus(cluster: Cluster, facts: Facts) -> Iterator[Check]:
    mtus: dict[str, int] = {}
    for node in cluster.nodes:
        mtu = _mtu(node, facts.get(node.name))
        if mtu:
            mtus[node.name] = mtu
    if len(set(mtus.values())) > 1:
        yield Check(
            name="same MTU",
            ok=False,
            value=", ".join(f"{name} {mtu}" for name, mtu in mtus.items()),
            fix="give all the same: sudo ip link set dev <interface> mtu 1500",
        )


def _python(facts: ProbeAnswer) -> str | None:
    return minor_of(facts.torch.python)


def _torch(facts: ProbeAnswer) -> str | None:
    return facts.torch.torch


def _cuda(facts: ProbeAnswer) -> str | None:
    if facts.torch.cuda:
        return facts.torch.cuda
    return "none" if facts.torch.torch else None


def _pixi(facts: ProbeAnswer) -> str | None:
    """Return the pixi version; only environments made by pixi have one."""
    return facts.environment.version if facts.environment else None


COMPARED: dict[str, Callable[[ProbeAnswer], str | None]] = {
    "Python": _python,
    "torch": _torch,
    "CUDA": _cuda,
    "pixi": _pixi,  # an older one may not read the lock of a newer one
}
_FIXES = {"pixi": "on those that are behind: pixi self-update"}


def _mtu(node: Node, facts: ProbeAnswer | None) -> int | None:
    """Return the MTU of the interface with the node's address.

    None if there is no such interface, or if the node is this machine.
    """
    if facts is None or node.is_local:
        return None
    interface = facts.interface_of(node.address)
    return facts.interfaces[interface].mtu if interface else None


def _machines(cluster: Cluster, facts: Facts) -> Iterator[Check]:
    """Yield a fault for two nodes on one machine and slot, known by two of its addresses, say.

    They would want one GPU and one lease twice.
    """
    known: dict[tuple[str, str], str] = {}
    for node in cluster.nodes:
        found = facts.get(node.name)
        if found is None or found.home is None or not found.home.identity:
            continue
        first = known.setdefault((found.home.identity, node.slot), node.name)
        if first != node.name:
            yield Check(
                name="machines",
                ok=False,
                value=f"{first} and {node.name} are the same machine",
                fix=f"give {node.name} the address of another machine in the cluster file, or take it out",
            )


def _peers(
    cluster: Cluster, facts: Facts, clock_offsets: Mapping[str, float]
) -> Iterator[Check]:
    """Check that the nodes reach each other on any port, as gloo and NCCL do, with full packets."""
    tried = False
    obstacles: list[tuple[str, str]] = []
    for a, b in _visits(cluster, facts):
        mine = facts[a.name]
        others = facts[b.name]
        offset = clock_offsets[a.name] - clock_offsets[b.name]
        if not _met(b, mine, others, offset):
            continue
        tried = True
        obstacle = _obstacle(a, b, mine.peers, others.peers)
        if obstacle:
            obstacles.append(obstacle)
    if tried:
        # One obstacle may be in the way of several pairs.
        values = dict.fromkeys(value for value, _ in obstacles)
        fixes = dict.fromkeys(fix for _, fix in obstacles)
        yield Check(
            name="peers",
            ok=not obstacles,
            value="; ".join(values) or "the nodes reach each other",
            fix="; ".join(fixes),
        )


def _visits(cluster: Cluster, facts: Facts) -> Iterator[tuple[Node, Node]]:
    for a in cluster.nodes:
        for b in visited_by(cluster, a):
            if a.name in facts and b.name in facts:
                yield a, b


def _met(
    b: Node, facts: ProbeAnswer, others_facts: ProbeAnswer, offset_seconds: float
) -> bool:
    """Return whether `b` listened during the other's attempt, and on the port tried."""
    mine = facts.peers
    others = others_facts.peers
    if mine is None or others is None or not others.listens:
        return False
    reached = mine.reached.get(b.name)
    if reached is None or reached.tried != others.port:
        return False
    apart = abs(facts.started - others_facts.started - offset_seconds)
    return reached.ok or apart < mine.seconds / 2


def _obstacle(
    a: Node, b: Node, mine: Peers | None, others: Peers | None
) -> tuple[str, str] | None:
    """Return (fault, fix) of the way from `a` to `b`; None if it is free or was not tried."""
    if mine is None or others is None:
        return None
    reached = mine.reached[b.name]
    if reached.ok and a.name in others.heard:
        return None
    if reached.ok or reached.stalled:
        return (
            f"large packets between {' and '.join(sorted((a.name, b.name)))} are lost",
            "a switch or tunnel between them passes less than the MTU of their interfaces: "
            "sudo ip link set dev <interface> mtu 1500 on both, or less where a VPN is in between",
        )
    return (
        f"{a.name} does not reach {b.name} on port {reached.tried}: {reached.error}",
        f"let {b.name} take connections from {a.name}, on all ports (gloo and NCCL choose theirs freely): "
        f"sudo ufw allow from {a.address}",
    )
