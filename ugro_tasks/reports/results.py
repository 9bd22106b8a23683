"""What came of a job, read from its folder: curves, metrics, throughput, cards, checkpoints. No node is asked."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ..files import size_of
from ..jobs.checkpoints import (
    Checkpoint,
    checkpoints_with_manifest,
    fetched_checkpoints,
)
from ..jobs.experiment import Experiment
from ..jobs.gpu_use import CardUse, card_use
from ..jobs.metrics import Metrics, measure
from ..jobs.record import JobRecord
from ..jobs.state import JobState


class NodeUse(msgspec.Struct, frozen=True, kw_only=True):
    """A node's part of the work. Its tokens per second are its share of all, by the size of its batches."""

    node: str
    rank: int | None  # None: it was left behind at a restart
    batch_size: int | None
    tokens_per_second: float | None
    cards: list[CardUse]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint as it lies at home. `whole` is None where the script wrote no manifest that could tell."""

    name: str
    path: str  # of rank 0's part, from the job's folder on; what others wrote of it lies in ranks/<rank>/ there
    bytes: int
    whole: bool | None
    missing: str | None  # why it is not whole
    step: int | None
    epoch: float | None
    ranks: list[int]  # whose part has come
    nodes: list[str]  # the same, by the node that each rank has now


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a job. Sizes in bytes."""

    job_id: str
    folder: str
    record: JobRecord
    state: JobState
    metrics: Metrics
    nodes: list[NodeUse]
    checkpoints: list[Kept]
    logs: dict[str, int]


def results(experiment: Experiment) -> Results:
    """The results as they lie in the folder, also of a job that runs. Raises RecordError."""
    record, metrics = experiment.record(), measure(experiment.metrics)
    return Results(
        job_id=experiment.job_id,
        folder=str(experiment.folder),
        record=record,
        state=experiment.state(),
        metrics=metrics,
        nodes=node_use(record, metrics.tokens_per_second, card_use(experiment.gpu)),
        checkpoints=kept(experiment, record),
        logs={
            str(path.relative_to(experiment.folder)): path.stat().st_size
            for path in experiment.logs().values()
        },
    )


def node_use(
    record: JobRecord, tokens_per_second: float | None, cards: Sequence[CardUse]
) -> list[NodeUse]:
    """A line for each node of the last attempt, then for those that only have samples of their cards."""
    plans = record.plan.nodes if record.plan else ()
    batch = sum(plan.batch_size for plan in plans)
    names = dict.fromkeys(
        [*(plan.node for plan in plans), *record.nodes, *(card.node for card in cards)]
    )
    by_node = {plan.node: plan for plan in plans}
    found = []
    for name in names:
        plan = by_node.get(name)
        rate = (
            tokens_per_second * plan.batch_size / batch
            if plan and tokens_per_second
            else None
        )
        found.append(
            NodeUse(
                node=name,
                rank=plan.rank if plan else None,
                batch_size=plan.batch_size if plan else None,
                tokens_per_second=rate,
                cards=[card for card in cards if card.node == name],
            )
        )
    return found


def kept(experiment: Experiment, record: JobRecord) -> list[Kept]:
    """The checkpoints at home, the oldest first: those without a manifest by their time, then the others by step."""
    known = {
        checkpoint.name: checkpoint for checkpoint in fetched_checkpoints(experiment)
    }
    found, told = experiment.checkpoints(), checkpoints_with_manifest(experiment)
    lines = [
        _kept(experiment, record, name, found.get(name, {}), known.get(name), told)
        for name in {**found, **known}
    ]
    return sorted(
        lines,
        key=lambda line: (
            -1 if line.step is None else line.step,
            _age(found.get(line.name, {})),
        ),
    )


def _kept(
    experiment: Experiment,
    record: JobRecord,
    name: str,
    parts: dict[int, Path],
    known: Checkpoint | None,
    told: set[str],
) -> Kept:
    nodes = {plan.rank: plan.node for plan in record.plan.nodes} if record.plan else {}
    ranks, missing = (
        sorted(known.manifests if known else parts),
        known.missing if known else None,
    )
    # A manifest, but none of rank 0: it is one of those that can be whole, and is not.
    if not known and name in told:
        missing = "the part of rank 0 has not come"
    return Kept(
        name=name,
        path=str(
            (experiment.checkpoint_folder(0) / name).relative_to(experiment.folder)
        ),
        bytes=known.size_bytes if known else sum(map(size_of, parts.values())),
        whole=not missing if known or missing else None,
        missing=missing,
        step=known.step if known else None,
        epoch=known.epoch if known else None,
        ranks=ranks,
        nodes=[nodes[rank] for rank in ranks if rank in nodes],
    )


def _age(parts: dict[int, Path]) -> float:
    times = []
    for path in parts.values():
        with contextlib.suppress(OSError):
            times.append(path.lstat().st_mtime)
    return min(times, default=0.0)
