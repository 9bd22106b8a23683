"""The streams of a job's ranks: their names, and how much of each is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..node.protocol import GPU, LOG, METRICS
from .experiment import Experiment
from .plan import NodePlan
from .state import Attempt


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
    return {LOG: log_stream(plan.rank), METRICS: "metrics", GPU: f"gpu {plan.node}"}


def log_stream(rank: int) -> str:
    """Give the name of the stream with a rank's log."""
    return f"log {rank}"


def kinds_of(plan: NodePlan) -> list[int]:
    """Give the kinds of a rank's streams: metrics come from rank 0 alone."""
    return [kind for kind in stream_names(plan) if kind != METRICS or plan.rank == 0]


def sizes_of_attempt(
    experiment: Experiment,
    plan: NodePlan,
    number: int,
    attempts: Sequence[Attempt],
) -> dict[int, int]:
    """Give {kind of frame: bytes here} of a rank's streams in the attempt of this number.

    They lie between where the attempt and the next one with that stream began; what came after
    that is in a file of its own, see `Experiment.late_stream`.
    """
    now = stream_sizes(experiment, [plan])
    names = stream_names(plan)
    sizes = {}
    for kind in kinds_of(plan):
        name = names[kind]
        begin = 0
        end = now[name]
        for attempt in reversed(attempts):
            if attempt.number > number:
                end = attempt.bases.get(name, end)
            elif attempt.number == number:
                begin = attempt.bases.get(name, 0)
        late = experiment.late_stream(number, plan.rank, kind).size()
        sizes[kind] = max(0, end - begin) + late
    return sizes


def has_more(here: Mapping[int, int], there: Mapping[int, int]) -> list[int]:
    """Give the kinds of which there are more bytes there than here."""
    return [kind for kind, size in there.items() if size > here.get(kind, 0)]
