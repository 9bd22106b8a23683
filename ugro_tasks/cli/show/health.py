"""The health of a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ..task import as_called
from .format import columns, open_console, show_json, shown

if TYPE_CHECKING:  # what is only shown need not be loaded for what is not
    from ...health.report import ClusterHealth, NodeHealth


def show_health(
    found: ClusterHealth, measured: list[dict[str, Any]] | None, *, verbose: bool, as_json: bool
) -> None:
    """A row a node, then each fault with its fix."""
    if as_json:
        return show_json({"fit": found.fit, **msgspec.to_builtins(found), "allreduce": measured})
    console = open_console()
    header = ["", "node", "address", "round trip", "GPU", "environment", "disk", "state"]
    columns(console, [header, *map(_health_row, found.nodes)])
    checks = [(node.node, check) for node in found.nodes for check in node.checks]
    checks += [("cluster", check) for check in found.across]
    for name, check in checks:
        if not check.ok:
            console.print(f"[red]✗ {shown(name)}: {shown(check.name)}:[/] {shown(check.value)}")
            if check.fix:
                console.print(f"    {shown(as_called(check.fix))}")
        elif verbose or check.note:
            console.print(
                f"{'·' if check.note else '✓'} {shown(name)}: {shown(check.name)}: {shown(check.value)}"
            )
    for measurement in measured or []:
        console.print(shown(_measured(measurement)))
    verdict = "[green]fit[/]" if found.fit else "[red]not fit[/]"
    console.print(f"{shown(found.cluster)}: {verdict}, {len(found.nodes)} nodes in {found.seconds:.1f} s")
    return None


def _health_row(node: NodeHealth) -> list[str]:
    values = {check.name: check.value for check in node.checks}
    if not node.reachable:
        return ["✗", node.node, node.address, "-", "-", "-", "-", "not reachable"]
    card = node.gpus[0] if node.gpus else None
    return [
        "✓" if node.fit else "✗",
        node.node,
        node.address,
        f"{1000 * (node.round_trip_seconds or 0):.1f} ms",
        f"{card['name']} {card['memory.used']}/{card['memory.total']} MiB {card['temperature.gpu']} °C"
        if card
        else "none",
        values["environment"],
        values["disk"].split(" for ")[0],
        node.held_by or "free",
    ]


def _measured(found: dict[str, Any]) -> str:
    if found.get("kind") == "pair":
        pair = " ↔ ".join(found["hosts"])
        return f"{pair}: {found['round_trip_ms']:.2f} ms, {found['bandwidth_mb_per_second']:.0f} MB/s"
    return (
        f"all-reduce over {len(found['hosts'])} nodes ({found['backend']}): {found['latency_us']:.0f} µs, "
        f"{found['bandwidth_mb_per_second']:.0f} MB/s (bus {found['bus_bandwidth_mb_per_second']:.0f} MB/s)"
    )
