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
    for name, value in COMPARED.items():
        values = {node: value(told) for node, told in facts.items()}
        known = {v for v in values.values() if v}
        if known:
            yield Check(
                name=f"same {name}",
                ok=len(known) == 1,
                value=known.pop()
                if len(known) == 1
                else ", ".join(f"{n} {v or 'none'}" for n, v in values.items()),
                fix=_FIXES.get(name, "install the same versions everywhere"),
            )
    offsets = list(clock_offsets.values())
    yield Check(
        name="clock spread",
        ok=max(offsets) - min(offsets) <= CLOCK_MAX_SECONDS,
        value=f"{max(offsets) - min(offsets):.1f} s",
        fix="let all machines keep time: sudo timedatectl set-ntp true",
    )
    mtus = {
        node.name: mtu
        for node in cluster.nodes
        if (mtu := _mtu(node, facts.get(node.name)))
    }
    if len(set(mtus.values())) > 1:
        yield Check(
            name="same MTU",
            ok=False,
            value=", ".join(f"{name} {mtu}" for name, mtu in mtus.items()),
            fix="give all the same: sudo ip link set dev <interface> mtu 1500",
        )
    yield from _peers(cluster, facts, clock_offsets)


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
    if facts is None or node.transport != "ssh":
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
        identity = found.home.identity if found and found.home else None
        first = (
            known.setdefault((identity, node.slot), node.name)
            if identity
            else node.name
        )
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
    pairs = [
        (a, b)
        for a in cluster.nodes
        for b in visited_by(cluster, a)
        if a.name in facts
        and b.name in facts
        and _met(
            b,
            facts[a.name],
            facts[b.name],
            clock_offsets[a.name] - clock_offsets[b.name],
        )
    ]
    faults = [
        _obstacle(a, b, facts[a.name].peers, facts[b.name].peers) for a, b in pairs
    ]
    if pairs:
        found = [fault for fault in faults if fault]
        yield Check(
            name="peers",
            ok=not found,
            value="; ".join(dict.fromkeys(what for what, _ in found))
            or "the nodes reach each other",
            fix="; ".join(dict.fromkeys(fix for _, fix in found)),
        )


def _met(
    b: Node, facts: ProbeAnswer, others_facts: ProbeAnswer, offset_seconds: float
) -> bool:
    """Return whether `b` listened during the other's attempt, and on the port tried."""
    mine, others = facts.peers, others_facts.peers
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
