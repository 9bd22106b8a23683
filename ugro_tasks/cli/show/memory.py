"""The memory estimate of a launch, for each card."""

from __future__ import annotations

from ...jobs.plan import LaunchPlan, NodePlan
from .console import open_console
from .format import columns
from .values import UNKNOWN, gib

HEADS = [
    "node",
    "batch",
    "weights",
    "trained",
    "activations",
    "CUDA",
    "needs about",
    "card",
    "free",
    "",
]


def show_memory(plan: LaunchPlan) -> None:
    """Print a row for each node: its batch, and the memory of its card in GiB.

    Prints nothing for a script of one's own, for which there is no estimate.
    """
    if plan.effective_batch is None:
        return
    console = open_console()
    columns(console, [HEADS, *(_row(node) for node in plan.nodes)])
    sizes = [node.batch_size for node in plan.nodes]
    steps = plan.effective_batch // sum(sizes)
    summands = " + ".join(map(str, sizes))
    total = f"({summands}) x {steps} accumulated = {plan.effective_batch}"
    console.print(
        f"effective batch: {total} sequences a step; memory in GiB, estimated"
    )


def _row(node: NodePlan) -> list[str]:
    head = [node.node, str(node.batch_size)]
    memory = node.memory
    if memory is None:
        return [*head, *[UNKNOWN] * 7, node.memory_unknown or ""]
    sizes = (
        memory.weights_mib, memory.trained_mib, memory.activations_mib, memory.overhead_mib, memory.total_mib,
        memory.card_mib, memory.room_mib,
    )  # fmt: skip
    return [*head, *map(gib, sizes), memory.fit]
