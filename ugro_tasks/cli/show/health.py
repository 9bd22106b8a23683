"""The output of `inv health`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ...text import printable_lines
from ..task import as_called
from .console import Printer, open_console, style
from .format import columns, show_json

if TYPE_CHECKING:  # for annotations only, to load fast
    from ...health.node_checks import Check
    from ...health.report import ClusterHealth, NodeHealth


HEADS = ["", "node", "address", "round trip", "GPU", "environment", "disk", "state"]


def show_health(
    found: ClusterHealth,
    measured: list[dict[str, Any]] | None,
    *,
    verbose: bool,
    as_json: bool,
) -> None:
    """Print a row a node, then each fault with its fix."""
    if as_json:
        return show_json(
            {"fit": found.fit, **msgspec.to_builtins(found), "allreduce": measured}
        )
    console = open_console()
    columns(console, [HEADS, *map(_node_row, found.nodes)])
    for node in found.nodes:
        for check in node.checks:
            _show_check(console, node.node, check, verbose=verbose)
    for check in found.across:
        _show_check(console, "cluster", check, verbose=verbose)
    for measurement in measured or []:
        console.print(printable_lines(_measured(measurement)))
    verdict = style("fit", "green") if found.fit else style("not fit", "red")
    size = f"{len(found.nodes)} nodes in {found.seconds:.1f} s"
    console.print(f"{printable_lines(found.cluster)}: ", verdict, f", {size}")
    return None


def _show_check(console: Printer, name: str, check: Check, *, verbose: bool) -> None:
    """Print a failed check with its fix, and a passed one if it has a note or with `verbose`."""
    where = f"{printable_lines(name)}: {printable_lines(check.name)}"
    value = printable_lines(check.value)
    if not check.ok:
        console.print(style(f"✗ {where}:", "red"), f" {value}")
        if check.fix:
            console.print(f"    {as_called(printable_lines(check.fix))}")
    elif verbose or check.note:
        sign = "·" if check.note else "✓"
        console.print(f"{sign} {where}: {value}")


def _node_row(node: NodeHealth) -> list[str]:
    if not node.reachable:
        return ["✗", node.node, node.address, "-", "-", "-", "-", "not reachable"]
    values = {check.name: check.value for check in node.checks}
    milliseconds = 1000 * (node.round_trip_seconds or 0)
    return [
        "✓" if node.fit else "✗",
        node.node,
        node.address,
        f"{milliseconds:.1f} ms",
        _first_card(node),
        values["environment"],
        values["disk"].split(" for ")[0],
        node.held_by or "free",
    ]


def _first_card(node: NodeHealth) -> str:
    if not node.gpus:
        return "none"
    card = node.gpus[0]
    return (
        f"{card.name} {card.memory_used}/{card.memory_total} MiB {card.temperature} °C"
    )


def _measured(found: dict[str, Any]) -> str:
    """Write one measurement: between a pair of nodes, or over all."""
    if found.get("kind") == "pair":
        pair = " ↔ ".join(found["hosts"])
        return f"{pair}: {found['round_trip_ms']:.2f} ms, {found['bandwidth_mb_per_second']:.0f} MB/s"
    return (
        f"all-reduce over {len(found['hosts'])} nodes ({found['backend']}): {found['latency_us']:.0f} µs, "
        f"{found['bandwidth_mb_per_second']:.0f} MB/s (bus {found['bus_bandwidth_mb_per_second']:.0f} MB/s)"
    )
