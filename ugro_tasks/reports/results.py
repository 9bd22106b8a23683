"""The results of a job: curves, metrics, throughput, cards, checkpoints.

They are read from the experiment folder; no node is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from ..files import Entry
from ..jobs.checkpoints import (
    Checkpoint,
    checkpoint_bytes,
    checkpoints_with_manifest,
    fetched_checkpoints,
)
from ..jobs.experiment import Experiment
from ..jobs.gpu_use import CardUse, card_use
from ..jobs.metrics import Metrics, measure
from ..jobs.record import JobRecord
from ..jobs.state import JobState


class NodeUse(msgspec.Struct, frozen=True, kw_only=True):
    """A node's part of the work. Tokens per second are split by the sizes of the batches."""

    node: str
    rank: int | None = None  # None: the node was dropped at a restart
    batch_size: int | None = None
    tokens_per_second: float | None = None
    cards: list[CardUse]


class CheckpointRow(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint here. `whole` is None if the script wrote no manifest."""

    name: str
    path: (
        str  # of rank 0's files, in the job's folder; the others are in outputs/<rank>/
    )
    bytes: int
    whole: bool | None
    missing: str | None  # the reason if it is not whole
    step: int | None
    epoch: float | None
    ranks: list[int]  # with files here
    nodes: list[str]  # the present nodes of these ranks


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The results of a job. Sizes in bytes."""

    job_id: str
    folder: str
    record: JobRecord
    state: JobState
    metrics: Metrics
    nodes: list[NodeUse]
    checkpoints: list[CheckpointRow]
    logs: dict[str, int]


def results(experiment: Experiment) -> Results:
    """Read the results of a job, perhaps still running; raises RecordError."""
    record = experiment.record()
    metrics = measure(experiment.metrics)
    cards = card_use(experiment.gpu)
    logs = {
        str(log.path.relative_to(experiment.folder)): log.size()
        for log in experiment.logs().values()
    }
    return Results(
        job_id=experiment.job_id,
        folder=str(experiment.folder),
        record=record,
        state=experiment.state(),
        metrics=metrics,
        nodes=node_use(record, metrics.tokens_per_second, cards),
        checkpoints=checkpoint_rows(experiment, record),
        logs=logs,
    )


def node_use(
    record: JobRecord, tokens_per_second: float | None, cards: Sequence[CardUse]
) -> list[NodeUse]:
    """Return a row for each node of the last attempt, then for other nodes with GPU samples."""
    plans = record.plan.nodes if record.plan else ()
    by_node = {plan.node: plan for plan in plans}
    batch = sum(plan.batch_size for plan in plans)
    names = dict.fromkeys([*by_node, *record.nodes, *(card.node for card in cards)])
    found = []
    for name in names:
        own = [card for card in cards if card.node == name]
        plan = by_node.get(name)
        if plan is None:
            found.append(NodeUse(node=name, cards=own))
            continue
        rate = None
        if tokens_per_second:
            rate = tokens_per_second * plan.batch_size / batch
        found.append(
            NodeUse(
                node=name,
                rank=plan.rank,
                batch_size=plan.batch_size,
                tokens_per_second=rate,
                cards=own,
            )
        )
    return found


def checkpoint_rows(experiment: Experiment, record: JobRecord) -> list[CheckpointRow]:
    """Return the checkpoints here, the oldest first.

    Those without a manifest come first, by time, then the others by step.
    """
    nodes = {plan.rank: plan.node for plan in record.plan.nodes} if record.plan else {}
    folder = experiment.outputs.checkpoints(0).path.relative_to(experiment.folder)
    parts = experiment.outputs.all_checkpoints()
    fetched = {one.name: one for one in fetched_checkpoints(experiment)}
    with_manifest = checkpoints_with_manifest(experiment)
    rows = []
    for name in {**parts, **fetched}:
        path = str(folder / name)
        if name in fetched:
            rows.append(_row(fetched[name], path, nodes))
        else:
            has_manifest = name in with_manifest
            size = checkpoint_bytes(experiment, name, parts[name])
            rows.append(
                _partial_row(name, path, size, sorted(parts[name]), nodes, has_manifest)
            )

    def order(row: CheckpointRow) -> tuple[int, float]:
        step = -1 if row.step is None else row.step
        return step, _age(parts.get(row.name, {}))

    return sorted(rows, key=order)


def _row(checkpoint: Checkpoint, path: str, nodes: Mapping[int, str]) -> CheckpointRow:
    ranks = sorted(checkpoint.manifests)
    return CheckpointRow(
        name=checkpoint.name,
        path=path,
        bytes=checkpoint.size_bytes,
        whole=not checkpoint.missing,
        missing=checkpoint.missing,
        step=checkpoint.step,
        epoch=checkpoint.epoch,
        ranks=ranks,
        nodes=[nodes[rank] for rank in ranks if rank in nodes],
    )


def _partial_row(
    name: str,
    path: str,
    size_bytes: int,
    ranks: list[int],
    nodes: Mapping[int, str],
    has_manifest: bool,
) -> CheckpointRow:
    """Return the row of a checkpoint without rank 0's manifest; with another's it is not whole."""
    return CheckpointRow(
        name=name,
        path=path,
        bytes=size_bytes,
        whole=False if has_manifest else None,
        missing="the part of rank 0 has not come" if has_manifest else None,
        step=None,
        epoch=None,
        ranks=ranks,
        nodes=[nodes[rank] for rank in ranks if rank in nodes],
    )


def _age(parts: Mapping[int, Entry]) -> float:
    return min((part.facts.st_mtime for part in parts.values()), default=0.0)
