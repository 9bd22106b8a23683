"""The results of a job: curves, metrics, throughput, cards, checkpoints.

They are read from the experiment folder; no node is asked.
"""

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
    """A node's part of the work. Tokens per second are split by the sizes of the batches."""

    node: str
    rank: int | None  # None: the node was dropped at a restart
    batch_size: int | None
    tokens_per_second: float | None
    cards: list[CardUse]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint here. `whole` is None if the script wrote no manifest."""

    name: str
    path: str  # of rank 0's files, in the job's folder; the others are in ranks/<rank>/
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
    checkpoints: list[Kept]
    logs: dict[str, int]


def results(experiment: Experiment) -> Results:
    """Read the results of a job, perhaps still running; raises RecordError."""
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
    """Return a row for each node of the last attempt, then for other nodes with GPU samples."""
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
    """Return the checkpoints here, the oldest first.

    Those without a manifest come first, by time, then the others by step.
    """
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
    # It has manifests, but not rank 0's, so it is not whole.
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
