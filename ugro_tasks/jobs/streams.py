"""The streams of a job's ranks: their names, and how much of each is here."""

from __future__ import annotations

from collections.abc import Sequence

from ..node.protocol import GPU, LOG, METRICS
from .experiment import Experiment
from .plan import NodePlan


def stream_sizes(experiment: Experiment, plans: Sequence[NodePlan]) -> dict[str, int]:
    """Give {stream: bytes of it here} of these ranks: what the next attempt has for its bases."""
    sizes = {}
    for plan in plans:
        names = stream_names(plan)
        sizes[names[LOG]] = experiment.log(plan.rank).size()
        sizes[names[METRICS]] = experiment.metrics.size()
        sizes[names[GPU]] = experiment.gpu_bytes(plan.node)
    return sizes


def stream_names(plan: NodePlan) -> dict[int, str]:
    """Give {kind of frame: name of the stream} of a rank."""
    return {LOG: f"log {plan.rank}", METRICS: "metrics", GPU: f"gpu {plan.node}"}
